"""Acetylacetone at 300 K: energies and forces from 450 structures, with and without denoising before.

    python experiments/atomformer/acac.py --data ../shared/data --out runs/acac

Trains four models (finished ones are skipped, interrupted ones resumed), evaluates them on the test set and writes
table.md, errors.json and curves.png. Data: BOTNet datasets (Kovács et al. 2021, MIT licence).
"""

import argparse
import csv
import dataclasses
import json
import logging
import pathlib

from atomformer.checkpoint.published import from_pretrained
from atomformer.config import AtomformerConfig, FinetuneConfig, LossConfig, PretrainConfig, TrainConfig
from atomformer.data.dataset import write_dataset
from atomformer.data.rows import row_from_atoms
from atomformer.data.sources import iterate_rows
from atomformer.prediction.evaluation import evaluate
from atomformer.training import train
from matterform.io.files import write_atomically
from matterform.io.formats import read_structures, to_atoms
from matterform.plots.curves import new_figure
from matterform.training.config import LoopConfig, OptimizerConfig

# Small enough for two cores: a twentieth of `tiny`'s arithmetic, and more accurate on so few structures.
NETWORK = AtomformerConfig(dim=64, num_heads=4, depth=4, k=64)
OPTIMIZER = OptimizerConfig(
    optimizer="adamw", learning_rate=2e-3, weight_decay=0.01, clip_norm=20.0, schedule="cosine", warmup_steps=100
)
STEPS_PER_EPOCH = 57  # 450 structures, 8 a step


def main() -> None:
    """Runs what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("../shared/data"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/acac"))
    parser.add_argument("--epochs", type=int, default=400, help="of fine-tuning")
    parser.add_argument("--pretrain-epochs", type=int, default=100, help="of denoising")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("atomformer", "matterform"):
        logging.getLogger(name).setLevel(logging.INFO)
    unlabelled = write_unlabelled(arguments.data, arguments.out / "unlabelled")
    for kind in ("direct", "conservative"):
        model = dataclasses.replace(NETWORK, conservative=kind == "conservative")
        denoising = arguments.out / f"denoising_{kind}"
        run(
            PretrainConfig(
                train=unlabelled,
                run_dir=denoising,
                network=model,
                loss=LossConfig(denoising=1.0, noise_ang=0.05),
                optimizer=OPTIMIZER,
                loop=LoopConfig(epochs=arguments.pretrain_epochs),
                batch_size=8,
                ema_decay=0.995,
            )
        )
        for start in (None, str(denoising / "model")):
            run(finetuning(arguments, model, start, arguments.out / name_of(kind, start)))
    report(arguments.data, arguments.out)


def finetuning(arguments: argparse.Namespace, model: AtomformerConfig, start: str | None, run_dir: pathlib.Path):
    """Energies relative to the isolated atoms, and forces; L1, forces ten times as heavy."""
    return FinetuneConfig(
        train=arguments.data / "acac_train_300K.extxyz.gz",
        run_dir=run_dir,
        model=start,
        isolated_atoms=arguments.data / "acac_isolated_atoms.extxyz",
        network=model,
        loss=LossConfig(total_energy=1.0, forces=10.0),
        optimizer=OPTIMIZER,
        loop=LoopConfig(epochs=arguments.epochs, log_every=5 * STEPS_PER_EPOCH, validate_every=5 * STEPS_PER_EPOCH),
        batch_size=8,
        ema_decay=0.998,
    )


def name_of(kind: str, start: str | None) -> str:
    """Folder of a fine-tuning run."""
    return f"{'scratch' if start is None else 'denoised'}_{kind}"


def run(config: TrainConfig) -> None:
    """Trains, goes on with, or skips a run."""
    if not (config.run_dir / "model").exists():
        train(config, resume=(config.run_dir / "checkpoints").exists())


def write_unlabelled(data: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The training structures of both molecules; denoising reads no label of theirs."""
    if not folder.exists():
        rows = []
        for name in ("3bpa_train_300K.extxyz.gz", "acac_train_300K.extxyz.gz"):
            structures, _ = read_structures(data / name)
            rows += [row_from_atoms(to_atoms(structure)) for structure in structures]
        write_dataset(folder, [{name: row[name] for name in ("input_ids", "coords")} for row in rows])
    return folder


def report(data: pathlib.Path, out: pathlib.Path) -> None:
    """Errors of the four on the test set, as a table, as numbers and with their curves."""
    names = [f"{start}_{kind}" for kind in ("direct", "conservative") for start in ("scratch", "denoised")]
    errors = {}
    for name in names:
        rows = (read.row for read in iterate_rows(data / "acac_test_300K.extxyz.gz") if read.row is not None)
        errors[name] = evaluate(from_pretrained(out / name / "model"), rows).metrics
    lines = [
        "| model | energy MAE | energy RMSE (meV) | force MAE | force RMSE (meV/Å) | cosine |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in errors.items():
        energy = f"{found['total_energy/mae_mev']:.1f} | {found['total_energy/rmse_mev']:.1f}"
        forces = f"{found['forces/mae_mev_per_ang']:.1f} | {found['forces/rmse_mev_per_ang']:.1f}"
        lines.append(f"| {name.replace('_', ', ')} | {energy} | {forces} | {found['forces/cosine']:.4f} |")
    with write_atomically(out / "table.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with write_atomically(out / "errors.json") as temporary:
        temporary.write_text(json.dumps(errors, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines))
    draw(out, names)


def draw(out: pathlib.Path, names: list[str]) -> None:
    """Validation errors of all four runs against the epoch."""
    figure, axes = new_figure(2, "Acetylacetone, 450 structures: held-out errors while training")
    for name in names:
        with (out / name / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["validation_loss"]]
        epochs = [float(row["epoch"]) for row in rows]
        for axis, column in zip(axes, ("validation_total_energy", "validation_forces"), strict=True):
            axis.plot(epochs, [1000 * float(row[column]) for row in rows], label=name.replace("_", ", "), linewidth=1.2)
    for axis, unit in zip(axes, ("energy MAE (meV)", "force MAE (meV/Å)"), strict=True):
        axis.set(title=unit, xlabel="epoch", yscale="log")
    axes[1].legend(frameon=False, fontsize=7)
    with write_atomically(out / "curves.png") as temporary:
        figure.savefig(temporary, dpi=150, format="png")


if __name__ == "__main__":
    main()
