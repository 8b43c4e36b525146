"""The table of sampled or scored crystals: one row per crystal, with its sequence, log-probabilities and CIF."""

import ast
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from crystalformer.config import TransformerConfig
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
    "problem",  # reason why there is no structure; empty if there is one
    "cif",
)


def table_rows(crystals: Crystals, log_prob: LogProb, indices: Sequence[int]) -> list[dict[str, Any]]:
    """One row per crystal for `TableWriter`, numbered by `indices`; lists contain only real sites, no padding."""
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
    """Appends rows to a table; written rows survive a crash. `finish` sorts the file by log-probability, best first.

    `count` is the number of rows so far.
    """

    def __init__(
        self, path: str | pathlib.Path, columns: Sequence[str] = COLUMNS, *, resume: bool = False, replace: bool = True
    ) -> None:
        """Starts a table, or continues one after its last complete row if `resume` is True.

        Raises:
            ValueError: the file exists without `resume` or `replace`, or a table to continue has other columns.
        """
        self._path, self._columns = pathlib.Path(path), tuple(columns)
        self._rows: list[Mapping[str, Any]] = []
        self._file = open_rows(path, self._columns, keep=self._keep if resume else None, replace=replace)

    def _keep(self, row: Mapping[str, str]) -> bool:
        self._rows.append({**row, "logp": float(row["logp"] or "nan")})
        return True

    @property
    def count(self) -> int:
        """Number of rows in the table."""
        return len(self._rows)

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows so far; cells of rows from an earlier run are text, except `logp`."""
        return tuple(self._rows)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends `rows` and flushes the file."""
        for row in rows:
            self._file.write(row)
            self._rows.append(row)

    def finish(self) -> list[Mapping[str, Any]]:
        """Sorts the file and returns its rows; cells of rows from an earlier run are text, except `logp`."""
        self._file.close()
        self._rows.sort(key=lambda row: -row["logp"])
        write_table(self._path, self._rows, self._columns)
        return self._rows


def read_crystal_table(path: str | pathlib.Path, n_max: int = TransformerConfig.n_max) -> Crystals:
    """Reads the crystals of a table in model units, including those with a `problem`, in the order of the rows.

    Raises:
        ValueError: if a column is missing, a cell is not a list of the expected length, or a crystal has n_max or more
            sites.
    """
    rows = read_rows(path, required=("G", "L", "X", "A", "W", "M"))
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
    """G, L, X, A, W and M of a row; raises ValueError with the name of an invalid column."""
    text = str(row["G"]).strip()
    if not (text.isdecimal() and 1 <= int(text) <= 230):
        raise ValueError(f"column G should be a space group's number, 1 to 230: {text!r:.60}")
    W = _numbers(row, "W", None)
    sites = len(W)
    A, M = (_numbers(row, name, (sites,)) for name in ("A", "M"))
    X = _numbers(row, "X", (sites, 3)) if sites else np.zeros((0, 3))
    return int(text), _numbers(row, "L", (6,)), X, A, W, M


def _numbers(row: Mapping[str, str], name: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """The numbers in a cell, which must have this shape (None: any length)."""
    try:
        numbers = np.array(ast.literal_eval(row[name]), np.float64)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"column {name} should be a list of numbers: {row[name]!r:.60}") from error
    if numbers.shape != shape if shape is not None else numbers.ndim != 1:
        expected = "a list of" if shape is None else " x ".join(map(str, shape))
        found = " x ".join(map(str, numbers.shape)) or "no list"
        raise ValueError(f"column {name} should hold {expected} numbers; found {found}: {row[name]:.60}")
    return numbers
