"""Data sets of structures of different sizes: flat arrays with offsets, in memory or memory-mapped from a folder.

Nothing is padded. A folder is written with bounded memory and memory-mapped when it is opened, which takes no time; it
contains `meta.json` and one .npy file per column in `atoms/` and `structures/`.
"""

import contextlib
import itertools
import json
import logging
import os
import pathlib
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from atomformer.data.rows import Row
from matterform.io.files import appending, write_atomically

logger = logging.getLogger(__name__)

FORMAT = "atomformer-dataset-1"  # the number is increased when older versions cannot read the folder
ROWS_AT_ONCE = 1000
PIECE = 1_000_000  # entries of a column read or filled at once
FINGERPRINTED = 1000


class Column(NamedTuple):
    """Storage of one column."""

    per_atom: bool
    dtype: type[np.generic]
    shape: tuple[int, ...]  # of one entry
    missing: float  # value of missing entries


# The columns in `ALWAYS` are in every data set, the others if a row has them.
COLUMNS = {
    "input_ids": Column(True, np.uint8, (), 0),
    "coords": Column(True, np.float32, (3,), np.nan),
    "forces": Column(True, np.float32, (3,), np.nan),
    "fixed": Column(True, np.bool_, (), False),
    "token_type_ids": Column(True, np.uint8, (), 0),
    "relaxed_coords": Column(True, np.float32, (3,), np.nan),
    "cell": Column(False, np.float32, (3, 3), 0),
    "pbc": Column(False, np.bool_, (3,), False),
}
ALWAYS = ("input_ids", "coords", "cell", "pbc")
# The columns found so far; None for vectors of different length, which cannot be stored.
Schema = dict[str, Column | None]
Append = Callable[[np.ndarray], None]


class Dataset(NamedTuple):
    """m structures, kept as arrays over all of their atoms and arrays over the structures."""

    offsets: Int64[np.ndarray, " m_plus_1"]  # structure i has the atoms offsets[i] to offsets[i + 1] - 1
    # input_ids uint8, coords float32 (Å); where a row has them forces float32 (eV/Å, NaN where missing), fixed bool,
    # token_type_ids uint8, relaxed_coords float32 (Å, NaN where missing)
    atoms: dict[str, np.ndarray]
    # cell float32 (m, 3, 3) (Å, zero where there is none), pbc bool (m, 3); where a row has them formation_energy and
    # total_energy (eV) and properties, all float64 (m,) or (m, t), NaN where missing
    structures: dict[str, np.ndarray]


def atom_counts(dataset: Dataset) -> Int64[np.ndarray, " m"]:
    """The number of atoms of each structure."""
    return np.diff(dataset.offsets)


def elements(dataset: Dataset) -> Int64[np.ndarray, " e"]:
    """The atomic numbers that occur, increasing; counted piece by piece, as the atoms may not fit in memory."""
    counts = np.zeros(256, np.int64)
    for tokens in pieces(dataset.atoms["input_ids"]):
        counts += np.bincount(tokens, minlength=256)
    return np.flatnonzero(counts)


def pieces(column: np.ndarray) -> Iterator[np.ndarray]:
    """A column, which may be larger than memory, in pieces."""
    return (column[start : start + PIECE] for start in range(0, len(column), PIECE))


def select(dataset: Dataset, indices: Sequence[int] | Int[np.ndarray, " k"]) -> Dataset:
    """The structures with these indices, in this order, in memory."""
    indices = np.asarray(indices, np.int64)
    counts = atom_counts(dataset)[indices]
    offsets = _offsets(counts)
    atoms = np.arange(offsets[-1]) + np.repeat(dataset.offsets[:-1][indices] - offsets[:-1], counts)
    return Dataset(
        offsets,
        {name: np.asarray(column[atoms]) for name, column in dataset.atoms.items()},
        {name: np.asarray(column[indices]) for name, column in dataset.structures.items()},
    )


