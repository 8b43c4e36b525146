"""How far predictions are from what is known: errors of energies, forces and labels, as numbers, table and picture."""

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
from atomformer.prediction.predict import Prediction, predict_all
from matterform.io.files import write_atomically

MEV = 1000.0


class Evaluation(NamedTuple):
    """Errors, and the values behind them: name -> known and predicted, side by side."""

    metrics: dict[str, float]
    pairs: dict[str, tuple[np.ndarray, np.ndarray]]  # energies (eV), forces (components, eV/Å), labels (m, t)


def evaluate(
    model: Pretrained, rows: Iterable[Row], *, label_columns: Sequence[str] = (), task: str | None = None
) -> Evaluation:
    """Predicts every row and compares with what it knows.

    Energies: mean absolute and root-mean-square errors in meV, and in meV an atom. Forces: the same of the components,
    in meV/Å, and the cosine between vectors. Labels: the metrics of the model's problem, or of the ATOM3D `task`.

    Raises:
        ValueError: a row cannot be used, or nothing is known of what the model predicts.
    """
    kept: list[Row] = []

    def remembered() -> Iterator[Row]:
        for row in rows:
            kept.append(row)
            yield row

    columns = label_columns or _columns(model.config)
    found: dict[str, list[tuple[Any, Any]]] = {}
    sizes: dict[str, list[int]] = {}
    for index, prediction in enumerate(predict_all(model, remembered())):
        row, kept[index] = kept[index], {}
        for name, known, predicted in _compared(row, prediction, columns):
            found.setdefault(name, []).append((known, predicted))
            sizes.setdefault(name, []).append(len(row["input_ids"]))
    if not found:
        raise ValueError(f"none of the structures knows what the model predicts: {', '.join(model.config.heads)}")
    if "labels" in found:
        found["labels"] = _filled(found["labels"], columns)
    pairs = {name: _side_by_side(values) for name, values in found.items()}
    metrics: dict[str, float] = {}
    for name, (known, predicted) in pairs.items():
        if name == "labels":
            wanted = None if task is None else ATOM3D[task].metrics
            names = model.config.label_names or [f"label {i}" for i in range(known.shape[1])]
            names = columns if model.config.problem == "multiclass" else names
            metrics |= task_metrics(model.config.problem, predicted, known, names, wanted)
        elif name == "forces":
            metrics |= force_errors(known, predicted)
        else:
            metrics |= energy_errors(name, known, predicted, np.array(sizes[name]))
    return Evaluation(metrics, pairs)


def energy_errors(name: str, known: np.ndarray, predicted: np.ndarray, atoms: np.ndarray) -> dict[str, float]:
    """Errors of m energies (eV) of structures with so many `atoms`, in meV."""
    errors = (predicted - known) * MEV
    return {
        f"{name}/mae_mev": float(np.abs(errors).mean()),
        f"{name}/rmse_mev": float(np.sqrt(np.mean(errors**2))),
        f"{name}/mae_mev_per_atom": float(np.abs(errors / atoms).mean()),
        f"{name}/rmse_mev_per_atom": float(np.sqrt(np.mean((errors / atoms) ** 2))),
        f"{name}/count": float(len(errors)),
    }


def force_errors(known: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Errors of (n, 3) forces (eV/Å), in meV/Å over components; the cosine is over atoms whose force is not 0."""
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
    """The property columns that a model's labels stand for; entries of a vector, and classes, are called name[i]."""
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


def write_parity(path: str | os.PathLike[str], evaluation: Evaluation, title: str = "") -> None:
    """A picture of predicted against known values, one panel a quantity; classes have none, and alone no picture.

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
        # Total energies are large and nearly equal: the deviation from their mean is what one wants to see.
        origin = known.mean() if name in ENERGY_HEADS else 0.0
        known, predicted = (known - origin).ravel(), (predicted - origin).ravel()
        low, high = (pick([pick(known), pick(predicted)]) for pick in (np.nanmin, np.nanmax))
        axis.plot([low, high], [low, high], color="#aab2ba", linewidth=1)
        axis.scatter(known, predicted, s=6, alpha=0.5, linewidths=0, rasterized=True)
        axis.set(title=name.replace("_", " "), xlabel=f"known{unit}", ylabel=f"predicted{unit}")
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
