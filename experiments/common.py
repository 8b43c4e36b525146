"""Shared by all recipes: sources of the data, arguments, and output of numbers and pictures."""

import argparse
import importlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import ase
import numpy as np

from matterform import new_figure, read_structures, to_atoms, write_atomically
from matterform.plots.curves import INK, TRAINING, VALIDATION

__all__ = [
    "INK", "TRAINING", "VALIDATION", "command", "data_file", "draw_histograms", "new_figure", "parse_arguments",
    "read_atoms", "save_picture", "show_logs", "write_json", "write_table",
]  # fmt: skip

DATA = pathlib.Path(os.environ.get("MATTERFORM_DATA", "../shared/data"))


class Source(NamedTuple):
    """A data file and where it comes from; `path` is its place in a folder of data."""

    path: str
    origin: str


SOURCES = {
    "mp20": Source("mp20_biternary.csv.gz", "binaries and ternaries of MP-20's validation set (CDVAE; CC BY 4.0)"),
    "carbon": Source("carbon24_val.csv.gz", "validation set of carbon-24 (Pickard 2020, via CDVAE; CC BY 4.0)"),
    "perovskites": Source("perov5_val.csv.gz", "validation set of perov-5 (Castelli et al. 2012, via CDVAE)"),
    "acac_train": Source("acac_train_300K.extxyz.gz", "BOTNet datasets (Kovács et al. 2021; MIT)"),
    "acac_test": Source("acac_test_300K.extxyz.gz", "BOTNet datasets (Kovács et al. 2021; MIT)"),
    "acac_atoms": Source("acac_isolated_atoms.extxyz", "BOTNet datasets (Kovács et al. 2021; MIT)"),
    "3bpa_train": Source("3bpa_train_300K.extxyz.gz", "BOTNet datasets (Kovács et al. 2021; MIT)"),
    "silicon_train": Source("mlearn_Si_train.extxyz.gz", "mlearn (Zuo et al. 2020; BSD-3)"),
    "silicon_test": Source("mlearn_Si_test.extxyz.gz", "mlearn (Zuo et al. 2020; BSD-3)"),
}


def data_file(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file of a source.

    Raises:
        FileNotFoundError: the file is not in the folder.
    """
    path = folder / SOURCES[name].path
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; it is the {name} data: {SOURCES[name].origin}")
    return path


def read_atoms(path: pathlib.Path) -> list[ase.Atoms]:
    """The structures of a file.

    Raises:
        ValueError: a structure cannot be read.
    """
    structures, refused = read_structures(path)
    if refused:
        raise ValueError(f"{path}: {len(refused)} structures cannot be read; the first: {next(iter(refused.items()))}")
    return [to_atoms(structure) for structure in structures]


def parse_arguments(description: str | None, out: str, **numbers: int) -> argparse.Namespace:
    """Parses --data, --out, --full, and one flag for each of `numbers`, with its default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=DATA, help="folder of the data (default: %(default)s)")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path(out), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--full", action="store_true", help="train longer and sample more: hours on two cores")
    for name, default in numbers.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help="number of epochs (default: %(default)s)"
        )
    show_logs()
    return parser.parse_args()


def show_logs() -> None:
    """Prints the log messages of the packages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for package in ("agedi", "atomformer", "crystalformer", "matterform"):
        logging.getLogger(package).setLevel(logging.INFO)


def command(family: str, verb: str, recipe: Any, argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command of a family with a recipe as its defaults, and ends with its exit status.

    Args:
        argv: flags that override the recipe; by default those that the script was started with.
    """
    main = importlib.import_module(f"{family}.cli").main
    sys.exit(main([verb, *(sys.argv[1:] if argv is None else argv)], recipe=recipe))


def write_json(path: pathlib.Path, numbers: dict[str, Any]) -> None:
    """Prints numbers and writes them to a file."""
    text = json.dumps(numbers, indent=2)
    with write_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    print(text)


def write_table(path: pathlib.Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table and writes it to a file."""
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    with write_atomically(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def draw_histograms(
    path: pathlib.Path, panels: dict[str, tuple[np.ndarray, np.ndarray]], title: str, bins: int = 60
) -> None:
    """Plots densities of data and samples, one panel per quantity."""
    figure, axes = new_figure(len(panels), title)
    for axis, (name, (data, samples)) in zip(axes, panels.items(), strict=True):
        span = np.percentile(data, [0.1, 99.9])
        edges = np.linspace(span[0] - 0.15 * np.ptp(span), span[1] + 0.15 * np.ptp(span), bins + 1)
        axis.hist(data, edges, density=True, color=TRAINING, alpha=0.5, label="data")
        axis.hist(samples, edges, density=True, histtype="step", color=VALIDATION, linewidth=1.5, label="samples")
        axis.set(title=name, yticks=[])
    axes[0].legend(frameon=False, fontsize=8)
    save_picture(figure, path)


def save_picture(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure as PNG."""
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