def from_rows(rows: Iterable[Row]) -> Dataset:
    """A data set in memory from checked rows. Text and vectors of varying length are left out.

    Raises:
        ValueError: there are no rows.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("a data set needs at least one structure, found none")
    schema = _new_schema()
    _extend(schema, rows)
    _warn_of_ragged(schema)
    return _pack(schema, rows)


def write_dataset(folder: str | os.PathLike[str], rows: Iterable[Row]) -> int:
    """Writes checked rows as a folder for `open_dataset`, whole or not at all; returns the number of rows.

    Memory does not grow with the number of rows. The data set that is opened later equals `from_rows` of the same rows.

    Raises:
        ValueError: there are no rows, or `folder` is not empty.
    """
    schema, rows = _new_schema(), iter(rows)
    with write_atomically(folder) as temporary:
        for part in ("atoms", "structures"):
            (temporary / part).mkdir(parents=True)
        with contextlib.ExitStack() as files:
            num_structures, num_atoms = _write_columns(temporary, schema, rows, files)
        if num_structures == 0:
            raise ValueError(f"{folder}: a data set needs at least one structure, found none")
        _warn_of_ragged(schema)
        kept = {name: column.per_atom for name, column in schema.items() if column is not None}
        meta = {
            "format": FORMAT,
            "num_structures": num_structures,
            "num_atoms": num_atoms,
            "atoms": [name for name, per_atom in kept.items() if per_atom],
            "structures": [name for name, per_atom in kept.items() if not per_atom],
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return num_structures


def open_dataset(folder: str | os.PathLike[str]) -> Dataset:
    """The data set that `write_dataset` wrote, as read-only memory-mapped arrays.

    Raises:
        ValueError: the folder was not written by `write_dataset` or by another version of it, or is damaged.
    """
    folder = pathlib.Path(folder)
    if not is_dataset(folder):
        raise ValueError(
            f"{folder} is not a prepared data set: it has no meta.json and offsets.npy; write it with `write_dataset`"
        )
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'meta.json'} is damaged ({error}); prepare the data set anew") from error
    if meta.get("format") != FORMAT:
        raise ValueError(f"{folder}: expected the format {FORMAT}, found {meta.get('format')}; prepare it anew")
    num_structures, num_atoms = meta["num_structures"], meta["num_atoms"]
    return Dataset(
        _open_column(folder / "offsets.npy", num_structures + 1),
        {name: _open_column(_file_of(folder, True, name), num_atoms) for name in meta["atoms"]},
        {name: _open_column(_file_of(folder, False, name), num_structures) for name in meta["structures"]},
    )


def is_dataset(path: str | os.PathLike[str]) -> bool:
    """Whether `path` looks like a folder written by `write_dataset`."""
    return all(pathlib.Path(path, name).is_file() for name in ("meta.json", "offsets.npy"))


def fingerprint(dataset: Dataset) -> dict[str, int]:
    """The number of structures, and a checksum of all sizes and of up to 1000 evenly spaced structures."""
    m = len(atom_counts(dataset))
    sample = select(dataset, np.unique(np.linspace(0, m - 1, FINGERPRINTED).astype(np.int64)))
    checksum = zlib.crc32(dataset.offsets.tobytes())
    for columns in (sample.atoms, sample.structures):
        for name in sorted(columns):
            checksum = zlib.crc32(columns[name].tobytes(), zlib.crc32(name.encode(), checksum))
    return {"structures": m, "crc32": checksum}


def _write_columns(
    folder: pathlib.Path, schema: Schema, rows: Iterator[Row], files: contextlib.ExitStack
) -> tuple[int, int]:
    """Appends all rows to the files of the columns; returns the numbers of structures and atoms."""
    append_offsets = files.enter_context(appending(folder / "offsets.npy", np.int64, ()))
    append_offsets(np.zeros(1, np.int64))
    append: dict[str, Append] = {}
    num_structures = num_atoms = 0
    while chunk := list(itertools.islice(rows, ROWS_AT_ONCE)):
        _extend(schema, chunk)
        packed = _pack(schema, chunk)
        for name, values in (packed.atoms | packed.structures).items():
            column = schema[name]
            assert column is not None  # other columns are not packed
            if name not in append:
                path = _file_of(folder, column.per_atom, name)
                append[name] = files.enter_context(appending(path, column.dtype, column.shape))
                for count in _in_pieces(num_atoms if column.per_atom else num_structures):
                    append[name](_missing(column, count))
            append[name](values)
        append_offsets(packed.offsets[1:] + num_atoms)
        num_structures += len(chunk)
        num_atoms += int(packed.offsets[-1])
    for name in append.keys() - {name for name, column in schema.items() if column is not None}:
        _file_of(folder, False, name).unlink()
    return num_structures, num_atoms


def _file_of(folder: pathlib.Path, per_atom: bool, name: str) -> pathlib.Path:
    # Quoted, because a property may have a name like "energy/atom".
    return folder / ("atoms" if per_atom else "structures") / f"{urllib.parse.quote(name, safe=' ')}.npy"


def _in_pieces(count: int) -> Iterator[int]:
    return (min(PIECE, count - start) for start in range(0, count, PIECE))


def _open_column(path: pathlib.Path, count: int) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path} is missing from the data set; prepare it anew")
    try:
        column = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}); prepare the data set anew") from error
    if len(column) != count:
        raise ValueError(f"{path} has {len(column)} entries, expected {count}; prepare the data set anew")
    return column


def _new_schema() -> Schema:
    return {name: COLUMNS[name] for name in ALWAYS}


def _extend(schema: Schema, rows: Sequence[Row]) -> None:
    """Adds the columns of `rows` to the schema."""
    for row in rows:
        for name, value in row.items():
            if name in COLUMNS:
                schema[name] = COLUMNS[name]
            elif not isinstance(value, str):
                column = Column(False, np.float64, np.shape(value), np.nan)
                if schema.setdefault(name, column) != column:
                    schema[name] = None


def _pack(schema: Schema, rows: Sequence[Row]) -> Dataset:
    """The rows as arrays, one per column of the schema."""
    offsets = _offsets(np.array([len(row["input_ids"]) for row in rows], np.int64))
    atoms, structures = {}, {}
    for name, column in schema.items():
        if column is None:
            continue
        if column.per_atom:
            atoms[name] = _missing(column, int(offsets[-1]))
        else:
            structures[name] = _missing(column, len(rows))
        for index, row in enumerate(rows):
            if name not in row:
                continue
            if column.per_atom:
                atoms[name][offsets[index] : offsets[index + 1]] = row[name]
            else:
                structures[name][index] = row[name]
    return Dataset(offsets, atoms, structures)


def _missing(column: Column, count: int) -> np.ndarray:
    return np.full((count, *column.shape), column.missing, column.dtype)


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _warn_of_ragged(schema: Schema) -> None:
    for name in (name for name, column in schema.items() if column is None):
        logger.warning("column %s is left out: its vectors differ in length from row to row", name)
