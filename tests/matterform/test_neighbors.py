"""Equal to ASE's neighbour list in cells of every shape; pairs know their reverse; gradients through `gather`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list

from matterform.neighbors import (
    collect,
    displacements,
    estimate_capacity,
    gather,
    image_counts,
    images_for,
    neighbor_list,
)

CUTOFF = 3.0  # Å
CAPACITY = 192
LENGTH = 12
BORDER = 1e-3  # Å: pairs this close to the cutoff may fall to either side in float32


@functools.cache
def compiled(images, cutoff=CUTOFF, capacity=CAPACITY):
    return jax.jit(jax.vmap(functools.partial(neighbor_list, cutoff=cutoff, capacity=capacity, images=images)))


def random_cell(rng, kind):
    """Boxes, skewed cells, cells with a side far below the cutoff, and flat ones; float32 numbers in any rotation."""
    sides = np.diag(rng.uniform(1.0 if kind == "tiny" else 2.5, 9.0, 3))
    if kind == "skewed":
        sides = np.tril(rng.normal(scale=4.0, size=(3, 3)), -1) + sides
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return (sides if kind == "box" else sides @ turn).astype(np.float32)


def random_structures(seed, kind, count, periodic=0.7):
    """Padded structures whose atoms lie several cells around the origin, with every kind of periodicity."""
    rng = np.random.default_rng(seed)
    cells = np.stack([random_cell(rng, kind) for _ in range(count)])
    pbcs = rng.random((count, 3)) < periodic
    sizes = rng.integers(1, LENGTH + 1, count)
    spread = np.where(pbcs[:, :, None], cells, 4 * np.eye(3, dtype=np.float32))
    positions = rng.uniform(-2, 3, (count, LENGTH, 3)).astype(np.float32) @ spread
    # A non-periodic vector must not matter, not even a zero one.
    cells = np.where(pbcs[:, :, None] | (rng.random((count, 1, 1)) < 0.5), cells, 0.0)
    return positions.astype(np.float32), cells.astype(np.float32), pbcs, np.arange(LENGTH) < sizes[:, None]


def pairs_of(neighbors, distances, cutoff=CUTOFF):
    """{(i, j, shift)} of one structure, without the pairs at the cutoff."""
    rows, slots = np.nonzero(neighbors.mask)
    pairs = [
        (i, int(neighbors.index[i, k]), *map(int, neighbors.shift[i, k])) for i, k in zip(rows, slots, strict=True)
    ]
    assert len(set(pairs)) == len(pairs)
    return {pair for pair, i, k in zip(pairs, rows, slots, strict=True) if abs(distances[i, k] - cutoff) > BORDER}


def pairs_of_ase(positions, cell, pbc, cutoff=CUTOFF):
    full = complete_cell(np.where(pbc[:, None], cell, 0.0).astype(float))
    i, j, shift, distance = primitive_neighbor_list("ijSd", pbc, full, positions.astype(float), cutoff)
    kept = np.abs(distance - cutoff) > BORDER
    return {(int(a), int(b), *map(int, s)) for a, b, s in zip(i[kept], j[kept], shift[kept], strict=True)}


@pytest.mark.parametrize("kind", ["box", "rotated", "skewed", "tiny"])
def test_list_equals_that_of_ase(kind):
    structures = random_structures(1, kind, 100)
    counts = np.array([image_counts(cell, pbc, CUTOFF) for cell, pbc in zip(structures[1], structures[2], strict=True)])
    # A few groups of like cells, each searched as far as it needs, keep the number of compilations small.
    far = (counts > 1).any(axis=1)
    found = 0
    for group in (far, ~far):
        positions, cells, pbcs, present = (part[group] for part in structures)
        if not len(cells):
            continue
        images = images_for(cells, pbcs, CUTOFF)
        assert images == tuple(counts[group].max(axis=0))
        lists = compiled(images)(positions, cells, pbcs, present)
        assert not lists.overflow.any()
        vectors = np.asarray(jax.vmap(displacements)(positions, cells, lists))
        for row, size in enumerate(present.sum(axis=1)):
            mine = jax.tree.map(lambda leaf, row=row: np.asarray(leaf[row]), lists)
            expected = pairs_of_ase(positions[row, :size], cells[row], pbcs[row])
            assert pairs_of(mine, np.linalg.norm(vectors[row], axis=-1)) == expected
            found += len(expected)
    assert found > 2000  # enough pairs to mean something


def check_reverse(lists):
    """Every pair of a batch of lists leads to the same pair seen from the other atom, and from there back."""
    capacity = lists.mask.shape[2]
    for row in range(len(lists.mask)):
        index, shift, mask, reverse, _ = (np.asarray(leaf[row]) for leaf in lists)
        i, k = np.nonzero(mask)
        there = np.unravel_index(reverse[i, k], mask.shape)
        assert mask[there].all()
        np.testing.assert_array_equal(there[0], index[i, k])
        np.testing.assert_array_equal(index[there], i)
        np.testing.assert_array_equal(shift[there], -shift[i, k])
        np.testing.assert_array_equal(reverse[there], i * capacity + k)
        assert not index[~mask].any()
        assert not shift[~mask].any()


@pytest.mark.parametrize("kind", ["skewed", "tiny"])
def test_reverse_is_the_same_pair_seen_from_the_neighbour(kind):
    positions, cells, pbcs, present = random_structures(2, kind, 60)
    near = np.array([max(image_counts(c, p, CUTOFF)) <= 3 for c, p in zip(cells, pbcs, strict=True)])
    positions, cells, pbcs, present = positions[near], cells[near], pbcs[near], present[near]
    lists = compiled((3, 3, 3))(positions, cells, pbcs, present)
    assert lists.mask.sum() > 700
    check_reverse(lists)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_reverse_holds_where_distances_equal_the_cutoff_and_shifts_are_tied(size, rng):
    # In perfect crystals whole shells lie at the cutoff and many atoms half a cell apart: rounding decides, but for
    # both ends of a pair alike.
    atoms = bulk("Cu", "fcc", a=3.0 * 2**0.5, cubic=True) * (size, 1, 2)
    turns = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(20)]
    cells = np.stack([np.asarray(atoms.cell) @ turn for turn in turns]).astype(np.float32)
    positions = np.stack([atoms.positions @ turn + rng.normal(size=3) for turn in turns]).astype(np.float32)
    pbcs, present = np.ones((20, 3), bool), np.ones((20, len(atoms)), bool)
    cutoff = 6.0  # the fourth shell
    lists = compiled(images_for(cells, pbcs, cutoff), cutoff, 64)(positions, cells, pbcs, present)
    counts = np.asarray(lists.mask.sum(axis=2))
    assert counts.min() >= 42  # 12 + 6 + 24 nearer ones
    assert counts.max() <= 54
    assert len(np.unique(counts)) > 1  # rounding does decide
    check_reverse(lists)


def test_cell_smaller_than_the_cutoff_holds_an_atoms_own_images():
    # fcc with one atom a cell: 12 + 6 + 24 + 12 neighbours within 2.05 nearest-neighbour distances.
    cell = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]], np.float32)
    cutoff = 2.05 * 2**0.5
    images = image_counts(cell, np.ones(3, bool), cutoff)
    lists = compiled(images, cutoff, 64)(
        np.full((1, 1, 3), 0.3, np.float32), cell[None], np.ones((1, 3), bool), np.ones((1, 1), bool)
    )
    assert lists.mask.sum() == 54
    vectors = displacements(np.full((1, 3), 0.3, np.float32), cell, jax.tree.map(lambda leaf: leaf[0], lists))
    lengths = np.sort(np.linalg.norm(vectors[0], axis=-1))[-54:]
    np.testing.assert_allclose(lengths**2, np.repeat([2, 4, 6, 8], [12, 6, 24, 12]), rtol=1e-5)


def test_padding_may_hold_anything():
    positions, cells, pbcs, present = random_structures(3, "box", 8)
    plain = compiled((2, 2, 2))(positions, cells, pbcs, present)
    for junk in (0.0, np.nan, 1e30):
        filled = np.where(present[:, :, None], positions, np.float32(junk))
        other = compiled((2, 2, 2))(filled, cells, pbcs, present)
        jax.tree.map(np.testing.assert_array_equal, plain, other)


def test_more_images_than_needed_change_nothing():
    positions, cells, pbcs, present = random_structures(4, "box", 8)
    images = images_for(cells, pbcs, CUTOFF)
    exact, wide = (compiled(i)(positions, cells, pbcs, present) for i in (images, (4, 4, 4)))
    for row in range(8):
        sets = []
        for lists in (exact, wide):
            one = jax.tree.map(lambda leaf, row=row: np.asarray(leaf[row]), lists)
            sets.append(pairs_of(one, np.full(one.mask.shape, np.inf)))
        assert sets[0] == sets[1]


def test_overflow_is_reported():
    positions, cells, pbcs, present = random_structures(5, "box", 16)
    images = images_for(cells, pbcs, CUTOFF)
    full = compiled(images)(positions, cells, pbcs, present)
    most = np.asarray(full.mask.sum(axis=2).max(axis=1))
    capacity = int(np.median(most))
    short = compiled(images, CUTOFF, capacity)(positions, cells, pbcs, present)
    np.testing.assert_array_equal(short.overflow, most > capacity)
    assert short.overflow.any()
    assert not short.overflow.all()
    assert int(short.reverse.max()) < LENGTH * capacity  # reading through it stays inside


def one_structure():
    positions, cells, pbcs, present = random_structures(6, "skewed", 1, periodic=1.0)
    present = np.ones_like(present)
    images = images_for(cells, pbcs, CUTOFF)
    lists = compiled(images)(positions, cells, pbcs, present)
    return positions[0], cells[0], jax.tree.map(lambda leaf: leaf[0], lists)


def test_gradients_of_displacements_equal_those_of_plain_indexing():
    positions, cell, lists = one_structure()

    def plain(positions, cell, lists):
        offset = jnp.einsum("nmi,ij->nmj", lists.shift, cell)
        vectors = positions[lists.index] - positions[:, None] + offset
        return jnp.where(lists.mask[..., None], vectors, 0.0)

    def energy(vectors_of, positions, cell):
        square = jnp.sum(vectors_of(positions, cell, lists) ** 2, axis=-1)
        return jnp.sum(jnp.where(lists.mask, jnp.exp(-0.3 * square) * jnp.sin(square), 0.0))

    def slope(vectors_of, positions, cell):  # second derivatives, as training on conservative forces takes
        forces, stress = jax.grad(energy, argnums=(1, 2))(vectors_of, positions, cell)
        return jnp.sum(jnp.sin(forces) * jnp.arange(1, LENGTH + 1)[:, None]) + jnp.sum(stress**2)

    for function in (energy, slope):
        mine, theirs = (
            jax.jit(jax.grad(function, argnums=(1, 2)), static_argnums=0)(v, positions, cell)
            for v in (displacements, plain)
        )
        for a, b in zip(mine, theirs, strict=True):
            assert np.abs(b).max() > 0.1
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(np.abs(b).max()))


def test_collect_is_the_transpose_of_gather(rng):
    _, _, lists = one_structure()
    x = rng.normal(size=(LENGTH, 2, 3)).astype(np.float32)
    y = rng.normal(size=(LENGTH, CAPACITY, 2, 3)).astype(np.float32) * np.asarray(lists.mask)[:, :, None, None]
    np.testing.assert_allclose(np.vdot(gather(x, lists), y), np.vdot(x, collect(y, lists)), rtol=1e-5)
    np.testing.assert_array_equal(gather(x, lists), x[np.asarray(lists.index)])


@pytest.mark.parametrize(
    ("length", "size", "pbc"),
    [(4.0, 4, [True] * 3), (8.0, 12, [True] * 3), (8.0, 12, [True, True, False]), (7.0, 12, [False] * 3)],
)
def test_estimated_capacity_is_enough_and_not_wasteful(length, size, pbc, rng):
    cell, pbc = np.eye(3, dtype=np.float32) * length, np.array(pbc)
    capacity, batch = estimate_capacity(size, cell, pbc, 4.0), 500
    assert capacity % 4 == 0
    positions = rng.uniform(0, length, (batch, LENGTH, 3)).astype(np.float32)
    present = np.broadcast_to(np.arange(LENGTH) < size, (batch, LENGTH))
    cells, pbcs = np.broadcast_to(cell, (batch, 3, 3)), np.broadcast_to(pbc, (batch, 3))
    lists = compiled((1, 1, 1), 4.0, 64)(positions, cells, pbcs, present)
    assert not lists.overflow.any()
    most = int(lists.mask.sum(axis=2).max())
    assert most <= capacity
    assert not pbc.all() or capacity < 1.6 * most + 4


def test_image_counts_refuse_a_flat_cell():
    with pytest.raises(ValueError, match="independent"):
        image_counts(np.array([[3.0, 0, 0], [0, 0, 0], [0, 0, 3.0]]), np.ones(3, bool), 5.0)
    assert image_counts(np.array([[3.0, 0, 0], [0, 0, 0], [0, 0, 3.0]]), np.array([True, False, True]), 5.0) == (
        2,
        0,
        2,
    )
