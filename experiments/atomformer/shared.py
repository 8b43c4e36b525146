"""Shared by AtomFormer's recipes: runs that are trained only once, errors on a test set, tables and curves."""

import csv
import pathlib
from collections.abc import Mapping, Sequence

import atomformer
from experiments import common

OPTIMIZER = {"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.01, "clip_norm": 20.0, "schedule": "cosine"}


def train_once(config: atomformer.TrainConfig) -> pathlib.Path:
    """Trains, resumes an interrupted run, or skips a finished one; returns the folder of the model."""
    model = config.run_dir / "model"
    if not model.exists():
        atomformer.train(config, resume=(config.run_dir / "checkpoints").exists())
    return model


def evaluate_on(path: pathlib.Path, model: pathlib.Path) -> atomformer.Evaluation:
    """Errors of a model on the structures of a file; those that cannot be read are left out."""
    rows = (read.row for read in atomformer.iterate_rows(path) if read.row is not None)
    return atomformer.evaluate(atomformer.from_pretrained(model), rows)


def write_errors(
    out: pathlib.Path, first_column: str, errors: Mapping[str, Mapping[str, float]], per_atom: bool = False
) -> None:
    """Writes errors.json, and table.md with one row per model; energies are totals or per atom."""
    ending, unit, digits = ("_per_atom", "meV/atom", 0) if per_atom else ("", "meV", 1)
    rows = []
    for name, found in errors.items():
        energies = [f"{found[f'total_energy/{kind}_mev{ending}']:.1f}" for kind in ("mae", "rmse")]
        forces = [f"{found[f'forces/{kind}_mev_per_ang']:.{digits}f}" for kind in ("mae", "rmse")]
        rows.append([name.replace("_", " "), *energies, *forces, f"{found['forces/cosine']:.4f}"])
    header = [first_column, "energy MAE", f"energy RMSE ({unit})", "force MAE", "force RMSE (meV/Å)", "cosine"]
    common.write_json(out / "errors.json", {name: dict(found) for name, found in errors.items()})
    common.write_table(out / "table.md", header, rows)


def draw_curves(out: pathlib.Path, runs: Sequence[str], title: str) -> None:
    """Plots held-out errors of energies and forces against the epoch, for runs in one folder."""
    figure, axes = common.new_figure(2, title)
    for name in runs:
        with (out / name / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["validation_loss"]]
        epochs = [float(row["epoch"]) for row in rows]
        for axis, column in zip(axes, ("validation_total_energy", "validation_forces"), strict=True):
            axis.plot(epochs, [1000 * float(row[column]) for row in rows], label=name.replace("_", ", "), linewidth=1.2)
    for axis, unit in zip(axes, ("energy MAE (meV)", "force MAE (meV/Å)"), strict=True):
        axis.set(title=unit, xlabel="epoch", yscale="log")
    axes[1].legend(frameon=False, fontsize=7)
    common.save_picture(figure, out / "curves.png")
