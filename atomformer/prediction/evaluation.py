"""Errors of predicted energies, forces and labels: as numbers, as a table and as parity plots."""

import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from atomformer.checkpoint.published import Pretrained
from atomformer.config import ENERGY_HEADS, AtomformerConfig
from atomformer.data.rows import Row
from atomformer.prediction.metrics import ATOM3D, task_metrics
from atomformer.prediction.predict import Prediction, predict_rows
from matterform.io.files import write_atomically
from matterform.io.tables import write_table

MEV = 1000.0


class Evaluation(NamedTuple):
    """Errors, and the known and predicted values of each quantity."""

    metrics: dict[str, float]
    pairs: dict[str, tuple[np.ndarray, np.ndarray]]  # energies (eV), forces (components, eV/Å), labels (m, t)


def evaluate(
    model: Pretrained, rows: Iterable[Row], *, label_columns: Sequence[str] = (), task: str | None = None
) -> Evaluation:
    """Predicts every row and compares with the known values in it.

    Energies: mean absolute and root-mean-square errors in meV and in meV/atom. Forces: the same of the components, in
    meV/Å, and the mean cosine between the vectors. Labels: the metrics of the model's problem, or of the ATOM3D `task`.

    Args:
        label_columns: properties with the known labels; by default those that the model was trained on.

    Raises:
        ValueError: a row cannot be used, or no row has a known value of a predicted quantity.
    """
    columns = label_columns or _columns(model.config)
    found: dict[str, list[tuple[Any, Any]]] = {}
    sizes: dict[str, list[int]] = {}
    for row, prediction in predict_rows(model, rows):
        for name, known, predicted in _compared(row, prediction, columns):
            found.setdefault(name, []).append((known, predicted))
            sizes.setdefault(name, []).append(len(row["input_ids"]))
    if not found:
        raise ValueError(f"no structure has a known value of what the model predicts: {', '.join(model.config.heads)}")
    if "labels" in found:
        found["labels"] = _filled(found["labels"], columns)
    pairs = {name: _side_by_side(values) for name, values in found.items()}
    metrics: dict[str, float] = {}
    for name, (known, predicted) in pairs.items():
        if name == "labels":
            metrics |= _label_metrics(model.config, columns, known, predicted, task)
        elif name == "forces":
            metrics |= force_errors(known, predicted)
        else:
            metrics |= energy_errors(name, known, predicted, np.array(sizes[name]))
    return Evaluation(metrics, pairs)


def _label_metrics(
    config: AtomformerConfig, columns: Sequence[str], known: np.ndarray, predicted: np.ndarray, task: str | None
) -> dict[str, float]:
    wanted = None if task is None else ATOM3D[task].metrics
    names = config.label_names or [f"label {i}" for i in range(known.shape[1])]
    names = columns if config.problem == "multiclass" else names
    return task_metrics(config.problem, predicted, known, names, wanted)


def energy_errors(name: str, known: np.ndarray, predicted: np.ndarray, atoms: np.ndarray) -> dict[str, float]:
    """Errors in meV and meV/atom of m energies (eV); `atoms` are the numbers of atoms of the structures."""
    errors = (predicted - known) * MEV
    return {
        f"{name}/mae_mev": float(np.abs(errors).mean()),
        f"{name}/rmse_mev": float(np.sqrt(np.mean(errors**2))),
        f"{name}/mae_mev_per_atom": float(np.abs(errors / atoms).mean()),
        f"{name}/rmse_mev_per_atom": float(np.sqrt(np.mean((errors / atoms) ** 2))),
        f"{name}/count": float(len(errors)),
    }


