"""Plain figures: panels side by side, and the learning curves of a run."""

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from matterform.io.files import write_atomically
from matterform.io.tables import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, TRAINING, VALIDATION = "#20262d", "#4a7ba6", "#d98b3a"
PANEL_INCHES = 3.6


def new_figure(panels: int, title: str = "", columns: int | None = None) -> "tuple[Figure, Sequence[Axes]]":
    """An empty figure with `panels` axes, `columns` in a row (default: all); it belongs to no window, no global state.

    Raises:
        ImportError: matplotlib is missing.
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


def write_learning_curves(run_dir: str | os.PathLike[str], path: str | os.PathLike[str], title: str = "") -> None:
    """A picture of every metric in a run's metrics.csv against the epoch, training and validation.

    Scales are logarithmic where all values are positive. A run without a row yet gets no picture.
    """
    rows = [
        {name: float(cell) if cell else None for name, cell in row.items()}
        for row in read_rows(pathlib.Path(run_dir, "metrics.csv"))
    ]
    if not rows:
        return
    names = [name for name in rows[0] if f"validation_{name}" in rows[0]] or ["loss"]
    figure, axes = new_figure(len(names), title)
    for axis, name in zip(axes, names, strict=True):
        for column, color, label in ((name, TRAINING, "training"), (f"validation_{name}", VALIDATION, "validation")):
            points = [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.2)
        if all((np.asarray(line.get_ydata()) > 0).all() for line in axis.lines):
            axis.set_yscale("log")
        axis.set(title=name.replace("_", " "), xlabel="epoch")
    axes[0].legend(frameon=False, fontsize=8)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
