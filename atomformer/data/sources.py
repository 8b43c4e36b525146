"""Structures from wherever they are: prepared data sets, tables, Hugging Face folders, ASE databases, structure files.

Every row is checked where it is read. A row that cannot be used comes back with the reason and does not end the
reading; a file that cannot be read at all is a ValueError.
"""

import itertools
import json
import os
import pathlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from atomformer.data.dataset import Dataset, from_rows, is_dataset, open_dataset, write_dataset
from atomformer.data.rows import Row, check_row, row_from_atoms
from atomformer.data.tables import iterate_arrow, iterate_parquet, write_parquet
from matterform.external import one_line
from matterform.io import formats
from matterform.io.cif import reason_of
from matterform.io.files import existing

if TYPE_CHECKING:
    from ase.db.row import AtomsRow

__all__ = ["ReadRow", "Summary", "iterate_rows", "load_dataset", "prepare_dataset", "write_parquet"]

DB_ROWS_AT_ONCE = 500
SQLITE_MARK = b"SQLite format 3\0"
SHARD_NAME = re.compile(r"(?P<split>[\w.]+)-\d+-of-\d+(-[0-9a-f]+)?")  # train-00000-of-00002, older: and a checksum
SPLIT_NAMES = ("train", "validation", "valid", "val", "test")

Splits = dict[str | None, list[pathlib.Path]]  # None where the only part has no name


class ReadRow(NamedTuple):
    """One entry of a source: a checked row, or the reason why there is none."""

    index: int  # counted from 0, over all files of a folder
    row: Row | None
    reason: str = ""  # empty where there is a row


class Summary(NamedTuple):
    """What `prepare_dataset` wrote."""

    accepted: int
    refused: dict[int, str]


def iterate_rows(path: str | os.PathLike[str], *, split: str | None = None) -> Iterator[ReadRow]:
    """Reads a source entry by entry; memory does not grow with it.

    Sources are a data set folder of ours, a parquet file or a folder of them, a folder that `datasets` saved, an ASE
    database (.db, .json), and all that `matterform.io.formats` reads.

    Args:
        split: the part ("train", ...) of a Hugging Face folder that has several.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: unknown kind of source, a split that is not there or not named, or damage beyond a single entry.
    """
    path = existing(path)
    splits = {} if is_dataset(path) else _splits(path)
    if splits:
        yield from _read_tables(_chosen(path, splits, split))
    elif split is not None:
        raise ValueError(f"{path} has no split {split!r}: only Hugging Face folders have splits")
    elif is_dataset(path):
        yield from _checked(_stored_rows(open_dataset(path)), check_row)
    elif path.suffix in (".db", ".json"):
        yield from _checked(_database_entries(path), _row_of_entry)
    else:
        yield from _read_structures(path)


def load_dataset(path: str | os.PathLike[str], *, split: str | None = None) -> tuple[Dataset, dict[int, str]]:
    """The data set at `path`, and {index: reason} of what was refused.

    A folder that `prepare_dataset` wrote is opened at once, memory-mapped; all else is read into memory.

    Raises:
        ValueError: as `iterate_rows`, or no row can be used.
    """
    if split is None and is_dataset(path):
        return open_dataset(path), {}
    refused: dict[int, str] = {}
    rows = list(_accepted(iterate_rows(path, split=split), refused))
    _check_some(path, len(rows), refused)
    return from_rows(rows), refused


def prepare_dataset(
    source: str | os.PathLike[str] | Iterable[ReadRow], out: str | os.PathLike[str], *, split: str | None = None
) -> Summary:
    """Converts a source of any length with bounded memory, whole or not at all.

    Args:
        source: a path that `iterate_rows` reads, or the entries that it or a converter gives.
        out: a folder, which `load_dataset` opens at once; or a file NAME.parquet, the columns that others read.

    Raises:
        ValueError: as `iterate_rows`; no row can be used; or `out` is a folder that already holds something.
    """
    reads = iterate_rows(source, split=split) if isinstance(source, str | os.PathLike) else source
    refused: dict[int, str] = {}
    rows = _accepted(reads, refused)
    first = list(itertools.islice(rows, 1))
    _check_some(source if isinstance(source, str | os.PathLike) else "the source", len(first), refused)
    write = write_parquet if pathlib.Path(out).suffix == ".parquet" else write_dataset
    return Summary(write(out, itertools.chain(first, rows)), refused)


def _accepted(reads: Iterable[ReadRow], refused: dict[int, str]) -> Iterator[Row]:
    """The rows that can be used; the reasons of the others go into `refused`."""
    for index, row, reason in reads:
        if row is None:
            refused[index] = reason
        else:
            yield row


def _check_some(path: str | os.PathLike[str], accepted: int, refused: dict[int, str]) -> None:
    if not accepted:
        some = "; ".join(f"row {index}: {reason}" for index, reason in itertools.islice(refused.items(), 3))
        raise ValueError(f"{path} holds no structure that can be used; {some or 'it has no rows'}")


