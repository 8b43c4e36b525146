"""Nearest images against ASE, images within a cutoff against brute force, and the envelope."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.geometry import find_mic

from atomformer.data.periodic import envelope, image_edges, nearest_images, safe_norm
from matterform.reduction import minkowski_cell

PATTERNS = list(itertools.product((False, True), repeat=3))


def skewed_cells(rng, count):
    """Cells of every shape: each is a random one to which multiples of its own vectors are added."""
    shears = np.eye(3)[None] + np.triu(rng.integers(-3, 4, (count, 3, 3)), 1) * (rng.random((count, 1, 1)) < 0.7)
    return shears @ (rng.normal(size=(count, 3, 3)) * rng.uniform(1, 4, (count, 3, 1)) + np.eye(3)[None])


@pytest.mark.parametrize("pbc", PATTERNS, ids=str)
def test_nearest_images_are_those_of_ase(rng, pbc):
    cells, displacements = skewed_cells(rng, 60), rng.normal(0, 10, (60, 20, 3))
    periodic = np.array(pbc)
    with jax.enable_x64(True):
        nearest = jax.jit(nearest_images)
        for cell, vectors in zip(cells, displacements, strict=True):
            reduced = minkowski_cell(cell, periodic)
            found = np.asarray(nearest(jnp.asarray(vectors), jnp.asarray(reduced), jnp.asarray(periodic)))
            _, expected = find_mic(vectors, np.where(periodic[:, None], cell, 0), periodic)  # pyright: ignore
            np.testing.assert_allclose(np.linalg.norm(found, axis=-1), expected, rtol=1e-9, atol=1e-9)
            # What was subtracted is a lattice vector along the periodic directions.
            steps = (vectors - found) @ np.linalg.inv(cell)
            np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
            assert np.abs(steps[:, ~periodic]).max(initial=0) < 1e-6


@pytest.mark.parametrize("pbc", PATTERNS, ids=str)
def test_reduced_cells_span_the_same_lattice(rng, pbc):
    periodic = np.array(pbc)
    for cell in skewed_cells(rng, 50):
        reduced = minkowski_cell(cell, periodic)
        if not periodic.any():
            np.testing.assert_array_equal(reduced, np.eye(3))
            continue
        # Integer combinations of the periodic vectors, in both directions.
        steps = reduced[periodic] @ np.linalg.pinv(cell[periodic])
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
        np.testing.assert_allclose(np.round(steps) @ cell[periodic], reduced[periodic], atol=1e-8)
        assert abs(np.linalg.det(np.round(steps))) == pytest.approx(1)
        others = reduced[~periodic]
        np.testing.assert_allclose(others @ reduced.T, np.eye(3)[~periodic], atol=1e-8)


def test_cells_without_missing_vectors_are_completed():
    reduced = minkowski_cell(np.diag([3.0, 4.0, 0.0]), np.array([True, True, False]))
    np.testing.assert_allclose(np.abs(np.linalg.det(reduced)), 12)


def test_slopes_pass_to_displacements_and_cell():
    """Of a displacement that is wrapped by the first vector, the length follows that vector with the opposite sign."""
    cell, pbc = jnp.diag(jnp.array([5.0, 6.0, 7.0])), jnp.ones(3, bool)
    vector = jnp.array([4.0, 1.0, 0.0])  # nearest image (-1, 1, 0)

    def length(vector, cell):
        return safe_norm(nearest_images(vector, cell, pbc))

    value, (by_vector, by_cell) = jax.value_and_grad(length, argnums=(0, 1))(vector, cell)
    assert value == pytest.approx(2**0.5)
    direction = np.array([-1, 1, 0]) / 2**0.5
    np.testing.assert_allclose(by_vector, direction, atol=1e-6)
    np.testing.assert_allclose(by_cell, np.outer([-1, 0, 0], direction), atol=1e-6)


def test_the_norm_has_no_slope_at_zero():
    np.testing.assert_array_equal(jax.grad(lambda x: safe_norm(x).sum())(jnp.zeros((2, 3))), np.zeros((2, 3)))
    np.testing.assert_allclose(safe_norm(jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])), [5, 0])


@pytest.mark.parametrize("pbc", PATTERNS, ids=str)
def test_edges_are_all_images_within_the_cutoff(rng, pbc):
    periodic, cutoff = np.array(pbc), 3.5
    cell = np.diag([3.0, 2.6, 4.0]) + 0.4 * rng.normal(size=(3, 3))
    positions = rng.uniform(-6, 6, (4, 3))  # far outside of the cell too
    edges = image_edges(positions, cell, periodic, cutoff)
    found = sorted(zip(edges.first.tolist(), edges.second.tolist(), map(tuple, edges.shift.tolist()), strict=True))
    reach = [range(-12, 13) if repeats else [0] for repeats in pbc]
    expected = [
        (i, j, shift)
        for shift in itertools.product(*reach)
        for i, j in itertools.product(range(4), repeat=2)
        if 0 < np.linalg.norm(positions[j] + shift @ cell - positions[i]) < cutoff
    ]
    assert found == sorted(expected)
    assert edges.mask.all()
    assert edges.shift.shape == (len(expected), 3)


def test_the_envelope_falls_from_one_to_zero_without_a_kink():
    distances = jnp.array([0.0, 1.5, 3.0, 5.9999, 6.0, 8.0, 1e4])
    expected = [1, 0.5 * (1 + np.cos(np.pi / 4)), 0.5, 0, 0, 0, 0]
    np.testing.assert_allclose(envelope(distances, 6.0), expected, atol=1e-6)
    slopes = jax.vmap(jax.grad(lambda d: envelope(d, 6.0)))(distances)
    np.testing.assert_allclose(slopes[jnp.array([0, 3, 4, 5, 6])], np.zeros(5), atol=1e-4)
    assert slopes[2] == pytest.approx(-np.pi / 12, rel=1e-5)
