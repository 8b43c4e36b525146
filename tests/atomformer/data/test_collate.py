"""Flattened batches, edges against brute force, Laplacian encodings against graphs worked by hand."""

import itertools

import ase.io
import numpy as np
import pytest

from atomformer.data.collate import flatten, laplacian_encodings, radius_edges

RING = np.array([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])


@pytest.fixture(scope="module")
def molecules(data_dir):
    """Ten structures of acetylacetone."""
    return ase.io.read(data_dir / "acac_test_300K.extxyz.gz", index=":10")


def brute_force(positions, radius, cell=None, pbc=(True, True, True), images=4):
    """{(receiver, sender, *shift): distance} by looking at every pair and image."""
    ranges = [range(-images, images + 1) if cell is not None and periodic else (0,) for periodic in pbc]
    found = {}
    for shift in itertools.product(*ranges):
        translation = np.zeros(3) if cell is None else np.array(shift) @ cell
        distances = np.linalg.norm(positions[None] + translation[None, None] - positions[:, None], axis=-1)
        for receiver, sender in np.argwhere(distances < radius):
            if receiver != sender or any(shift):
                found[receiver, sender, *shift] = distances[receiver, sender]
    return found


def as_dict(edges):
    keys = zip(edges.receivers.tolist(), edges.senders.tolist(), *edges.shifts.T.tolist(), strict=True)
    return dict(zip(keys, edges.distances.tolist(), strict=True))


def nearest(found, count):
    """Of a `brute_force` dictionary, the `count` nearest of every receiver; there must be no ties."""
    by_receiver = itertools.groupby(sorted(found, key=lambda key: (key[0], found[key])), key=lambda key: key[0])
    kept = [key for _, keys in by_receiver for key in list(keys)[:count]]
    return {key: found[key] for key in kept}


@pytest.mark.parametrize("max_neighbors", [None, 1, 4])
def test_edges_of_molecules_are_those_of_brute_force(molecules, max_neighbors):
    for atoms in molecules:
        expected = brute_force(atoms.positions, 2.5)
        if max_neighbors is not None:
            expected = nearest(expected, max_neighbors)
        edges = radius_edges(atoms.positions, 2.5, max_neighbors)
        assert as_dict(edges) == pytest.approx(expected, rel=1e-6)
        assert len(edges.senders) == len(expected)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, True)])
@pytest.mark.parametrize("max_neighbors", [None, 7])
def test_edges_in_a_cell_smaller_than_the_radius_are_those_of_brute_force(rng, pbc, max_neighbors):
    cell = np.array([[3.0, 0, 0], [1.2, 2.5, 0], [-0.7, 0.9, 2.8]])
    positions = rng.normal(size=(3, 3)) * 3  # outside the cell too
    expected = brute_force(positions, 5.0, cell, pbc, images=12)
    if max_neighbors is None:
        assert any(key[0] == key[1] for key in expected)  # the cell is so small that atoms see their own images
    else:
        # An image and its mirror image are equally far from their own atom, so only the distances are unique.
        expected = nearest(expected, max_neighbors)
    edges = radius_edges(positions, 5.0, max_neighbors, cell, np.array(pbc))
    assert len(edges.senders) == len(expected)
    np.testing.assert_allclose(edges.distances, [expected[key] for key in sorted(expected, key=order_of(expected))])
    if max_neighbors is None:
        assert as_dict(edges) == pytest.approx(expected, rel=1e-6)


def order_of(found):
    return lambda key: (key[0], found[key])


def test_a_cell_without_pbc_is_periodic_and_pbc_false_is_a_molecule():
    positions, cell = np.array([[0.5, 0, 0], [9.5, 0, 0]]), 10 * np.eye(3)
    edges = radius_edges(positions, 2.0, cell=cell)
    assert as_dict(edges) == pytest.approx({(0, 1, -1, 0, 0): 1, (1, 0, 1, 0, 0): 1})
    assert len(radius_edges(positions, 2.0, cell=cell, pbc=np.zeros(3, bool)).senders) == 0


@pytest.mark.parametrize("cell", [None, 50 * np.eye(3)])
def test_an_atom_at_the_radius_is_not_within_it(cell):
    positions = np.array([[0.0, 0, 0], [2, 0, 0]])
    assert len(radius_edges(positions, 2.0, cell=cell).senders) == 0
    assert len(radius_edges(positions, 2.0001, cell=cell).senders) == 2


def test_equally_near_neighbours_are_taken_by_index_whatever_the_rounding(rng):
    # Six neighbours of the origin at distance 1, moved by less than what counts as different.
    corners = np.concatenate([np.eye(3), -np.eye(3)])
    for _ in range(5):
        positions = np.concatenate([np.zeros((1, 3)), corners + rng.uniform(-1e-9, 1e-9, (6, 3))])
        edges = radius_edges(positions, 1.1, 3)
        assert edges.senders[edges.receivers == 0].tolist() == [1, 2, 3]


def test_equally_near_images_are_taken_by_shift():
    # Simple cubic, one atom: six images at 3 Å.
    edges = radius_edges(np.zeros((1, 3)), 3.1, 2, 3 * np.eye(3))
    assert edges.shifts.tolist() == [[-1, 0, 0], [0, -1, 0]]


def test_edges_come_by_receiver_and_the_nearest_first(molecules):
    edges = radius_edges(molecules[0].positions, 3.0)
    assert (np.diff(edges.receivers) >= 0).all()
    same = np.diff(edges.receivers) == 0
    assert (np.diff(edges.distances)[same] >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radius": 0.0}, "expected radius > 0"),
        ({"radius": float("nan")}, "expected radius > 0"),
        ({"radius": 1.0, "max_neighbors": 0}, "max_neighbors >= 1"),
        ({"radius": 1.0, "pbc": np.ones(3, bool)}, "there is no cell"),
        ({"radius": 1.0, "cell": np.diag([3.0, 3.0, 0.0])}, "not independent"),
    ],
)
def test_edges_refuse_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        radius_edges(np.zeros((1, 3)), **arguments)


