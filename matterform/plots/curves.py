"""Figures with panels side by side, and the learning curves of a run."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from matterform.io.files import write_atomically
from matterform.io.tables import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, TRAINING, VALIDATION = "#20262d", "#4a7ba6", "#d98b3a"
PANEL_INCHES = 3.6
MAX_COLUMNS = 4  # panels in a row
FORMATS = (".png", ".pdf", ".svg")


def new_figure(panels: int, title: str = "", columns: int | None = None) -> "tuple[Figure, Sequence[Axes]]":
    """An empty figure with `panels` axes, `columns` per row (default: all), without window and global state.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra to install.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'matterform[viz]'") from error
    columns = panels if columns is None else min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(PANEL_INCHES * columns + 0.4, PANEL_INCHES * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[panels:]:
        axis.remove()
    for axis in axes[:panels]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK, labelsize=8)
        axis.title.set_fontsize(10)
    if title:
        figure.suptitle(title, color=INK, fontsize=11)
    return figure, list(axes[:panels])


def check_picture(path: str | os.PathLike[str]) -> str:
    """The format of a picture, from the suffix of its name.

    Raises:
        ValueError: the suffix is not one of `FORMATS`.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: expected a picture's suffix, {', '.join(FORMATS)}; found {suffix or 'none'}")
    return suffix[1:]


def save_figure(figure: "Figure", path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Writes a figure atomically in the format of the suffix.

    Raises:
        ValueError: the suffix is not one of `FORMATS`.
    """
    picture = check_picture(path)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=picture)


def write_curves(metrics: str | os.PathLike[str], path: str | os.PathLike[str], title: str = "") -> bool:
    """Draws the metrics.csv of a run against the epoch: rewards if it has them, otherwise losses.

    Returns:
        Whether a picture was written; none is written for a table without rows.

    Raises:
        FileNotFoundError: the table does not exist.
        ValueError: it is not a table of metrics, or the suffix of `path` is not one of `FORMATS`.
        ImportError: matplotlib is not installed; the message names the extra to install.
    """
    rows = [{name: _number(metrics, name, cell) for name, cell in row.items()} for row in read_rows(metrics, ["step"])]
    if not rows:
        return False
    figure = _draw_rewards(rows, title) if "reward_mean" in rows[0] else _draw_losses(rows, title)
    save_figure(figure, path)
    return True


def _number(path: str | os.PathLike[str], name: str, cell: str) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError as error:
        raise ValueError(f"{path} is not a table of metrics: column {name} holds {cell!r:.40}") from error


Rows = Sequence[Mapping[str, float | None]]


def _points(rows: Rows, x: str, y: str) -> tuple[list[float], list[float]]:
    """The values of two columns in the rows that have both."""
    pairs = [(row[x], row[y]) for row in rows]
    both = [(first, second) for first, second in pairs if first is not None and second is not None]
    return [first for first, _ in both], [second for _, second in both]


def _draw_losses(rows: Rows, title: str) -> "Figure":
    """One panel per metric that has validation values (otherwise only the loss), with training and validation.

    Scales are logarithmic if all values are positive.
    """
    names = [name for name in rows[0] if f"validation_{name}" in rows[0]] or ["loss"]
    if "loss" not in rows[0]:
        raise ValueError(f"expected a column loss; found {', '.join(rows[0])}")
    x = "epoch" if "epoch" in rows[0] else "step"
    figure, axes = new_figure(len(names), title, MAX_COLUMNS)
    for axis, name in zip(axes, names, strict=True):
        for column, color, label in ((name, TRAINING, "training"), (f"validation_{name}", VALIDATION, "validation")):
            if column in rows[0] and (points := _points(rows, x, column))[0]:
                axis.plot(*points, color=color, label=label, linewidth=1.2)
        if all((np.asarray(line.get_ydata()) > 0).all() for line in axis.lines):
            axis.set_yscale("log")
        axis.set(title=name.replace("_", " "), xlabel=x)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _draw_rewards(rows: Rows, title: str) -> "Figure":
    """Mean reward with quantiles, means of its details, KL divergence, entropy, shares; one step is one epoch."""
    parts = [name for name in rows[0] if name.endswith("_mean") and name != "reward_mean"]
    panels = ["reward_mean", *parts, "kl", "entropy", "failed_share", "distinct_share", "validation_loss"]
    panels = [name for name in panels if name in rows[0] and _points(rows, "step", name)[0]]
    figure, axes = new_figure(len(panels), title, MAX_COLUMNS)
    for axis, name in zip(axes, panels, strict=True):
        color = VALIDATION if name == "validation_loss" else TRAINING
        axis.plot(*_points(rows, "step", name), color=color, linewidth=1.2)
        if name == "reward_mean" and "reward_q50" in rows[0]:
            epochs, low = _points(rows, "step", "reward_q10")
            axis.fill_between(
                epochs, low, _points(rows, "step", "reward_q90")[1], color=TRAINING, alpha=0.2, linewidth=0
            )
            axis.plot(*_points(rows, "step", "reward_q50"), color=INK, linewidth=0.8, label="median, 10 to 90 %")
            axis.legend(frameon=False, fontsize=8)
        axis.set(title=name.replace("_", " "), xlabel="epoch")
    return figure
