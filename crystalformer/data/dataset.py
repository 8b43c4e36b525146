"""Many crystals: tables of CIFs and lists of structures to padded arrays, prepared once and opened instantly.

A crystal that the model cannot represent is refused with the reason, never cut. Work is done in chunks, in worker
processes if asked; these are spawned, import no JAX, and whatever their number the order is that of the rows.
"""

import collections
import contextlib
import csv
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crystalformer.config import TransformerConfig
from crystalformer.data.crystals import Crystals, num_slots, truncate
from crystalformer.data.symmetrize import crystal_from_structure, crystal_from_text
from matterform.io.files import appending, write_atomically
from matterform.io.formats import TextRecord, UnreadableStructure, iterate_crystals, iterate_csv
from matterform.processes import death_explained, worker_pool

if TYPE_CHECKING:
    import concurrent.futures

    from pymatgen.core import Structure

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
ROWS_AT_ONCE = 200  # about half a second of work
CHUNKS_AHEAD = 3  # per worker; bounds what waits in memory
DEATH = (
    "a process that converts crystals died; use fewer workers if memory is short, and keep what a script does under "
    '`if __name__ == "__main__":`'
)
ID_COLUMN = "material_id"

Progress = Callable[[int], None]  # is told the number of rows done


class Chunk(NamedTuple):
    """What became of some rows."""

    rows: list[int]  # of the accepted crystals
    crystals: Crystals
    refused: dict[int, str]


class Summary(NamedTuple):
    """What `prepare` wrote."""

    accepted: int
    refused: dict[int, str]


def read_csv(
    path: str | os.PathLike[str],
    *,
    n_max: int = 21,
    workers: int = 1,
    column: str | None = None,
    progress: Progress | None = None,
) -> tuple[Crystals, dict[int, str]]:
    """Reads all crystals of a CSV (gz or not) into memory; returns them and {row: reason} for the refused.

    Args:
        n_max: slots per crystal; crystals must have fewer sites, since the model ends each with an empty slot.
        workers: processes; with more than one, a script needs the usual `if __name__ == "__main__":`.
        column: where the CIFs are, "cif" or "structure" by default.
        progress: is called with the number of rows done after each chunk.

    Raises:
        ValueError: `n_max` or `workers` too small, no such column, or not a table.
        ChildProcessError: a worker died, of too little memory for instance.
    """
    _check_sizes(n_max, workers)
    chunks = [chunk for _, chunk in _converted(iterate_csv(path, column), n_max, workers, progress)]
    return _merged(chunks, n_max)


def from_structures(structures: "Iterable[Structure]", *, n_max: int = 21) -> tuple[Crystals, dict[int, str]]:
    """Crystals of pymatgen structures in any cell, and {index: reason} for the refused."""
    _check_sizes(n_max, 1)
    return _merged([_convert(list(enumerate(structures)), n_max, crystal_from_structure)], n_max)


class Readable(NamedTuple):
    """Crystals of a file, the place of each in it, and {place: reason} for the rest."""

    crystals: Crystals
    places: list[int]
    refused: dict[int, str]


def read_any(path: str | os.PathLike[str], *, n_max: int = 21, workers: int = 1) -> Readable:
    """Crystals of a CSV with CIFs, or of a file or folder in any format of `matterform.io.formats`.

    Raises:
        ValueError: as `read_csv`, or an unknown format.
    """
    path = pathlib.Path(path)
    if ".csv" in path.suffixes:
        crystals, refused = read_csv(path, n_max=n_max, workers=workers)
        rows = range(len(crystals.G) + len(refused))
        return Readable(crystals, [row for row in rows if row not in refused], refused)
    structures, refused = {}, {}
    for record in iterate_crystals(path):
        if record.structure is None:
            refused[record.index] = record.reason
        else:
            structures[record.index] = record.structure
    places = list(structures)
    crystals, unsuitable = from_structures(structures.values(), n_max=n_max)
    refused |= {places[i]: reason for i, reason in unsuitable.items()}
    return Readable(crystals, [place for i, place in enumerate(places) if i not in unsuitable], refused)


