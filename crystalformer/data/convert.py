"""Conversion of many crystals, from CIF texts or structures to padded arrays.

Rows are converted in chunks, optionally in worker processes, which are spawned and do not import JAX. The order of the
rows is kept.
"""

import collections
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crystalformer.config import TransformerConfig
from crystalformer.data.crystals import Crystals
from crystalformer.data.symmetrize import crystal_from_structure, crystal_from_text
from matterform.io.cif import TextRecord, UnreadableStructure, iterate_csv
from matterform.io.formats import iterate_crystals
from matterform.processes import death_explained, worker_pool

if TYPE_CHECKING:
    import concurrent.futures

    from pymatgen.core import Structure

ROWS_AT_ONCE = 200  # about half a second of work
CHUNKS_AHEAD = 3  # per worker; bounds the memory of pending chunks
DEATH = (
    "a process that converts crystals died; use fewer workers if memory is short, and keep what a script does under "
    '`if __name__ == "__main__":`'
)

Progress = Callable[[int], None]  # called with the number of rows converted so far


class Chunk(NamedTuple):
    """The accepted crystals of some rows, and {row: reason} for the refused."""

    rows: list[int]  # row number of each accepted crystal
    crystals: Crystals
    refused: dict[int, str]


def read_csv(
    path: str | os.PathLike[str],
    *,
    n_max: int = TransformerConfig.n_max,
    workers: int = 1,
    column: str | None = None,
    progress: Progress | None = None,
) -> tuple[Crystals, dict[int, str]]:
    """Reads all crystals of a CSV (gz or not) into memory; returns them and {row: reason} for the refused.

    Args:
        n_max: slots per crystal; crystals must have fewer sites, since the model ends each with an empty slot.
        workers: number of processes; with more than one, a script needs the usual `if __name__ == "__main__":`.
        column: name of the column with the CIFs; by default "cif" or "structure".
        progress: called after each chunk with the number of rows converted so far.

    Raises:
        ValueError: `n_max` or `workers` is too small, the column does not exist, or the file is not a table.
        ChildProcessError: a worker process died, e.g. for lack of memory.
    """
    check_sizes(n_max, workers)
    chunks = [chunk for _, chunk in iterate_converted(iterate_csv(path, column), n_max, workers, progress)]
    return _merged(chunks, n_max)


def from_structures(
    structures: "Iterable[Structure]", *, n_max: int = TransformerConfig.n_max
) -> tuple[Crystals, dict[int, str]]:
    """Converts pymatgen structures in any cell; returns the crystals and {index: reason} for the refused.

    Raises:
        ValueError: `n_max` is too small.
    """
    check_sizes(n_max, 1)
    return _merged([_convert(list(enumerate(structures)), n_max, crystal_from_structure)], n_max)


class FileCrystals(NamedTuple):
    """Crystals of a file, their positions in it, and {position: reason} for the refused entries."""

    crystals: Crystals
    places: list[int]
    refused: dict[int, str]


def read_any(path: str | os.PathLike[str], *, n_max: int = TransformerConfig.n_max, workers: int = 1) -> FileCrystals:
    """Crystals of a CSV with CIFs, or of a file or folder in any format of `matterform.io.formats`.

    Raises:
        ValueError: as for `read_csv`, or the format is unknown.
    """
    path = pathlib.Path(path)
    if ".csv" in path.suffixes:
        crystals, refused = read_csv(path, n_max=n_max, workers=workers)
        rows = range(len(crystals.G) + len(refused))
        return FileCrystals(crystals, [row for row in rows if row not in refused], refused)
    structures, refused = {}, {}
    for record in iterate_crystals(path):
        if record.structure is None:
            refused[record.index] = record.reason
        else:
            structures[record.index] = record.structure
    places = list(structures)
    crystals, unsuitable = from_structures(structures.values(), n_max=n_max)
    refused |= {places[i]: reason for i, reason in unsuitable.items()}
    return FileCrystals(crystals, [place for i, place in enumerate(places) if i not in unsuitable], refused)


def convert_texts(rows: Sequence[tuple[int, str]], n_max: int) -> Chunk:
    """Converts (row, CIF text) pairs; runs in a worker process."""
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
    return Chunk(accepted, pad_crystals(crystals, n_max), refused)


def iterate_converted(
    records: Iterator[TextRecord], n_max: int, workers: int, progress: Progress | None
) -> Iterator[tuple[list[TextRecord], Chunk]]:
    """Yields the records chunk by chunk, in order, with the result of their conversion."""
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


def pad_crystals(crystals: Sequence[Crystals], n_max: int) -> Crystals:
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
    batches = [chunk.crystals for chunk in chunks] or [pad_crystals([], n_max)]
    refused = {row: reason for chunk in chunks for row, reason in chunk.refused.items()}
    return Crystals(*map(np.concatenate, zip(*batches, strict=True))), refused


def check_sizes(n_max: int, workers: int) -> None:
    """Raises a ValueError if there are no slots for sites, or no processes."""
    if n_max < 2:
        raise ValueError(f"n_max: expected at least 2 (a site and the empty slot), found {n_max}")
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, found {workers}")