def _splits(path: pathlib.Path) -> Splits:
    """The files of each part of a table or of a folder of tables; none where `path` is something else."""
    if path.is_file():
        return {None: [path]} if path.suffix == ".parquet" else {}
    if (path / "dataset_dict.json").is_file():
        names = _read_json(path / "dataset_dict.json", "splits")
        return {name: _saved_files(path / name) for name in names}
    if (path / "state.json").is_file():
        return {_read_json(path / "state.json", "_split"): _saved_files(path)}
    splits: Splits = {}
    for file in sorted(path.rglob("*.parquet")):
        splits.setdefault(_split_of(file.relative_to(path)), []).append(file)
    return splits


def _saved_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The Arrow files of a folder that `datasets.Dataset.save_to_disk` wrote."""
    return [folder / entry["filename"] for entry in _read_json(folder / "state.json", "_data_files")]


def _split_of(file: pathlib.Path) -> str | None:
    """The part that a parquet file belongs to by the names that the Hugging Face hub uses."""
    if shard := SHARD_NAME.fullmatch(file.stem):
        return shard["split"]
    return next((name for name in (file.stem, file.parent.name) if name in SPLIT_NAMES), None)


def _read_json(path: pathlib.Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is missing, damaged or has no {key!r}: save the data set again ({error})") from error


def _chosen(path: pathlib.Path, splits: Splits, split: str | None) -> list[pathlib.Path]:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        names = ", ".join(name or "one without a name" for name in splits)
        found = "found none chosen" if split is None else f"found split={split!r}"
        raise ValueError(f"{path}: expected one of the splits {names}; {found}")
    return splits[split]


def _read_tables(files: list[pathlib.Path]) -> Iterator[ReadRow]:
    first = 0
    for file in files:
        read = iterate_parquet if file.suffix == ".parquet" else iterate_arrow
        count = 0
        for index, row, reason in _checked(read(file), check_row):
            # In a folder of many files the number alone does not say where to look.
            where = f"{file.name}, row {index}: " if reason and len(files) > 1 else ""
            yield ReadRow(first + index, row, where + reason)
            count += 1
        first += count


def _stored_rows(dataset: Dataset) -> Iterator[Row]:
    """The rows of a data set; what is missing is NaN, as in the store, and a cell of zeros is none."""
    for index, (start, stop) in enumerate(itertools.pairwise(dataset.offsets.tolist())):
        row: Row = {name: column[start:stop] for name, column in dataset.atoms.items()}
        row |= {name: column[index] for name, column in dataset.structures.items()}
        if not row["cell"].any():
            del row["cell"], row["pbc"]
        yield row


def _database_entries(path: pathlib.Path) -> Iterator["AtomsRow"]:
    import ase.db
    from ase.io.formats import UnknownFileTypeError

    if path.suffix == ".db":
        with path.open("rb") as file:  # SQLite would make a database of an empty file
            mark = file.read(len(SQLITE_MARK))
        if mark != SQLITE_MARK:
            raise ValueError(f"{path} is no SQLite database, so no ASE database; it begins with {mark!r}")
    try:
        database = ase.db.connect(path, use_lock_file=False)
        if path.suffix == ".json":  # one text, which is in memory as a whole
            yield from database.select()
            return
        last = 0
        while page := list(database.select(f"id>{last}", sort="id", limit=DB_ROWS_AT_ONCE)):
            yield from page
            last = page[-1].id
    except (UnknownFileTypeError, sqlite3.DatabaseError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as an ASE database: {reason_of(error)}") from error


def _row_of_entry(entry: "AtomsRow") -> Row:
    return row_from_atoms(entry.toatoms(), properties=entry.key_value_pairs | dict(entry.data))


def _read_structures(path: pathlib.Path) -> Iterator[ReadRow]:
    if path.is_file() and not any(suffix.lower() in formats.KINDS for suffix in path.suffixes):
        known = ", ".join([".parquet", ".db", ".json", *formats.KINDS])
        raise ValueError(f"{path} has an unknown suffix; expected one of {known}, or a folder of tables or CIFs")
    for index, structure, reason in formats.iterate_records(path):
        if structure is None:
            yield ReadRow(index, None, reason)
        else:
            (read,) = _checked([structure], lambda structure: row_from_atoms(formats.to_atoms(structure)))
            yield read._replace(index=index)


def _checked(entries: Iterable[Any], check: Callable[[Any], Row]) -> Iterator[ReadRow]:
    for index, entry in enumerate(entries):
        try:
            row = check(entry)
        except ValueError as error:
            yield ReadRow(index, None, one_line(error))
        except LookupError as error:  # a part of a structure that ASE expects
            yield ReadRow(index, None, reason_of(error))
        else:
            yield ReadRow(index, row)
