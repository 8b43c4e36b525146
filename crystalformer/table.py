"""The table of sampled or scored crystals: one row a crystal, with its sequence, log-probabilities and CIF."""

import ast
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from crystalformer.data.crystals import Crystals, cell_parameters, formula, iterate_crystals, to_cif
from crystalformer.loss import LogProb
from crystalformer.symmetry.lattice import cell_problem, to_scaled
from crystalformer.symmetry.wyckoff import symmetry_tables
from matterform.io.tables import open_rows, read_rows, write_table

COLUMNS = (
    "index",
    "formula",
    "G",
    "L",  # a, b, c (angstrom), alpha, beta, gamma (degrees)
    "X",
    "A",
    "W",
    "M",
    "logp_w",
    "logp_xyz",
    "logp_a",
    "logp_l",
    "logp",
    "problem",  # why there is no structure, empty where there is one
    "cif",
)


def table_rows(crystals: Crystals, log_prob: LogProb, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Rows for `TableWriter` in the order of the crystals, which `indices` name; lists hold real sites only."""
    rows = []
    for i, crystal in enumerate(iterate_crystals(crystals)):
        n = int((crystal.W > 0).sum())
        cell = cell_parameters(crystal)
        problem = cell_problem(cell) if n else "it has no site"
        rows.append(
            {
                "index": indices[i],
                "formula": formula(crystal) if n else "",
                "G": int(crystal.G),
                "L": np.round(cell, 6).tolist(),
                "X": np.round(crystal.XYZ[:n].astype(np.float64), 6).tolist(),
                "A": crystal.A[:n].tolist(),
                "W": crystal.W[:n].tolist(),
                "M": symmetry_tables().multiplicity[crystal.G - 1, crystal.W[:n]].tolist(),
                **{f"logp_{part}": float(value[i]) for part, value in log_prob._asdict().items()},
                "logp": float(log_prob.total[i]),
                "problem": problem,
                "cif": "" if problem else to_cif(crystal),
            }
        )
    return rows


class TableWriter:
    """Writes rows as they come; `finish` replaces the file by its rows sorted by log-probability, best first."""

    def __init__(self, path: str | pathlib.Path, columns: Iterable[str] = COLUMNS) -> None:
        self._path, self._columns = pathlib.Path(path), tuple(columns)
        self._rows: list[Mapping[str, Any]] = []
        self._file = open_rows(self._path, self._columns, replace=True)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends `rows` and makes them visible in the file."""
        for row in rows:
            self._file.write(row)
            self._rows.append(row)

    def finish(self) -> list[Mapping[str, Any]]:
        """Sorts the file and returns its rows."""
        self._file.close()
        self._rows.sort(key=lambda row: -row["logp"])
        write_table(self._path, self._rows, self._columns)
        return self._rows


def read_table(path: str | pathlib.Path, n_max: int = 21) -> Crystals:
    """The crystals of a table in model units, in its order; those with a `problem` too.

    Raises:
        ValueError: if a column is missing, a cell is no list of as many numbers as it should be, or a crystal has n_max
            sites or more.
    """
    rows = read_rows(path, ("G", "L", "X", "A", "W", "M"))
    crystals = Crystals(
        G=np.zeros(len(rows), np.int32),
        L=np.zeros((len(rows), 6), np.float32),
        XYZ=np.zeros((len(rows), n_max, 3), np.float32),
        A=np.zeros((len(rows), n_max), np.int32),
        W=np.zeros((len(rows), n_max), np.int32),
    )
    for i, row in enumerate(rows):
        try:
            G, L, X, A, W, M = _parse_row(row)
        except ValueError as error:
            raise ValueError(f"{path}, row {i}: {error}") from error
        if len(W) >= n_max:
            raise ValueError(f"{path}, row {i}: {len(W)} sites, but n_max = {n_max} holds {n_max - 1}")
        crystals.G[i] = G
        crystals.L[i] = to_scaled(np.concatenate([L[:3], np.radians(L[3:])]), int(M.sum()) or 1)
        crystals.XYZ[i, : len(W)], crystals.A[i, : len(W)], crystals.W[i, : len(W)] = X, A, W
    return crystals


def _parse_row(row: Mapping[str, str]) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """G, L, X, A, W and M; ValueError names the column that is wrong."""
    text = str(row["G"]).strip()
    if not (text.isdecimal() and 1 <= int(text) <= 230):
        raise ValueError(f"column G should be a space group's number, 1 to 230: {text!r:.60}")
    W = _numbers(row, "W", None)
    sites = len(W)
    A, M = (_numbers(row, name, (sites,)) for name in ("A", "M"))
    X = _numbers(row, "X", (sites, 3)) if sites else np.zeros((0, 3))
    return int(text), _numbers(row, "L", (6,)), X, A, W, M


def _numbers(row: Mapping[str, str], name: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """A column's list of this shape, of any length for None."""
    try:
        numbers = np.array(ast.literal_eval(row[name]), np.float64)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"column {name} should be a list of numbers: {row[name]!r:.60}") from error
    if numbers.shape != shape if shape is not None else numbers.ndim != 1:
        expected = "a list of" if shape is None else " x ".join(map(str, shape))
        found = " x ".join(map(str, numbers.shape)) or "no list"
        raise ValueError(f"column {name} should hold {expected} numbers; found {found}: {row[name]:.60}")
    return numbers
