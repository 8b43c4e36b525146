"""Exact periodic neighbour search inside jit, for one structure (use `jax.vmap` for several).

Every pair is first shifted to its nearest fractional image, so that only a few cells around it must be searched
(`image_counts`). The images of atom j near atom i are stored as bits of 32-bit words, and the slot of a pair is the
number of bits before its own. Sorting and scattering are avoided, because XLA does both slowly on a CPU.

With this search, a step of AGeDi's sampler takes 40 ms for 64 structures; with neighbour lists made on the host it
takes 4.1 times as long by matscipy and 13.5 times by ASE (benchmarks/cases/agedi_speed.py, results/agedi_speed.jsonl).
"""

import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from matterform.cell import complete, inverse

AnyArray = Any  # NumPy on the host, JAX inside
WORD = 32  # bits
DIGIT = 10  # bits for the image index along one lattice vector
REDUCTION = 32  # numbers that XLA sums in one reduction
ROUNDING = 1e-3  # allowed error of fractional coordinates in float32, even many cells away from the origin


class Neighbors(NamedTuple):
    """Neighbours of n atoms in m slots each; a pair i-j is in the rows of both, an own image in the row of its atom.

    Slots with `mask` False are unused: their index is 0 and their shift 0.
    """

    index: Int[AnyArray, "n m"]  # the neighbour j of atom i
    shift: Float[AnyArray, "n m 3"]  # lattice vectors added to j: the displacement is r_j + shift @ cell - r_i
    mask: Bool[AnyArray, "n m"]
    reverse: Int[AnyArray, "n m"]  # position in the flattened (n m) slots of the same pair seen from j
    overflow: Bool[AnyArray, ""]  # an atom has more than m neighbours, so the list is incomplete


def neighbor_list(
    positions: Float[AnyArray, "n 3"],
    cell: Float[AnyArray, "3 3"],
    pbc: Bool[AnyArray, "3"],
    present: Bool[AnyArray, " n"],
    *,
    cutoff: float,
    capacity: int,
    images: tuple[int, int, int],
) -> Neighbors:
    """Finds all pairs closer than `cutoff` (Å), including images of the same atom; not differentiable.

    Args:
        positions: Cartesian, Å; they may lie outside the cell.
        cell: rows are lattice vectors, Å; those of non-periodic directions are ignored.
        present: mask of the real atoms; other rows are padding and have no neighbours.
        capacity: number of slots per atom, m.
        images: number of cells searched on both sides along each vector; at least the `image_counts` of this cell.
    """
    positions, cell = jax.lax.stop_gradient((jnp.asarray(positions), jnp.asarray(cell)))
    pbc, present = jnp.asarray(pbc), jnp.asarray(present)
    n, grid = positions.shape[0], image_grid(images)
    home, displacement = _nearest_fractional(positions, cell, pbc)
    words = _near_images(displacement, cell, pbc, present, grid, cutoff)  # of i: block, j
    blocks, size = words.shape[1] // n, _block_size(len(grid))
    ends = _cumulative(jax.lax.population_count(words).astype(jnp.int32))

    slots = jnp.arange(capacity, dtype=jnp.int32)
    mask = slots[None] < ends[:, -1:]
    place = _search(ends, slots)
    row = jnp.arange(n, dtype=jnp.int32)[:, None]
    place = jnp.where(mask, place, 0)
    word, end = _flat(words, row * (blocks * n) + place), _flat(ends, row * (blocks * n) + place)
    rank = slots[None] - end + jax.lax.population_count(word).astype(jnp.int32)
    block = jax.lax.div(place, jnp.int32(n))
    index = place - block * n
    # With a table, the digits are computed once per slot, not once per consumer and component.
    code = _flat(jnp.asarray(_digit_codes(images)), block * size + _select_bit(word, rank))
    digits = [code >> (DIGIT * k) & (2**DIGIT - 1) for k in range(3)]

    # For the same pair seen from j, the image is the opposite one, at the mirrored index of the grid.
    widths = [2 * count + 1 for count in images]
    mirror = len(grid) - 1 - ((digits[0] * widths[1] + digits[1]) * widths[2] + digits[2])
    block = jax.lax.div(mirror, jnp.int32(size))
    there = jnp.where(mask, (index * blocks + block) * n + row, 0)
    word, end = _flat(words, there), _flat(ends, there)
    rank = end - jax.lax.population_count(word >> (mirror - block * size).astype(jnp.uint32)).astype(jnp.int32)
    reverse = jnp.where(mask, index * capacity + jnp.minimum(rank, capacity - 1), 0)

    shift = jnp.stack([digit - count for digit, count in zip(digits, images, strict=True)], axis=-1)
    shift = shift.astype(home.dtype) - _rows(home.reshape(-1, 3), row * n + index)
    shift = jnp.where(mask[..., None], shift, 0.0)
    return Neighbors(index, shift, mask, reverse, jnp.any(ends[:, -1] > capacity))


