"""Crystals and scores of a file, with the numbers of their rows, by which two files are paired."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from crystalformer.data.convert import read_any
from crystalformer.data.crystals import Crystals, num_slots, truncate
from crystalformer.data.dataset import open_dataset, open_properties
from crystalformer.table import read_crystal_table
from matterform.io.files import existing, is_compressed
from matterform.io.tables import iterate_chunks, read_rows

SEQUENCE_COLUMNS = frozenset(("G", "L", "X", "A", "W", "M"))  # of a table that `sample` or `score` wrote
INDEX_COLUMN, PROBLEM_COLUMN = "index", "problem"


class CrystalRows(NamedTuple):
    """Crystals of a file, their row numbers, and the rows that were refused."""

    crystals: Crystals
    rows: list[int]  # the column `index` if `indexed`, else counted from 0
    refused: dict[int, str]  # {row: reason}
    indexed: bool = False


def read_scores(path: pathlib.Path, column: str) -> dict[int, float]:
    """{row: score} of a column, with the rows of `read_crystal_rows`; NaN if a cell holds no number.

    Raises:
        ValueError: there is no such column, or the file is no table.
    """
    if _is_prepared(path):
        properties = open_properties(path)
        if column not in properties:
            raise ValueError(f"{path} has no column {column!r} of numbers; it has {', '.join(properties) or 'none'}")
        return dict(zip(np.load(path / "row.npy").tolist(), properties[column].tolist(), strict=True))
    if ".csv" not in path.suffixes:
        raise ValueError(f"{path} has no columns; expected a CSV, or a folder that `crystalformer prepare` made")
    import pandas as pd

    if column not in (known := _columns(path)):
        raise ValueError(f"{path} has no column {column!r}; its columns are {', '.join(known)}")
    cells = _read_column(path, column)
    values = np.asarray(pd.to_numeric(cells, errors="coerce"), np.float64)
    return dict(zip(_row_numbers(path, len(values)), values.tolist(), strict=True))


def read_crystal_rows(path: pathlib.Path, *, n_max: int = 21, workers: int = 1, possible: bool = False) -> CrystalRows:
    """Reads a table, a folder that `prepare` made, or a file (or folder of CIFs) of any format.

    Args:
        n_max: slots of each crystal in the result.
        workers: processes that read a CSV of CIFs.
        possible: refuse the rows of a table that have a `problem`: no cell has their lattice parameters.

    Raises:
        ValueError: the file holds no crystals or cannot be read, or a crystal has too many sites.
    """
    path = existing(path)
    if _is_prepared(path):
        return _read_prepared(path, n_max)
    if _is_sequence_table(path):
        return _read_sequences(path, n_max, possible)
    return CrystalRows(*read_any(path, n_max=n_max, workers=workers))


def take_crystals(crystals: Crystals, rows: Sequence[int] | Int[np.ndarray, " k"]) -> Crystals:
    """The crystals with these indices, in this order."""
    index = np.asarray(rows, np.int64)
    return Crystals(*(np.asarray(field)[index] for field in crystals))


def _read_prepared(path: pathlib.Path, n_max: int) -> CrystalRows:
    crystals = Crystals(*(np.array(field) for field in open_dataset(path)))
    longest = int(num_slots(crystals).max(initial=1))
    if longest > n_max:
        raise ValueError(f"{path} needs n_max of at least {longest}; the network has {n_max}")
    refused = {int(row["row"]): row["reason"] for row in read_rows(path / "refused.csv", ("row", "reason"))}
    return CrystalRows(_with_slots(crystals, n_max), np.load(path / "row.npy").tolist(), refused)


def _read_sequences(path: pathlib.Path, n_max: int, possible: bool) -> CrystalRows:
    crystals = read_crystal_table(path, n_max)
    numbers = _row_numbers(path, len(crystals.G))
    indexed = INDEX_COLUMN in _columns(path)
    if not possible or PROBLEM_COLUMN not in _columns(path):
        return CrystalRows(crystals, numbers, {}, indexed)
    problems = _read_column(path, PROBLEM_COLUMN)
    kept = [place for place, problem in enumerate(problems) if not problem]
    refused = {number: problem for number, problem in zip(numbers, problems, strict=True) if problem}
    return CrystalRows(take_crystals(crystals, kept), [numbers[place] for place in kept], refused, indexed)


def _is_prepared(path: pathlib.Path) -> bool:
    return (path / "meta.json").is_file()


def _is_sequence_table(path: pathlib.Path) -> bool:
    return ".csv" in path.suffixes and not is_compressed(path) and set(_columns(path)) >= SEQUENCE_COLUMNS


def _row_numbers(path: pathlib.Path, count: int) -> list[int]:
    """Row numbers of a CSV: the column `index` of a table of sequences, else counted from 0."""
    if not _is_sequence_table(path) or INDEX_COLUMN not in _columns(path):
        return list(range(count))
    cells = _read_column(path, INDEX_COLUMN)
    numbers = [int(cell) for cell in cells if cell.isdecimal()]
    if len(set(numbers)) < len(cells):
        raise ValueError(f"{path}: the column index must name each row by another whole number; found {cells[:5]} ...")
    return numbers


def _columns(path: pathlib.Path) -> list[str]:
    return [str(name) for name in next(iterate_chunks(path, as_text=True)).columns]


def _read_column(path: pathlib.Path, column: str) -> list[str]:
    """The cells of a column as text."""
    return [cell for chunk in iterate_chunks(path, [column], as_text=True) for cell in chunk[column].tolist()]


def _with_slots(crystals: Crystals, n: int) -> Crystals:
    """The crystals padded or cut to `n` slots.

    Raises:
        ValueError: a crystal needs more slots.
    """
    missing = n - crystals.W.shape[1]
    if missing <= 0:
        return truncate(crystals, n)
    slots = np.array([(0, 0), (0, missing), (0, 0)])
    return crystals._replace(
        XYZ=np.pad(crystals.XYZ, slots), A=np.pad(crystals.A, slots[:2]), W=np.pad(crystals.W, slots[:2])
    )
