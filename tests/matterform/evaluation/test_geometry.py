import itertools

import numpy as np
import pytest
from pymatgen.core import Lattice

from matterform.evaluation.geometry import defect, is_comparable, nearest_image_distances


def test_distances_of_rock_salt_are_the_known_ones(rock_salt):
    primitive = rock_salt(5.64).get_primitive_structure()
    distances = nearest_image_distances(primitive.lattice.matrix, primitive.frac_coords)
    neighbour, own_image = 5.64 / 2, 5.64 / 2**0.5
    np.testing.assert_allclose(distances, [[own_image, neighbour], [neighbour, own_image]], rtol=1e-9)


def test_atoms_far_outside_the_cell_are_brought_back():
    distances = nearest_image_distances(3.0 * np.eye(3), np.array([[0.1, 0, 0], [-7.1, 12, 3]]))
    assert distances[0, 1] == pytest.approx(0.2 * 3)


def skewed(rng):
    """The same lattice in a cell that is far from reduced: rows plus multiples of other rows."""
    change = np.eye(3, dtype=int)
    for _ in range(5):
        i, j = rng.permutation(3)[:2]
        step = np.eye(3, dtype=int)
        step[i, j] = rng.integers(-4, 5)
        change = step @ change
    return change


def test_skewed_cells_give_the_distances_of_a_search_through_many_images(rng):
    shifts = np.array(list(itertools.product(range(-4, 5), repeat=3)))
    origin = len(shifts) // 2
    for _ in range(100):
        cell = np.diag(rng.uniform(1, 8, 3)) + rng.uniform(-0.4, 0.4, (3, 3))
        frac = rng.random((4, 3))
        images = (frac[:, None] - frac[None])[:, :, None] @ cell + shifts @ cell
        expected = np.linalg.norm(images, axis=-1)
        expected[np.arange(4), np.arange(4), origin] = np.inf
        change = skewed(rng)
        found = nearest_image_distances(change @ cell, frac @ np.linalg.inv(change))
        np.testing.assert_allclose(found, expected.min(-1), atol=1e-9)


def test_defects_are_named(absurd, rock_salt):
    assert defect(rock_salt()) == ""
    assert defect(absurd["no atoms"]) == "no atoms"
    assert defect(absurd["nan cell"]) == "cell or coordinates are not finite"
    assert defect(absurd["nan coordinates"]) == "cell or coordinates are not finite"
    assert defect(absurd["impossible angles"]).startswith("cell volume")
    assert defect(absurd["infinite volume"]).startswith("cell volume")
    assert defect(absurd["needle"]) == ""


def test_the_smallest_volume_is_allowed_and_less_is_not(rock_salt):
    flat = rock_salt()
    flat.lattice = Lattice.from_parameters(1, 1, 0.0999, 90, 90, 90)
    assert defect(flat) == "cell volume too small: 0.0999 Å³, below 0.1 Å³"
    assert defect(flat, min_volume_ang3=0.09) == ""


def test_needles_and_chains_are_not_compared(absurd, rock_salt):
    comparable = {name for name, structure in absurd.items() if is_comparable(structure)}
    assert comparable == {"overlap"}
    layered, chain, huge = rock_salt(), rock_salt(), rock_salt(501.0)
    layered.lattice = Lattice.from_parameters(3, 3, 60, 90, 90, 120)
    chain.lattice = Lattice.from_parameters(0.49, 5, 5, 90, 90, 90)
    assert is_comparable(layered)
    assert not is_comparable(chain)
    assert is_comparable(rock_salt(499.0))
    assert not is_comparable(huge)
