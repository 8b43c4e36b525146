"""Readers of all sources: prepared data sets, tables, Hugging Face folders, ASE databases, structure files.

Every row is checked when it is read. A row that cannot be used is returned with the reason, and reading goes on; a file
that cannot be read at all raises ValueError.
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
from matterform.errors import one_line, reason_of
from matterform.io import formats
from matterform.io.files import existing

if TYPE_CHECKING:
    from ase.db.row import AtomsRow

__all__ = ["ReadRow", "Summary", "iterate_rows", "load_dataset", "prepare_dataset", "write_parquet"]

DB_ROWS_AT_ONCE = 500
SQLITE_MARK = b"SQLite format 3\0"
SHARD_NAME = re.compile(r"(?P<split>[\w.]+)-\d+-of-\d+(-[0-9a-f]+)?")  # train-00000-of-00002, older: and a checksum
SPLIT_NAMES = ("train", "validation", "valid", "val", "test")

Splits = dict[str | None, list[pathlib.Path]]  # by name of the split; None if there is only one, without a name


class ReadRow(NamedTuple):
    """One entry of a source: a checked row, or the reason why it cannot be used."""

    index: int  # from 0, over all files of a folder
    row: Row | None
    reason: str = ""  # empty if there is a row


class Summary(NamedTuple):
    """Result of `prepare_dataset`."""

    accepted: int  # number of rows written
    refused: dict[int, str]  # index of an unusable entry -> reason


def iterate_rows(path: str | os.PathLike[str], *, split: str | None = None) -> Iterator[ReadRow]:
    """Reads a source entry by entry; memory does not grow with the number of entries.

    Sources are folders written by `prepare_dataset`, parquet files or folders of them, folders saved by Hugging Face
    `datasets`, ASE databases (.db, .json), and all formats of `matterform.io.formats`.

    Args:
        split: name of the split ("train", ...) of a Hugging Face folder with several.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: an unknown kind of source, a missing or unspecified split, or damage beyond a single entry.
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
    """The data set at `path`, and {index: reason} of the entries that cannot be used.

    A folder written by `prepare_dataset` is memory-mapped, which takes no time; other sources are read into memory.

    Raises:
        FileNotFoundError, ValueError: as `iterate_rows`; ValueError also if no row can be used.
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
    """Converts a source of any length with bounded memory; the output appears whole or not at all.

    Args:
        source: a path for `iterate_rows`, or entries from `iterate_rows` or a converter.
        out: a new folder, which `load_dataset` memory-maps; or a file NAME.parquet with the published columns.

    Raises:
        FileNotFoundError, ValueError: as `iterate_rows`; ValueError also if no row can be used or `out` is a folder
            that is not empty.
    """
    reads = iterate_rows(source, split=split) if isinstance(source, str | os.PathLike) else source
    refused: dict[int, str] = {}
    rows = _accepted(reads, refused)
    first = list(itertools.islice(rows, 1))
    _check_some(source if isinstance(source, str | os.PathLike) else "the source", len(first), refused)
    write = write_parquet if pathlib.Path(out).suffix == ".parquet" else write_dataset
    return Summary(write(out, itertools.chain(first, rows)), refused)


def _accepted(reads: Iterable[ReadRow], refused: dict[int, str]) -> Iterator[Row]:
    """The rows that can be used; the reasons why the others cannot are added to `refused`."""
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
    """The files of each split of a table or of a folder of tables; empty if `path` is something else."""
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
    """The split that a parquet file belongs to, by the naming of the Hugging Face hub."""
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
            # In a folder with several files, the index alone does not locate the row.
            where = f"{file.name}, row {index}: " if reason and len(files) > 1 else ""
            yield ReadRow(first + index, row, where + reason)
            count += 1
        first += count


def _stored_rows(dataset: Dataset) -> Iterator[Row]:
    """The rows of a data set; missing values are NaN, and a cell of zeros means no cell."""
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
        with path.open("rb") as file:  # SQLite would make an empty file a database
            mark = file.read(len(SQLITE_MARK))
        if mark != SQLITE_MARK:
            raise ValueError(f"{path} is no SQLite database, so no ASE database; it begins with {mark!r}")
    try:
        database = ase.db.connect(path, use_lock_file=False)
        if path.suffix == ".json":  # a single text, which is in memory as a whole
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
        except LookupError as error:  # ASE misses a part of the structure
            yield ReadRow(index, None, reason_of(error))
        else:
            yield ReadRow(index, row)