def force_errors(known: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Errors of the components of (n, 3) forces (eV/Å) in meV/Å; the mean cosine is over atoms whose force is not 0."""
    errors = (predicted - known) * MEV
    norms = np.linalg.norm(known, axis=1) * np.linalg.norm(predicted, axis=1)
    cosines = np.sum(known * predicted, axis=1)[norms > 0] / norms[norms > 0]
    return {
        "forces/mae_mev_per_ang": float(np.abs(errors).mean()),
        "forces/rmse_mev_per_ang": float(np.sqrt(np.mean(errors**2))),
        "forces/cosine": float(np.mean(cosines)) if len(cosines) else float("nan"),
        "forces/count": float(errors.size),
    }


def _columns(config: AtomformerConfig) -> tuple[str, ...]:
    """The property columns of a model's labels; entries of a vector, and classes, are named name[i]."""
    return tuple(dict.fromkeys(re.sub(r"\[\d+\]$", "", name) for name in config.label_names)) or ("labels",)


def _compared(row: Row, prediction: Prediction, columns: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    for name in ENERGY_HEADS:
        predicted = getattr(prediction, name)
        if predicted is not None and name in row:
            yield name, row[name], predicted
    if prediction.forces is not None and "forces" in row:
        yield "forces", row["forces"], prediction.forces
    if prediction.labels is not None:
        known = [np.atleast_1d(row[name]) if name in row else None for name in columns]
        if any(part is not None for part in known):
            yield "labels", known, prediction.labels


def _filled(values: list[tuple[Any, Any]], columns: Sequence[str]) -> list[tuple[Any, Any]]:
    """Labels, column by column, joined; NaN stands where a structure lacks a column that others have."""
    widths = []
    for place, name in enumerate(columns):
        sizes = {part[place].size for part, _ in values if part[place] is not None}
        if len(sizes) != 1:
            found = f"vectors of {', '.join(map(str, sorted(sizes)))} numbers" if sizes else "no structure with it"
            raise ValueError(f"the label column {name} must have one length in all structures; found {found}")
        widths.append(sizes.pop())

    def joined(parts: Sequence[Any]) -> np.ndarray:
        pairs = zip(parts, widths, strict=True)
        return np.concatenate([np.full(width, np.nan) if part is None else part for part, width in pairs])

    return [(joined(known), predicted) for known, predicted in values]


def _side_by_side(values: list[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Energies as (m,), forces as (atoms, 3), labels as (m, t)."""
    known, predicted = ([np.asarray(pair[side], np.float64) for pair in values] for side in (0, 1))
    if known[0].ndim == 2:
        return np.concatenate(known), np.concatenate(predicted)
    return np.stack(known), np.stack(predicted)


def write_evaluation(folder: str | os.PathLike[str], evaluation: Evaluation) -> None:
    """Writes evaluation.json (undefined metrics are null), parity.csv and parity.png; replaces earlier ones.

    Raises:
        ImportError: matplotlib is missing (extra `viz`); the other two files are written.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    defined = {name: value if math.isfinite(value) else None for name, value in evaluation.metrics.items()}
    with write_atomically(folder / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(defined, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_table(folder / "parity.csv", _parity_rows(evaluation), ("quantity", "known", "predicted"))
    write_parity(folder / "parity.png", evaluation)


def _parity_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for name, (known, predicted) in evaluation.pairs.items():
        if known.shape == predicted.shape:  # classes have one score per class
            for pair in zip(known.ravel().tolist(), predicted.ravel().tolist(), strict=True):
                yield {"quantity": name, "known": pair[0], "predicted": pair[1]}


def write_parity(path: str | os.PathLike[str], evaluation: Evaluation, title: str = "") -> None:
    """Plots predicted against known values, one panel per quantity; without such a quantity (classes) no file is left.

    Raises:
        ImportError: matplotlib is missing; it comes with the extra `viz`.
    """
    from matterform.plots.curves import new_figure

    panels = {name: pair for name, pair in evaluation.pairs.items() if pair[0].shape == pair[1].shape}
    if not panels:
        pathlib.Path(path).unlink(missing_ok=True)  # of an earlier evaluation
        return
    units = {"formation_energy": "eV", "total_energy": "eV", "forces": "eV/Å"}
    figure, axes = new_figure(len(panels), title)
    for axis, (name, (known, predicted)) in zip(axes, panels.items(), strict=True):
        unit = f" ({units[name]})" if name in units else ""
        # Total energies are large and nearly equal, so their deviation from the mean is shown.
        origin = known.mean() if name in ENERGY_HEADS else 0.0
        known, predicted = (known - origin).ravel(), (predicted - origin).ravel()
        low, high = (pick([pick(known), pick(predicted)]) for pick in (np.nanmin, np.nanmax))
        axis.plot([low, high], [low, high], color="#aab2ba", linewidth=1)
        axis.scatter(known, predicted, s=6, alpha=0.5, linewidths=0, rasterized=True)
        axis.set(title=name.replace("_", " "), xlabel=f"known{unit}", ylabel=f"predicted{unit}")
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