def displacements(
    positions: Float[AnyArray, "n 3"], cell: Float[AnyArray, "3 3"], neighbors: Neighbors
) -> Float[Array, "n m 3"]:
    """Vectors from each atom to its neighbours (Å), 0 in unused slots; differentiable any number of times."""
    positions, cell, shift = jnp.asarray(positions), jnp.asarray(cell), jnp.asarray(neighbors.shift)
    offset = sum(shift[..., i, None] * cell[i, None, None] for i in range(3))
    vectors = gather(positions, neighbors) - positions[:, None] + offset
    return jnp.where(neighbors.mask[..., None], vectors, 0.0)


@jax.custom_vjp
def gather(values: Float[AnyArray, "n ..."], neighbors: Neighbors) -> Float[Array, "n m ..."]:
    """The values of each atom's neighbours; unused slots get the value of atom 0, without a gradient.

    The transpose is `collect`, which gathers with `reverse` instead of scattering, many times as fast.
    """
    return _rows(jnp.asarray(values), neighbors.index)


@jax.custom_vjp
def collect(values: Float[AnyArray, "n m ..."], neighbors: Neighbors) -> Float[Array, "n ..."]:
    """Sums, for every atom, the values of all slots in which it is the neighbour."""
    flat = jnp.asarray(values).reshape(-1, *values.shape[2:])
    found = _rows(flat, neighbors.reverse)
    mask = jnp.asarray(neighbors.mask).reshape(*neighbors.mask.shape, *(1,) * (values.ndim - 2))
    return jnp.sum(jnp.where(mask, found, 0.0), axis=1)


def _masked_gather(values: Array, neighbors: Neighbors) -> Array:
    mask = jnp.asarray(neighbors.mask).reshape(*neighbors.mask.shape, *(1,) * (values.ndim - 1))
    return jnp.where(mask, gather(values, neighbors), 0.0)


gather.defvjp(
    lambda x, neighbors: (gather(x, neighbors), neighbors), lambda neighbors, g: (collect(g, neighbors), None)
)
collect.defvjp(
    lambda x, neighbors: (collect(x, neighbors), neighbors), lambda neighbors, g: (_masked_gather(g, neighbors), None)
)