def test_encodings_of_a_path_of_three_are_those_worked_by_hand():
    # L = [[1, -s, 0], [-s, 1, -s], [0, -s, 1]] with s = 1/sqrt(2): eigenvalues 0, 1, 2 with the vectors
    # (1, sqrt(2), 1)/2, (1, 0, -1)/sqrt(2) and (1, -sqrt(2), 1)/2, of which the middle is the largest component.
    root = 2**0.5
    expected = np.array([[1, root, 1], [root, 0, -root], [-1, root, -1]]).T / 2
    for edges in ([[0, 1], [1, 2]], [[0, 1, 1, 2], [1, 0, 2, 1]], [[0, 1, 1, 1], [1, 2, 1, 2]]):
        np.testing.assert_allclose(laplacian_encodings(3, np.array(edges), 3), expected, atol=1e-6)


def test_encodings_of_a_ring_are_its_waves():
    # All degrees are 2, so L = I - A/2: eigenvalue 1 - cos(2 pi m / 6), the constant first and the alternating last.
    vectors = laplacian_encodings(6, RING, 6)
    sixth = 6**-0.5
    np.testing.assert_allclose(vectors[:, 0], np.full(6, sixth), atol=1e-6)
    np.testing.assert_allclose(vectors[:, 5], sixth * np.array([1, -1, 1, -1, 1, -1]), atol=1e-6)
    angles = np.arange(6) * np.pi / 3
    for wave in (np.cos(angles), np.sin(angles)):  # in the span of the second and third
        np.testing.assert_allclose(vectors[:, 1:3] @ (vectors[:, 1:3].T @ wave), wave, atol=1e-6)


def test_encodings_of_random_graphs_are_eigenvectors_with_the_smallest_eigenvalues(rng):
    for _ in range(10):
        adjacency = np.triu(rng.random((12, 12)) < 0.3, 1)
        edges = np.argwhere(adjacency).T
        full = (adjacency | adjacency.T).astype(float)
        degrees = np.maximum(full.sum(axis=1), 1)
        laplacian = np.eye(12) - full / np.sqrt(np.outer(degrees, degrees))
        vectors = laplacian_encodings(12, edges, 5).astype(np.float64)
        values = np.linalg.eigvalsh(laplacian)[:5]
        np.testing.assert_allclose(laplacian @ vectors, vectors * values[None], atol=1e-5)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-5)
        largest = np.abs(vectors).argmax(axis=0)
        assert (vectors[largest, np.arange(5)] > 0).all()


def test_encodings_of_few_atoms_end_in_zeros():
    vectors = laplacian_encodings(2, np.array([[0], [1]]), 4)
    half = 2**-0.5
    np.testing.assert_allclose(vectors, [[half, half, 0, 0], [half, -half, 0, 0]], atol=1e-6)


def test_an_atom_without_links_has_an_encoding_of_its_own():
    # Eigenvalues 0 and 2 of the linked pair, 1 of the lone atom.
    vectors = laplacian_encodings(3, np.array([[0], [2]]), 3)
    np.testing.assert_allclose(vectors[:, 1], [0, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(laplacian_encodings(1, np.zeros((2, 0), int), 2), [[1, 0]])


def test_flattening_joins_atoms_edges_and_encodings(molecules):
    water = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    row = {"input_ids": molecules[0].numbers, "coords": molecules[0].positions}
    flat = flatten([(np.array([8, 1, 1]), water), row], radius=1.8, max_neighbors=3, num_encodings=2)
    n = len(molecules[0])
    assert flat.batch.tolist() == [0] * 3 + [1] * n
    assert flat.tokens.tolist() == [8, 1, 1, *molecules[0].numbers]
    np.testing.assert_allclose(flat.positions, np.concatenate([water, molecules[0].positions]), rtol=1e-6)
    alone = radius_edges(molecules[0].positions, 1.8, 3)
    of_row = flat.batch[flat.edges.receivers] == 1
    assert (flat.batch[flat.edges.senders] == flat.batch[flat.edges.receivers]).all()
    np.testing.assert_array_equal(flat.edges.senders[of_row], alone.senders + 3)
    np.testing.assert_array_equal(flat.edges.receivers[of_row], alone.receivers + 3)
    np.testing.assert_array_equal(flat.edges.distances[of_row], alone.distances)
    graph = np.stack([alone.senders, alone.receivers])
    np.testing.assert_array_equal(flat.encodings[3:], laplacian_encodings(n, graph, 2))


def test_flattening_sees_the_cell_of_a_row():
    row = {"input_ids": np.array([14]), "coords": np.zeros((1, 3)), "cell": 3 * np.eye(3), "pbc": np.ones(3, bool)}
    assert len(flatten([row], radius=3.1).edges.senders) == 6


def test_flattening_adds_nothing_unasked():
    flat = flatten([(np.array([1]), np.zeros((1, 3)))])
    assert flat.edges is None
    assert flat.encodings is None


@pytest.mark.parametrize(
    ("structures", "options", "message"),
    [
        ([], {}, "no structures"),
        ([(np.array([1, 1]), np.zeros((1, 3)))], {}, r"structure 0 has 2 tokens and positions of shape \(1, 3\)"),
        ([(np.array([1]), np.zeros((1, 3)))], {"num_encodings": 2}, "give a radius"),
    ],
)
def test_flattening_refuses_what_makes_no_sense(structures, options, message):
    with pytest.raises(ValueError, match=message):
        flatten(structures, **options)
