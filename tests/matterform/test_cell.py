"""Cells against ASE and pymatgen over random ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.cell import Cell
from jax.test_util import check_grads
from pymatgen.core import Lattice

from matterform.cell import complete, inverse, matrix_to_parameters, parameters_to_matrix, volume


@pytest.fixture
def cells(rng):
    """200 lengths (Å) and angles (rad) of possible cells, far from flat."""
    lengths = rng.uniform(2.0, 20.0, (200, 3))
    angles = np.deg2rad(rng.uniform(60.0, 115.0, (200, 3)))
    return lengths, angles


def test_matrix_agrees_with_ase_and_pymatgen(cells):
    with jax.enable_x64(True):
        for lengths, angles in zip(*cells, strict=True):
            matrix = np.asarray(parameters_to_matrix(lengths, angles))
            parameters = [*lengths, *np.rad2deg(angles)]
            np.testing.assert_allclose(matrix, Cell.fromcellpar(parameters), atol=1e-11)
            np.testing.assert_allclose(matrix, Lattice.from_parameters(*parameters, vesta=True).matrix, atol=1e-11)


def test_parameters_agree_with_ase_and_pymatgen_for_any_orientation(rng):
    with jax.enable_x64(True):
        for matrix in rng.normal(size=(200, 3, 3)) * 5:
            lengths, angles = matrix_to_parameters(matrix)
            found = [*lengths, *np.rad2deg(angles)]
            np.testing.assert_allclose(found, Cell(matrix).cellpar(), rtol=1e-10)
            np.testing.assert_allclose(found, Lattice(matrix).parameters, rtol=1e-10)
            np.testing.assert_allclose(volume(matrix), Cell(matrix).volume, rtol=1e-10)


def test_parameters_survive_the_round_trip_in_float32(cells):
    def round_trip(lengths, angles):
        return matrix_to_parameters(parameters_to_matrix(lengths, angles))

    lengths, angles = (np.float32(values) for values in cells)
    found_lengths, found_angles = jax.vmap(round_trip)(lengths, angles)
    np.testing.assert_allclose(found_lengths, lengths, rtol=1e-6)
    np.testing.assert_allclose(found_angles, angles, atol=2e-6)


def test_left_and_right_handed_cells_have_positive_volume():
    matrix = jnp.diag(jnp.array([2.0, 3.0, 4.0]))
    assert volume(matrix) == volume(matrix[jnp.array([1, 0, 2])]) == 24


def test_gradients_agree_with_finite_differences(cells):
    with jax.enable_x64(True):
        parameters = cells[0][0], cells[1][0]
        matrix = parameters_to_matrix(*parameters)
        check_grads(jax.jit(parameters_to_matrix), parameters, order=1, modes=["rev"])
        check_grads(jax.jit(matrix_to_parameters), (matrix,), order=1, modes=["rev"])
        check_grads(jax.jit(volume), (matrix,), order=1, modes=["rev"])


def test_impossible_angles_give_a_flat_cell_with_finite_gradients():
    lengths, angles = jnp.array([3.0, 4.0, 5.0]), jnp.deg2rad(jnp.array([150.0, 40.0, 60.0]))
    assert volume(parameters_to_matrix(lengths, angles)) == 0
    gradient = jax.grad(lambda x: volume(parameters_to_matrix(lengths, x)))(angles)
    assert jnp.isfinite(gradient).all()


def test_inverse_equals_that_of_numpy(rng):
    for _ in range(20):
        matrix = (rng.normal(size=(3, 3)) + 3 * np.eye(3)).astype(np.float32)
        np.testing.assert_allclose(inverse(matrix), np.linalg.inv(matrix.astype(float)), atol=1e-5)


@pytest.mark.parametrize("pbc", list(itertools.product([True, False], repeat=3)))
def test_complete_cell_has_unit_normals_where_it_is_not_periodic(pbc, rng):
    pbc = np.array(pbc)
    for _ in range(10):
        matrix = rng.normal(size=(3, 3)).astype(np.float32) * 4
        for given in (matrix, np.where(pbc[:, None], matrix, np.float32(0))):
            full = np.asarray(complete(given, pbc), float)
            np.testing.assert_array_equal(full[pbc], matrix[pbc])
            added = full[~pbc]
            np.testing.assert_allclose(added @ added.T, np.eye(len(added)), atol=1e-5)
            np.testing.assert_allclose(added @ matrix[pbc].T, 0, atol=1e-5)