def prepare(
    path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    n_max: int = 21,
    workers: int = 1,
    column: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Converts a CSV of any length into a folder for `open_dataset`, whole or not at all.

    The folder holds one .npy per field, `row.npy` (the row that each crystal comes from), `properties.npz` (the numeric
    columns), `refused.csv` (row, id, reason) and `meta.json`. Arguments are those of `read_csv`.

    Raises:
        ValueError: as `read_csv`; also where no crystal is accepted, or `out_dir` already holds something.
    """
    _check_sizes(n_max, workers)
    refused: dict[int, str] = {}
    columns: list[dict[str, Any]] = []
    with write_atomically(out_dir) as folder, contextlib.ExitStack() as stack:
        folder.mkdir()
        empty = [*_padded([], n_max), np.zeros(0, np.int64)]
        names = [*Crystals._fields, "row"]
        files = [
            stack.enter_context(appending(folder / f"{name}.npy", like.dtype, like.shape[1:]))
            for name, like in zip(names, empty, strict=True)
        ]
        writer = csv.writer(stack.enter_context((folder / "refused.csv").open("w", newline="", encoding="utf-8")))
        writer.writerow(["row", ID_COLUMN, "reason"])
        for records, chunk in _converted(iterate_csv(path, column), n_max, workers, progress):
            for append, array in zip(files, [*chunk.crystals, np.array(chunk.rows, np.int64)], strict=True):
                append(array)
            by_row = {record.index: record.columns for record in records}
            columns += [by_row[row] for row in chunk.rows]
            writer.writerows([row, by_row[row].get(ID_COLUMN, ""), reason] for row, reason in chunk.refused.items())
            refused |= chunk.refused
        if not columns:
            raise ValueError(f"{path} holds no crystal that could be used; the first refusals: {_some(refused)}")
        np.savez(folder / "properties.npz", allow_pickle=False, **_numeric_columns(columns))
        meta = {"format_version": FORMAT_VERSION, "source": pathlib.Path(path).name, "n_max": n_max}
        counts = {"accepted": len(columns), "refused": len(refused)}
        (folder / "meta.json").write_text(json.dumps(meta | counts, indent=2) + "\n", encoding="utf-8")
    return Summary(len(columns), refused)


def open_dataset(folder: str | os.PathLike[str]) -> Crystals:
    """The crystals that `prepare` wrote, as read-only memory-mapped arrays.

    Raises:
        ValueError: the folder is not one that `prepare` wrote, or a later version wrote it.
    """
    _read_meta(folder)
    return Crystals(*(np.load(pathlib.Path(folder, f"{name}.npy"), mmap_mode="r") for name in Crystals._fields))


def load_crystals(path: pathlib.Path, config: TransformerConfig, workers: int = 1) -> Crystals:
    """Crystals of a CSV file or of a folder that `prepare` made.

    Raises:
        ValueError: if none is left or they exceed the sizes of the network.
    """
    if path.is_dir():
        crystals = open_dataset(path)
    else:
        crystals, refused = read_csv(path, n_max=config.n_max, workers=workers)
        if refused:
            row, reason = next(iter(refused.items()))
            logger.warning("%s: refused %d of its rows; the first is row %d: %s", path, len(refused), row, reason)
    if not len(crystals.G):
        raise ValueError(f"{path} holds no crystal; see what `crystalformer prepare` says of its rows")
    longest = int(num_slots(crystals).max())
    for name, found, limit in (
        ("n_max", longest, config.n_max),
        ("atom_types", int(crystals.A.max()) + 1, config.atom_types),
        ("wyck_types", int(crystals.W.max()) + 1, config.wyck_types),
    ):
        if found > limit:
            raise ValueError(f"{path} needs {name} of at least {found}; the network has {limit}")
    return truncate(crystals, config.n_max)


def open_properties(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The numeric columns of the table, one value per crystal of `open_dataset`; NaN where a cell was empty."""
    _read_meta(folder)
    with np.load(pathlib.Path(folder, "properties.npz")) as file:
        return dict(file)


def convert_texts(rows: Sequence[tuple[int, str]], n_max: int) -> Chunk:
    """Crystals of CIF texts, each with its row: what a worker process does."""
    return _convert(rows, n_max, crystal_from_text)


def _convert(rows: Sequence[tuple[int, Any]], n_max: int, read: Callable[[Any], Crystals]) -> Chunk:
    accepted, crystals, refused = [], [], {}
    for row, source in rows:
        try:
            crystal = read(source)
        except UnreadableStructure as error:
            refused[row] = str(error)
            continue
        if len(crystal.W) < n_max:
            accepted.append(row)
            crystals.append(crystal)
        else:
            refused[row] = f"too many sites: {len(crystal.W)}, and n_max = {n_max} holds {n_max - 1}"
    return Chunk(accepted, _padded(crystals, n_max), refused)


def _converted(
    records: Iterator[TextRecord], n_max: int, workers: int, progress: Progress | None
) -> Iterator[tuple[list[TextRecord], Chunk]]:
    """Yields the records chunk by chunk, in order, with what became of them."""
    done = 0
    for batch, chunk in _in_order(iter(lambda: list(itertools.islice(records, ROWS_AT_ONCE)), []), n_max, workers):
        yield batch, chunk
        done += len(batch)
        if progress is not None:
            progress(done)


def _in_order(
    batches: Iterator[list[TextRecord]], n_max: int, workers: int
) -> Iterator[tuple[list[TextRecord], Chunk]]:
    if workers == 1:
        for batch in batches:
            yield batch, convert_texts(_texts(batch), n_max)
        return
    with worker_pool(workers) as pool, death_explained(DEATH):
        waiting: collections.deque[tuple[list[TextRecord], concurrent.futures.Future[Chunk]]] = collections.deque()
        for batch in batches:
            waiting.append((batch, pool.submit(convert_texts, _texts(batch), n_max)))
            if len(waiting) == CHUNKS_AHEAD * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _texts(batch: list[TextRecord]) -> list[tuple[int, str]]:
    return [(record.index, record.text) for record in batch]


def _padded(crystals: Sequence[Crystals], n_max: int) -> Crystals:
    """A batch of unpadded crystals with `n_max` slots each."""
    b = len(crystals)
    batch = Crystals(
        G=np.array([crystal.G for crystal in crystals], np.int32),
        L=np.array([crystal.L for crystal in crystals], np.float32).reshape(b, 6),
        XYZ=np.zeros((b, n_max, 3), np.float32),
        A=np.zeros((b, n_max), np.int32),
        W=np.zeros((b, n_max), np.int32),
    )
    for index, crystal in enumerate(crystals):
        n = len(crystal.W)
        batch.XYZ[index, :n], batch.A[index, :n], batch.W[index, :n] = crystal.XYZ, crystal.A, crystal.W
    return batch


def _merged(chunks: Sequence[Chunk], n_max: int) -> tuple[Crystals, dict[int, str]]:
    batches = [chunk.crystals for chunk in chunks] or [_padded([], n_max)]
    refused = {row: reason for chunk in chunks for row, reason in chunk.refused.items()}
    return Crystals(*map(np.concatenate, zip(*batches, strict=True))), refused


def _numeric_columns(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The columns in which every cell is a number, a truth value or empty."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if all(isinstance(value, (int, float, np.number, np.bool_)) for value in values):
            columns[str(name)] = np.array(values, np.float64)
    return columns


def _read_meta(folder: str | os.PathLike[str]) -> dict[str, Any]:
    path = pathlib.Path(folder, "meta.json")
    if not path.is_file():
        raise ValueError(
            f"{folder} is no prepared data set: it has no meta.json; make one with `crystalformer prepare`"
        )
    meta = json.loads(path.read_text(encoding="utf-8"))
    if meta["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{folder}: expected format_version {FORMAT_VERSION}, found {meta['format_version']}; prepare it anew"
        )
    return meta


def _check_sizes(n_max: int, workers: int) -> None:
    if n_max < 2:
        raise ValueError(f"n_max: expected at least 2 (a site and the empty slot), found {n_max}")
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, found {workers}")


def _some(refused: dict[int, str]) -> str:
    return "; ".join(f"row {row}: {reason}" for row, reason in itertools.islice(refused.items(), 3)) or "none"
