"""Minkowski reduction: the same lattice with vectors that no sum shortens, whatever the path."""

import itertools

import numpy as np
import pytest

from matterform.reduction import fast_minkowski_cell, minkowski_cell


def skewed(rng):
    """A random lattice in a cell far from reduced, and its volume."""
    cell = 4 * np.eye(3) + rng.normal(size=(3, 3))
    for _ in range(4):
        row, other = rng.permutation(3)[:2]
        cell[row] += rng.integers(-3, 4) * cell[other]
    return cell


@pytest.mark.parametrize("seed", range(30))
def test_both_paths_give_the_shortest_vectors_of_the_same_lattice(seed):
    cell = skewed(np.random.default_rng(seed))
    fast, slow = fast_minkowski_cell(cell), minkowski_cell(cell)
    for reduced in (fast, slow):
        change = np.linalg.solve(cell.T, reduced.T).T  # whole numbers, of determinant 1 or -1
        np.testing.assert_allclose(change, np.round(change), atol=1e-8)
        assert abs(np.linalg.det(change)) == pytest.approx(1)
        lengths = np.sort(np.linalg.norm(reduced, axis=-1))
        for combination in itertools.product((-1, 0, 1), repeat=3):
            if np.count_nonzero(combination) > 1:
                longest = max(np.linalg.norm(reduced[i]) for i in range(3) if combination[i])
                assert np.linalg.norm(combination @ reduced) >= longest - 1e-8
    np.testing.assert_allclose(lengths, np.sort(np.linalg.norm(fast, axis=-1)), atol=1e-8)


def test_a_reduced_cell_is_left_alone():
    cell = np.diag([3.0, 4.0, 5.0])
    assert fast_minkowski_cell(cell) is cell
    np.testing.assert_allclose(np.sort(np.linalg.norm(minkowski_cell(cell), axis=-1)), [3, 4, 5])


def test_directions_without_periods_become_unit_vectors():
    reduced = minkowski_cell(np.array([[3.0, 0, 0], [6.0, 4.0, 0], [9.0, 9.0, 9.0]]), (True, True, False))
    np.testing.assert_allclose(np.sort(np.linalg.norm(reduced[:2], axis=-1)), [3, 4])
    np.testing.assert_allclose(np.abs(reduced[2]), [0, 0, 1])
    np.testing.assert_array_equal(minkowski_cell(np.zeros((3, 3)), (False, False, False)), np.eye(3))