def image_counts(cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"], cutoff: float) -> tuple[int, int, int]:
    """Number of cells on each side that `neighbor_list` must search along each vector; computed on the host.

    Args:
        cutoff: largest distance, Å.

    Raises:
        ValueError: the vectors of the periodic directions are linearly dependent.
    """
    vectors = np.asarray(cell, float)[np.asarray(pbc, bool)]
    if vectors.size and np.linalg.matrix_rank(vectors) < len(vectors):
        raise ValueError(f"a cell's periodic vectors must be independent; found {vectors.tolist()}: give a proper cell")
    # The nearest fractional difference is at most 1/2; the norm is the number of lattice planes per Å.
    reach = cutoff * np.linalg.norm(np.linalg.pinv(vectors), axis=0) + 0.5 + ROUNDING
    counts = np.zeros(3, int)
    counts[np.asarray(pbc, bool)] = np.floor(reach)
    return int(counts[0]), int(counts[1]), int(counts[2])


def images_for(
    cells: Iterable[Float[np.ndarray, "3 3"]], pbcs: Iterable[Bool[np.ndarray, "3"]], cutoff: float
) -> tuple[int, int, int]:
    """The largest `image_counts` of several cells.

    Raises:
        ValueError: the periodic vectors of a cell are linearly dependent.
    """
    counts = [image_counts(cell, pbc, cutoff) for cell, pbc in zip(cells, pbcs, strict=True)]
    first, second, third = (max(column) for column in zip((0, 0, 0), *counts, strict=True))
    return first, second, third


def estimate_capacity(num_atoms: int, cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"], cutoff: float) -> int:
    """Number of slots per atom that suffices for randomly placed atoms: a multiple of 4; computed on the host.

    It is the mean number of neighbours plus six standard deviations. Along non-periodic directions, the estimate
    assumes that all atoms lie in one plane.

    Raises:
        ValueError: the vectors of the periodic directions are linearly dependent.
    """
    pbc = np.asarray(pbc, bool)
    vectors, counts = np.asarray(cell, float)[pbc], np.array(image_counts(cell, pbc, cutoff))[pbc].tolist()
    # Images of one other atom within the cutoff: mean and variance over its position in the cell.
    rng, grid = np.random.default_rng(0), image_grid(tuple(counts))
    places = rng.uniform(-0.5, 0.5, (256, len(counts)))
    near = np.linalg.norm((places[:, None] + grid) @ vectors, axis=-1) < cutoff
    own = int(np.sum(np.linalg.norm(grid @ vectors, axis=-1) < cutoff)) - 1
    found, others = near.sum(axis=1), num_atoms - 1
    bound = own + others * (len(grid) if pbc.any() else 1)
    needed = own + others * found.mean() + 6 * math.sqrt(others * found.var()) + 2
    return max(4, 4 * math.ceil(min(needed, bound) / 4))


def _flat(table: Array, places: Int[Array, "*s"]) -> Array:
    return table.reshape(-1).at[places].get(mode="promise_in_bounds")


def _rows(table: Array, rows: AnyArray) -> Array:
    return table.at[rows].get(mode="promise_in_bounds")


@functools.cache
def image_grid(images: tuple[int, ...]) -> Int[np.ndarray, "k d"]:
    """Integer shifts, in an order such that the reversed array is the negative of the array."""
    ranges = [range(-count, count + 1) for count in images]
    points = list(itertools.product(*ranges))
    return np.array(points, np.int32).reshape(len(points), len(images))


@functools.cache
def _digit_codes(images: tuple[int, int, int]) -> Int[np.ndarray, " k"]:
    """For each image of the grid, one integer with its indices along the three vectors, counted from 0."""
    digits = image_grid(images) + np.array(images, np.int32)
    codes = digits @ (1 << DIGIT * np.arange(3, dtype=np.int32))
    return np.pad(codes, (0, max(0, WORD - len(codes)))).astype(np.int32)  # unused slots may read any of the bits


def _block_size(num_images: int) -> int:
    # At least two blocks, so that the words are computed in a loop: otherwise XLA recomputes them for each consumer,
    # which takes time and may round a distance at the cutoff differently.
    return math.ceil(num_images / max(2, math.ceil(num_images / WORD)))


def _nearest_fractional(
    positions: Float[Array, "n 3"], cell: Float[Array, "3 3"], pbc: Bool[Array, "3"]
) -> tuple[Float[Array, "n n 3"], tuple[Float[Array, "n n"], ...]]:
    """Lattice shift of the nearest fractional image of j, and its displacement from i (x, y, z).

    Products are written out, so that exchanging i and j changes exactly the sign of each number, as `reverse` needs.
    """
    periodic = jnp.where(pbc[:, None], cell, 0.0)
    duals = inverse(complete(cell, pbc))
    difference = positions[None] - positions[:, None]
    # This product makes XLA compute it only once, so that all uses of `home` choose the same of two nearest images.
    fractional = jnp.matmul(positions, jnp.where(pbc[None], duals, 0.0), precision="highest")
    home = [jnp.round(f[None] - f[:, None]) for f in fractional.T]
    rest = tuple(difference[..., i] - sum(home[k] * periodic[k, i] for k in range(3)) for i in range(3))
    return jnp.stack(home, axis=-1), rest


def _near_images(
    displacement: tuple[Float[Array, "n n"], ...],
    cell: Float[Array, "3 3"],
    pbc: Bool[Array, "3"],
    present: Bool[Array, " n"],
    grid: Int[np.ndarray, "k 3"],
    cutoff: float,
) -> UInt32[Array, "n w"]:
    """Words whose bits mark the images of j near i; the images of one block of the grid share a word."""
    n, size = present.shape[0], _block_size(len(grid))
    blocks = max(2, math.ceil(len(grid) / size))
    x, y, z = displacement
    padded = np.zeros((blocks * size, 3), np.int32)
    padded[: len(grid)] = grid
    within = jnp.all((padded == 0) | pbc[None], axis=1) & (np.arange(blocks * size) < len(grid))
    offsets = sum(jnp.asarray(padded[:, k, None], cell.dtype) * jnp.where(pbc[k], cell[k], 0.0)[None] for k in range(3))
    offsets = jnp.where(within[:, None], offsets, jnp.inf).reshape(blocks, size, 3)
    pairs = present[:, None] & present[None]
    same = jnp.eye(n, dtype=bool)

    def word(offset: Float[Array, "size 3"], start: Int[Array, ""]) -> UInt32[Array, "n n"]:
        bits = jnp.zeros((n, n), jnp.uint32)
        for k in range(size):
            near = (x + offset[k, 0]) ** 2 + (y + offset[k, 1]) ** 2 + (z + offset[k, 2]) ** 2 < cutoff**2
            bits |= near.astype(jnp.uint32) << k
        itself = jnp.where(start == len(grid) // 2 // size, jnp.uint32(1 << (len(grid) // 2 % size)), jnp.uint32(0))
        return jnp.where(pairs, bits & ~jnp.where(same, itself, jnp.uint32(0)), jnp.uint32(0))

    words = jax.lax.map(lambda inputs: word(*inputs), (offsets, jnp.arange(blocks, dtype=jnp.int32)))
    return words.transpose(1, 0, 2).reshape(n, blocks * n)


def _cumulative(counts: Int[Array, "n w"]) -> Int[Array, "n w"]:
    """Cumulative sums of rows by a matrix product, exact because they are far below 2^24."""
    triangle = jnp.asarray(np.triu(np.ones((counts.shape[1],) * 2, np.float32)))
    return jnp.matmul(counts.astype(jnp.float32), triangle, precision="highest").astype(jnp.int32)


def _search(ends: Int[Array, "n w"], slots: Int[Array, " m"]) -> Int[Array, "n m"]:
    """For each row and slot, the number of entries in the row that do not exceed the slot."""
    # Counted in parts: XLA splits a longer reduction in two and then stores the table of comparisons in memory.
    parts = [ends[:, start : start + REDUCTION, None] for start in range(0, ends.shape[1], REDUCTION)]
    counts = [jnp.sum(part <= slots[None, None], axis=1, dtype=jnp.int32) for part in parts]
    return functools.reduce(jnp.add, counts)


def _select_bit(word: UInt32[Array, "*s"], rank: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """The position of the set bit that has `rank` set bits below it; at most 31 if there is none."""
    position = jnp.zeros_like(rank)
    for width in (16, 8, 4, 2, 1):
        low = word & jnp.uint32((1 << width) - 1)
        count = jax.lax.population_count(low).astype(jnp.int32)
        above = rank >= count
        word = jnp.where(above, word >> width, low)
        rank = jnp.where(above, rank - count, rank)
        position = jnp.where(above, position + width, position)
    return position
