"""Evaluation of many structures by few compiled shapes: buckets of lengths, chunks, neighbor slots."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float

from agedi.checks import check_counts
from agedi.data.graph import AtomsGraph
from matterform.neighbors import estimate_capacity, image_counts
from matterform.progress import progress_bar

SMALLEST_BUCKET = 4  # atoms
CAPACITY_STEP = 8  # slots; capacities are multiples of it, so that similar cells share a program
WINDOW = 16  # number of chunks whose structures are sorted by size together

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


class Geometry(NamedTuple):
    """Size and cell of a structure, which determine its compiled program."""

    num_atoms: int
    cell: Float[np.ndarray, "3 3"]  # rows are lattice vectors, Å
    pbc: Bool[np.ndarray, "3"]


def geometry_of(graph: AtomsGraph) -> Geometry:
    """The geometry of a graph that is not padded."""
    return Geometry(len(graph.x), np.asarray(graph.cell), np.asarray(graph.pbc))


class BucketCapacity(NamedTuple):
    """Array sizes that a program is compiled for."""

    length: int  # atoms per structure, padding included
    slots: int  # neighbor slots per atom
    images: tuple[int, int, int]  # periodic images searched each way along the lattice vectors


class HasOverflow(Protocol):
    """A result whose leaves all have a leading axis b."""

    @property
    def overflow(self) -> Any: ...


def bucket(num_atoms: int) -> int:
    """The padded length of a structure: one of few values, above 4 atoms at most a quarter larger than `num_atoms`."""
    step = max(SMALLEST_BUCKET, 2 ** ((num_atoms - 1).bit_length() - 3))
    return step * -(-num_atoms // step)


def bucket_capacity(geometries: Sequence[Geometry], cutoff: float) -> BucketCapacity:
    """Array sizes for all these structures and, at their mean densities, for all neighbors within `cutoff` (Å)."""
    length = bucket(max(geometry.num_atoms for geometry in geometries))
    slots, images = 0, np.zeros(3, int)
    # For the bucket, not for the number of atoms: another formula in the same cell then uses the same program.
    different = {(bucket(n), cell.tobytes(), pbc.tobytes()): (bucket(n), cell, pbc) for n, cell, pbc in geometries}
    for atoms, cell, pbc in different.values():
        slots = max(slots, estimate_capacity(atoms, cell, pbc, cutoff))
        images = np.maximum(images, image_counts(cell, pbc, cutoff))
    first, second, third = images.tolist()
    return BucketCapacity(length, CAPACITY_STEP * -(-slots // CAPACITY_STEP), (first, second, third))


def run_in_chunks(
    geometries: Sequence[Geometry],
    row: Callable[[int, int], Any],
    run: Callable[[Any, BucketCapacity], HasOverflow],
    *,
    cutoff: float,
    batch_size: int,
) -> Iterator[Any]:
    """Yields the result of each structure, in order, as host arrays without the batch axis.

    Structures of similar size are run together. If neighbor lists overflow, the chunk is run again with twice as many
    slots, and so are the chunks after it.

    Args:
        row: (index, length) -> the inputs of a structure, padded to `length` atoms.
        run: runs a batch of stacked rows in a program of the given sizes.
        cutoff: largest distance of neighbors, Å.
        batch_size: largest number of structures run together.

    Raises:
        ValueError: batch_size is not a whole number of at least 1.
    """
    check_counts(batch_size=batch_size)
    least: dict[tuple[int, tuple[int, int, int]], int] = {}  # slots that earlier chunks needed, by length and images
    for begin in range(0, len(geometries), WINDOW * batch_size):
        window = range(begin, min(begin + WINDOW * batch_size, len(geometries)))
        ordered = sorted(window, key=lambda index: bucket(geometries[index].num_atoms))
        results: dict[int, Any] = {}
        due = begin  # index of the next result to yield
        for first in range(0, len(ordered), batch_size):
            indices = ordered[first : first + batch_size]
            results |= zip(indices, _run_chunk(geometries, indices, row, run, cutoff, batch_size, least), strict=True)
            while due in results:
                yield results.pop(due)
                due += 1


def _run_chunk(
    geometries: Sequence[Geometry],
    indices: Sequence[int],
    row: Callable[[int, int], Any],
    run: Callable[[Any, BucketCapacity], HasOverflow],
    cutoff: float,
    batch_size: int,
    least: dict[tuple[int, tuple[int, int, int]], int],
) -> list[Any]:
    sizes = bucket_capacity([geometries[index] for index in indices], cutoff)
    shape = sizes.length, sizes.images
    sizes = sizes._replace(slots=max(sizes.slots, least.get(shape, 0)))
    rows = [row(index, sizes.length) for index in indices]
    rows += [rows[-1]] * (batch_rows(len(rows), batch_size) - len(rows))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    while True:
        result = jax.tree.map(np.asarray, run(stacked, sizes))
        overflows = int(np.sum(result.overflow[: len(indices)]))
        if not overflows:
            return [jax.tree.map(lambda leaf, i=i: leaf[i], result) for i in range(len(indices))]
        logger.info(
            "%d of %d structures have atoms with more than %d neighbors; running them again with %d slots per atom",
            overflows, len(indices), sizes.slots, 2 * sizes.slots,
        )  # fmt: skip
        sizes = sizes._replace(slots=2 * sizes.slots)
        least[shape] = sizes.slots


def batch_rows(count: int, batch_size: int) -> int:
    """Rows of a batch with `count` structures: a power of two or the batch size, so that there are few shapes."""
    rows, devices = min(1 << (count - 1).bit_length(), max(batch_size, count)), jax.device_count()
    return devices * -(-rows // devices)


def counted(results: Iterator[Item], label: str, total: int) -> Iterator[Item]:
    """The results, with a progress bar."""
    with progress_bar(label, total) as show:
        for number, result in enumerate(results, 1):
            yield result
            show(number)
