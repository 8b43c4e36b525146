"""The model that ships with the package: its export from a run with its card, and its evaluation by samples.

`small.py` and `demo.py` call these; results go to `results/small/` beside this file.
"""

import csv
import dataclasses
import importlib.util
import json
import pathlib
import shutil
import time

import jax
import numpy as np
import tyro

import crystalformer
import matterform

ASSETS = pathlib.Path(crystalformer.__file__).parent / "assets"
NAME = "mp20_biternary"
RESULTS = pathlib.Path(__file__).parent / "results" / "small"


def run(argv: list[str]) -> int:
    """Runs `export` or `evaluate` with the flags that follow; returns the exit status."""
    arguments, function = {"export": (Export, export), "evaluate": (Evaluate, evaluate)}[argv[0]]
    return function(tyro.cli(arguments, args=argv[1:]))


def steady_speed(num_samples: int) -> float:
    """Crystals per second of a second call, without compilation; space groups as in the training set."""
    weights, counts = crystalformer.load_pretrained(), crystalformer.training_spacegroups()
    groups = np.random.default_rng(0).choice(np.arange(1, 231), num_samples, p=counts / counts.sum())
    seconds = []
    for seed in range(2):
        start = time.monotonic()
        crystalformer.sample(weights.params, weights.config, jax.random.key(seed), groups)
        seconds.append(time.monotonic() - start)
    return num_samples / seconds[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Writes weights (float16) and card into the package; log, curve and card beside this script."""

    run_dir: pathlib.Path = pathlib.Path("runs/small")  # folder of the training run


def export(arguments: Export) -> int:
    """Publishes the weights of the lowest validation loss."""
    run = arguments.run_dir
    config = matterform.load_config(crystalformer.TrainConfig, run / "config.yaml")
    weights = crystalformer.load_checkpoint(run / "published" / "best.pkl")
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), weights.params)
    crystalformer.save_checkpoint(ASSETS / f"{NAME}.pkl", half, config=weights.config)
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    split = crystalformer.load_split(config)
    card = make_card(rows, split.train.G, sum(leaf.size for leaf in jax.tree.leaves(half)))
    text = json.dumps(card, indent=1) + "\n"
    (ASSETS / f"{NAME}.json").write_text(text)
    held_out = matterform.tabulate(crystalformer.to_structures(split.validation)).round(4)
    (ASSETS / f"{NAME}_held_out.json").write_text(json.dumps(held_out.to_dict("list")) + "\n")
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "metrics.csv", RESULTS / "metrics.csv")
    draw_curve(rows, RESULTS / "curve.png")
    print(text)
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compares samples of the shipped weights with the training set; writes evaluation.json beside this script."""

    run_dir: pathlib.Path = pathlib.Path("runs/small")  # folder of the training run
    num_samples: int = 1000  # number of crystals to sample
    temperature: float = 1.0  # sampling temperature; 1: the distribution of the model
    seed: int = 0  # random seed


def evaluate(arguments: Evaluate) -> int:
    """Validity, fidelity, uniqueness and novelty of raw samples; SMACT needs the extra `eval`."""
    weights, counts = crystalformer.load_pretrained(), crystalformer.training_spacegroups()
    rng = np.random.default_rng(arguments.seed)
    groups = rng.choice(np.arange(1, 231), arguments.num_samples, p=counts / counts.sum())
    key = jax.random.key(arguments.seed)
    start = time.monotonic()
    crystals = crystalformer.sample(weights.params, weights.config, key, groups, temperature=arguments.temperature)
    seconds = time.monotonic() - start
    possible = np.array(
        [
            not crystalformer.cell_problem(crystalformer.cell_parameters(crystal))
            for crystal in crystalformer.iterate_crystals(crystals)
        ]
    )
    crystals = crystalformer.Crystals(*(field[possible] for field in crystals))
    split = crystalformer.load_split(
        matterform.load_config(crystalformer.TrainConfig, arguments.run_dir / "config.yaml")
    )
    config = matterform.EvaluationConfig(composition=importlib.util.find_spec("smact") is not None)
    report = matterform.evaluate(
        crystalformer.to_structures(crystals), crystals.G, crystalformer.to_structures(split.train), config
    )
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
    print(matterform.describe(report.summary))
    return 0


def make_card(rows: list[dict[str, float]], groups: np.ndarray, num_parameters: int) -> dict:
    """Description of the weights: data, sizes, losses (nats per crystal), and space groups of the training set."""
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
    """Plots the loss and its parts against the epoch, for training and held-out crystals."""
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
    figure.axes[0].set_ylabel("negative log-likelihood (nats per crystal)")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)
