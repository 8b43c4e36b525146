"""Cells against ASE and NumPy over random ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.cell import Cell
from jax.test_util import check_grads

from matterform.cell import complete, inverse, volume


def test_volumes_are_those_of_ase(rng):
    with jax.enable_x64(True):
        for matrix in rng.normal(size=(200, 3, 3)) * 5:
            np.testing.assert_allclose(volume(matrix), Cell(matrix).volume, rtol=1e-10)


def test_left_and_right_handed_cells_have_positive_volume():
    matrix = jnp.diag(jnp.array([2.0, 3.0, 4.0]))
    assert volume(matrix) == volume(matrix[jnp.array([1, 0, 2])]) == 24


def test_gradients_agree_with_finite_differences(rng):
    with jax.enable_x64(True):
        matrix = rng.normal(size=(3, 3)) + 5 * np.eye(3)
        check_grads(jax.jit(volume), (matrix,), order=1, modes=["rev"])


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
