"""Trains the small model that ships with the package, and exports it with its card and learning curve.

    python experiments/crystalformer/small.py train --train mp20_biternary.csv.gz --run-dir runs/small
    python experiments/crystalformer/small.py export --run-dir runs/small
    python experiments/crystalformer/small.py evaluate --run-dir runs/small

Data: 7,140 binary and ternary crystals of MP-20's validation set, up to 20 atoms (Materials Project, CC BY 4.0), a
tenth of them held out. The shipped weights are those of epoch 47, where the held-out loss stopped falling: the epochs
took 40 to 60 s each on two cores that were busy with other work, and the schedule would have gone on to epoch 100.
"""

import csv
import dataclasses
import importlib.util
import json
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
import tyro

from crystalformer.checkpoint.pretrained import FOLDER, NAME, load_pretrained, training_spacegroups
from crystalformer.checkpoint.published import load_checkpoint, save_checkpoint
from crystalformer.cli import main
from crystalformer.config import TrainConfig, TransformerConfig
from crystalformer.data.crystals import Crystals, cell_parameters, iterate_crystals, to_structures
from crystalformer.sampling.sample import sample
from crystalformer.symmetry.lattice import cell_problem
from crystalformer.training import load_split
from matterform.config import load_config
from matterform.evaluation import summary
from matterform.evaluation.summary import EvaluationConfig, describe, tabulate
from matterform.training.config import LoopConfig, OptimizerConfig

EPOCHS, STEPS_PER_EPOCH = 100, 101
RESULTS = pathlib.Path(__file__).parent / "results" / "small"

RECIPE = TrainConfig(
    train=pathlib.Path("mp20_biternary.csv.gz"),
    run_dir=pathlib.Path("runs/small"),
    transformer=TransformerConfig(num_layers=6, num_heads=8, key_size=32, model_size=128, h0_size=128),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        schedule="cosine",
        total_steps=EPOCHS * STEPS_PER_EPOCH,
        warmup_steps=200,
        clip_norm=1.0,
    ),
    loop=LoopConfig(epochs=EPOCHS, patience=2),
    batch_size=64,
    ema_decay=0.999,
    publish_every=20,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Writes weights (float16) and card into the package; log, curve and card beside this script."""

    run_dir: pathlib.Path = RECIPE.run_dir


def export(arguments: Export) -> int:
    """Publishes the weights of the lowest validation loss."""
    run = arguments.run_dir
    config = load_config(TrainConfig, run / "config.yaml")
    weights = load_checkpoint(run / "published" / "best.pkl")
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), weights.params)
    save_checkpoint(FOLDER / f"{NAME}.pkl", half, config=weights.config)
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    split = load_split(config)
    card = make_card(rows, split.train.G, sum(leaf.size for leaf in jax.tree.leaves(half)))
    text = json.dumps(card, indent=1) + "\n"
    (FOLDER / f"{NAME}.json").write_text(text)
    held_out = tabulate(to_structures(split.validation)).round(4)
    (FOLDER / f"{NAME}_held_out.json").write_text(json.dumps(held_out.to_dict("list")) + "\n")
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "metrics.csv", RESULTS / "metrics.csv")
    draw_curve(rows, RESULTS / "curve.png")
    print(text)
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Judges samples of the shipped weights against the training set; writes evaluation.json beside this script."""

    run_dir: pathlib.Path = RECIPE.run_dir
    num_samples: int = 1000
    temperature: float = 1.0
    seed: int = 0


def evaluate(arguments: Evaluate) -> int:
    """Validity, fidelity, uniqueness and novelty of raw samples; SMACT needs the extra `eval`."""
    weights, counts = load_pretrained(), training_spacegroups()
    rng = np.random.default_rng(arguments.seed)
    groups = rng.choice(np.arange(1, 231), arguments.num_samples, p=counts / counts.sum())
    key = jax.random.key(arguments.seed)
    start = time.monotonic()
    crystals = sample(weights.params, weights.config, key, groups, temperature=arguments.temperature)
    seconds = time.monotonic() - start
    possible = np.array([not cell_problem(cell_parameters(crystal)) for crystal in iterate_crystals(crystals)])
    crystals = Crystals(*(field[possible] for field in crystals))
    split = load_split(load_config(TrainConfig, arguments.run_dir / "config.yaml"))
    config = EvaluationConfig(composition=importlib.util.find_spec("smact") is not None)
    report = summary.evaluate(to_structures(crystals), crystals.G, to_structures(split.train), config)
    settings = {
        "drawn": arguments.num_samples,
        "without_possible_cell": int((~possible).sum()),
        "temperature": arguments.temperature,
        "seed": arguments.seed,
        "space_groups": "drawn from the training set's distribution",
        "novel_against": f"{len(split.train.G)} training crystals",
        "sampling_seconds_with_compilation": round(seconds, 1),
    }
    text = json.dumps(settings | report.summary, indent=1) + "\n"
    (RESULTS / "evaluation.json").write_text(text)
    print(describe(report.summary))
    return 0


def make_card(rows: list[dict[str, float]], groups: np.ndarray, num_parameters: int) -> dict:
    """What the weights are: data, sizes, losses in nats a crystal, and the groups of the training set."""
    best = min(rows, key=lambda row: row["validation_loss"])
    number, count = np.unique(groups, return_counts=True)
    return {
        "data": "binary and ternary crystals of MP-20's validation set (Materials Project, CC BY 4.0, via CDVAE)",
        "training_crystals": len(groups),
        "parameters": num_parameters,
        "epochs": rows[-1]["epoch"],
        "best_epoch": best["epoch"],
        "negative_log_likelihood": {
            name.removeprefix("validation_"): round(value, 4)
            for name, value in best.items()
            if name.startswith("validation_")
        },
        "training_loss": round(best["loss"], 4),
        "spacegroups": dict(zip(map(int, number), map(int, count), strict=True)),
    }


def draw_curve(rows: list[dict[str, float]], path: pathlib.Path) -> None:
    """Loss and its parts against the epoch, training and held-out."""
    from matplotlib.figure import Figure

    parts = {"loss": "whole crystal", "loss_w": "letters", "loss_a": "elements", "loss_xyz": "coordinates"}
    parts["loss_l"] = "lattice"
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(15, 3.4), dpi=130, layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(parts)), parts.items(), strict=True):
        for prefix, label, colour in (
            ("", "training, with dropout", "#9bb4cc"),
            ("validation_", "held out, averaged weights", "#c0532f"),
        ):
            axes.plot(epochs, [row[prefix + name] for row in rows], color=colour, label=label)
        floor = min(min(row[name], row[f"validation_{name}"]) for row in rows)
        late = max(row[f"validation_{name}"] for row in rows[len(rows) // 10 :])
        axes.set(title=title, xlabel="epoch", ylim=(floor - 0.1 * abs(late - floor), late + 0.2 * abs(late - floor)))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("negative log-likelihood (nats a crystal)")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["export"]:
        sys.exit(export(tyro.cli(Export, args=sys.argv[2:])))
    if sys.argv[1:2] == ["evaluate"]:
        sys.exit(evaluate(tyro.cli(Evaluate, args=sys.argv[2:])))
    sys.exit(main(sys.argv[1:] or ["train", "--help"], RECIPE))
