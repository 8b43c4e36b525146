"""Figures: learning curves, crystals in projection, galleries of samples."""

import logging
import os
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pymatgen.core

logger = logging.getLogger(__name__)


def plot(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Draws the learning curves of a run, or a gallery of crystals with statistics; returns the path of the picture.

    Args:
        path: a run folder with a metrics.csv, or that file; or crystals: a table with CIFs, a folder of CIFs, or any
            other format of `matterform.read_structures`.
        out: picture to write (.png, .pdf or .svg), which replaces an existing one. None is curves.png in the run
            folder, or the name of the crystals with the suffix .png.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the run has no metrics yet, the folder has neither metrics nor CIFs, no crystal can be read, or the
            suffix of `out` is not one of the above.
        ImportError: matplotlib is not installed; the message names the extra to install.
    """
    from matterform.io.files import existing

    path = existing(path)
    metrics = path / "metrics.csv" if path.is_dir() else path
    if metrics.is_file() and _holds_metrics(metrics):
        return _plot_metrics(metrics, pathlib.Path(out or metrics.with_name("curves.png")))
    return _plot_crystals(path, pathlib.Path(out or path.with_name(f"{path.name.split('.')[0]}.png")))


def _holds_metrics(path: pathlib.Path) -> bool:
    """Whether a file is a metrics.csv, whose first column is the step."""
    from matterform.io.files import open_text

    if ".csv" not in path.suffixes:
        return False
    with open_text(path) as file:
        return file.readline().split(",")[0].strip() == "step"


def _plot_metrics(metrics: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    from matterform.plots.curves import write_curves

    if not write_curves(metrics, out):
        raise ValueError(f"{metrics} has no row yet; try again after the first epoch")
    return out


def _plot_crystals(path: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    from matterform.evaluation.summary import evaluate
    from matterform.plots.curves import check_picture
    from matterform.plots.gallery import write_picture

    check_picture(out)
    structures = _read_crystals(path)
    write_picture(out, structures, evaluate(structures).table, title=path.name, note="")
    return out


def _read_crystals(path: pathlib.Path) -> "list[pymatgen.core.Structure]":
    from matterform.io.formats import iterate_crystals

    if path.is_dir() and not any((*path.glob("*.cif"), *path.glob("*.cif.gz"), *path.glob("data.mdb"))):
        raise ValueError(f"{path} is neither a run folder (with metrics.csv) nor a folder of CIFs")
    structures, reasons = [], []
    for record in iterate_crystals(path):
        if record.structure is None:
            reasons.append(record.reason)
        else:
            structures.append(record.structure)
    if not structures:
        raise ValueError(f"{path} holds no crystal that can be read; the first reason: {reasons[0]}")
    if reasons:
        logger.warning("%s: %d of %d crystals cannot be read and are left out", path, len(reasons), len(structures))
    return structures
