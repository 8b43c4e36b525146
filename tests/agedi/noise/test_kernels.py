"""Densities integrate to one, noises are their gradients, draws have their moments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from agedi.noise.kernels import (
    atom_normal,
    draw_truncated,
    dual_vectors,
    inverse_log_ndtr,
    lattice_sums,
    reflect,
    reflected_normal,
    truncated_normal,
    wrapped_normal,
)
from agedi.noise.noisers import choose_sigma_max
from matterform.cell import wrap

CELLS = {
    "cubic": (np.eye(3) * 4.0, [True] * 3),
    "skewed": (np.array([[4.0, 0.3, 0.0], [1.5, 3.0, 0.2], [-1.0, 0.8, 6.0]]), [True] * 3),
    "layer": (np.array([[3.0, 0.0, 0.0], [1.5, 2.6, 0.0], [0.0, 0.0, 9.0]]), [True, True, False]),
    "wire": (np.array([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [1.0, 0.0, 2.5]]), [False, False, True]),
    "molecule": (np.eye(3), [False] * 3),
}
STDS = [0.1, 0.7, 1.1, 1.3, 1.9, 2.7, 6.0]


def reference(displacements, std, cell, pbc):
    """A brute-force sum over images in double precision."""
    counts = [12 if periodic else 0 for periodic in pbc]
    steps = np.array(list(itertools.product(*(range(-c, c + 1) for c in counts))))
    offsets = displacements[:, None] - steps @ cell
    exponents = -np.sum(offsets**2, axis=-1) / (2 * std**2)
    top = exponents.max(axis=1, keepdims=True)
    weights = np.exp(exponents - top)
    log_density = np.log(weights.sum(axis=1)) + top[:, 0] - 3 * np.log(std) - 1.5 * np.log(2 * np.pi)
    weights /= weights.sum(axis=1, keepdims=True)
    return log_density, np.einsum("nl,nlc->nc", weights, offsets) / std


@pytest.mark.parametrize("name", CELLS)
def test_wrapped_normal_equals_a_sum_over_thousands_of_images(name, rng):
    cell, pbc = CELLS[name][0], np.array(CELLS[name][1])
    sums = lattice_sums(cell[None], pbc[None])
    # Far outside the cell along periodic vectors, near the origin along the others.
    displacements = rng.normal(0, 2, (20, 3)) + rng.integers(-2, 3, (20, 3)) * pbc @ cell
    near = np.asarray(
        displacements - np.round(displacements @ np.asarray(dual_vectors(jnp.asarray(cell), jnp.asarray(pbc))).T) @ cell
    )
    for std in STDS:
        expected = reference(near, std, cell, pbc)
        found = wrapped_normal(
            *(jnp.asarray(x, jnp.float32) for x in (displacements, std, cell)), jnp.asarray(pbc), sums
        )
        np.testing.assert_allclose(found[0], expected[0], rtol=2e-5, atol=2e-4)
        np.testing.assert_allclose(found[1], expected[1], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("std", [0.4, 1.1, 1.3, 5.0])
def test_wrapped_normal_is_normalised_and_its_noise_is_its_gradient(std):
    cell, pbc = CELLS["skewed"]
    with jax.enable_x64(True):
        cell, pbc, std = jnp.asarray(cell), jnp.asarray(pbc), jnp.float64(std)
        sums = lattice_sums(np.asarray(cell)[None], np.asarray(pbc)[None])
        axis = (np.arange(24) + 0.5) / 24  # periodic and smooth: the midpoint rule is exact to rounding
        points = jnp.asarray(list(itertools.product(axis, repeat=3))) @ cell
        log_density, noise = wrapped_normal(points, std, cell, pbc, sums)
        assert float(jnp.mean(jnp.exp(log_density)) * jnp.linalg.det(cell)) == pytest.approx(1.0, abs=1e-5)
        one = points[100:105]
        gradient = jax.jacrev(lambda x: jnp.sum(wrapped_normal(x, std, cell, pbc, sums)[0]))(one)
        np.testing.assert_allclose(noise[100:105], -std * gradient, atol=2e-5)


def test_the_noise_does_not_jump_half_a_cell_away():
    cell, pbc = jnp.eye(3) * 4.0, jnp.array([True] * 3)
    sums = lattice_sums(np.asarray(cell)[None], np.asarray(pbc)[None])
    sides = jnp.array([[1.999, 0.3, 0.0], [2.001, 0.3, 0.0]])
    noise = wrapped_normal(sides, jnp.float32(0.9), cell, pbc, sums)[1]
    np.testing.assert_allclose(noise[0], noise[1], atol=0.02)  # to the nearest image it would jump by 4 / 0.9


def test_sums_for_many_cells_serve_each_of_them():
    cells = np.stack([CELLS["cubic"][0], CELLS["layer"][0], CELLS["wire"][0]])
    pbcs = np.array([CELLS[name][1] for name in ("cubic", "layer", "wire")])
    sums = lattice_sums(cells, pbcs)
    for cell, pbc in zip(cells, pbcs, strict=True):
        alone = lattice_sums(cell[None], pbc[None])
        assert np.all(np.array(sums.images) >= alone.images)
        x, std = jnp.asarray([[0.7, -0.4, 1.0]]), jnp.float32(0.8)
        both = [wrapped_normal(x, std, jnp.asarray(cell, jnp.float32), jnp.asarray(pbc), s)[1] for s in (sums, alone)]
        np.testing.assert_allclose(*both, atol=1e-4)


def test_wrapping_equals_ase(rng):
    from ase.geometry import wrap_positions

    for cell, pbc in CELLS.values():
        positions = rng.normal(0, 10, (30, 3))
        ours = wrap(*(jnp.asarray(x, jnp.float32) for x in (positions, cell)), jnp.asarray(pbc))
        theirs = wrap_positions(positions, cell, pbc=pbc, eps=0)
        # Where a cell is not periodic in all directions the two may choose different images.
        shifts = (np.asarray(ours) - theirs) @ np.linalg.inv(cell)
        np.testing.assert_allclose(shifts, np.round(shifts) * pbc, atol=1e-5)
        if all(pbc):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("std", [0.05, 0.6, 1.7, 1.9, 9.0])
def test_reflected_normal_is_normalised_and_its_noise_is_its_gradient(std):
    with jax.enable_x64(True):
        low, high, std = jnp.float64(2.0), jnp.float64(5.0), jnp.float64(std)
        z = jnp.linspace(2.0, 5.0, 20001)
        for start in (2.0, 2.3, 4.9):
            log_density, noise = reflected_normal(z, jnp.full(z.shape, start), std, low, high)
            assert float(jnp.trapezoid(jnp.exp(log_density), z)) == pytest.approx(1.0, abs=1e-5)
            few = slice(100, -100, 900)
            gradient = jax.grad(
                lambda x, s=start: jnp.sum(reflected_normal(x, jnp.full(x.shape, s), std, low, high)[0])
            )(z[few])
            np.testing.assert_allclose(noise[few], -std * gradient, atol=2e-4)
            np.testing.assert_allclose(noise[jnp.array([0, -1])], 0.0, atol=1e-4)  # no flow through the walls


def test_reflected_normal_is_what_mirrors_make_of_a_normal():
    low, high, std, start = 2.0, 5.0, 1.4, 4.2
    draws = reflect(start + std * jax.random.normal(jax.random.key(0), (20_000,)), jnp.float32(low), jnp.float32(high))
    assert float(draws.min()) >= low
    assert float(draws.max()) <= high
    grid = np.linspace(low, high, 2001)
    density = np.exp(
        reflected_normal(*(jnp.asarray(x, jnp.float32) for x in (grid, np.full(2001, start), std, low, high)))[0]
    )
    cumulative = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2)) * (grid[1] - grid[0])
    assert (
        scipy.stats.kstest(np.asarray(draws), lambda z: np.interp(z, grid, cumulative)).statistic < 2.47 / 20_000**0.5
    )


def test_a_large_compiled_batch_gives_the_same_density():
    """Guards against XLA's wrong sum, which showed in batches of this size."""
    starts, heights = jnp.linspace(2.004, 4.996, 400), jnp.linspace(2.0, 5.0, 401)

    def densities(std):
        low, high = jnp.float32(2.0), jnp.float32(5.0)
        return jax.vmap(lambda z: reflected_normal(jnp.full(starts.shape, z), starts, std, low, high)[0])(heights)

    np.testing.assert_allclose(jax.jit(densities)(jnp.float32(3.0)), densities(jnp.float32(3.0)), atol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(3.0, 0.4), (2.0, 1.0), (4.9, 3.0), (2.0, 0.05), (3.0, 40.0)])
def test_truncated_draws_have_scipys_distribution(mean, std):
    low, high = 2.0, 5.0
    uniform = jax.random.uniform(jax.random.key(1), (20_000,))
    draws = draw_truncated(
        uniform, *(jnp.full(s, x, jnp.float32) for s, x in (((20_000,), mean), ((), std), ((), low), ((), high)))
    )
    exact = scipy.stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    assert scipy.stats.kstest(np.asarray(draws), exact.cdf).statistic < 2.47 / 20_000**0.5
    z = np.linspace(2.01, 4.99, 50)
    found = truncated_normal(*(jnp.asarray(x, jnp.float32) for x in (z, np.full(50, mean), std, low, high)))
    np.testing.assert_allclose(found[0], exact.logpdf(z), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], (z - mean) / std, rtol=1e-4)


def test_truncated_draws_do_not_saturate_in_the_tails():
    """Between 9 and 10 standard deviations the distribution function itself rounds to 1."""
    low, high = 9.0, 10.0
    uniform = jnp.linspace(0.01, 0.99, 99)
    draws = draw_truncated(uniform, jnp.zeros(99), jnp.float32(1.0), jnp.float32(low), jnp.float32(high))
    exact = scipy.stats.truncnorm(low, high).ppf(1 - np.asarray(uniform, float))
    np.testing.assert_allclose(np.sort(draws), np.sort(exact), atol=2e-4)
    assert len(np.unique(draws)) == 99


def test_inverse_of_the_log_distribution_function():
    z = np.array([-30.0, -12.0, -6.0, -3.0, -2.5, -1.0, -0.1, 0.5])
    np.testing.assert_allclose(
        inverse_log_ndtr(jnp.asarray(scipy.stats.norm.logcdf(z), jnp.float32)), z, rtol=2e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["cubic", "skewed", "layer"])
def test_the_chosen_sigma_makes_the_cell_uniform(name):
    """Total variation between the wrapped normal at sigma_max and the uniform density, along the widest spacing."""
    cell, pbc = CELLS[name][0], np.array(CELLS[name][1])
    sigma = choose_sigma_max(cell[None], pbc[None])
    h = np.max(1 / np.linalg.norm(np.linalg.pinv(cell[pbc]), axis=0))
    x = (np.arange(2000) + 0.5) / 2000 * h
    density = sum(scipy.stats.norm.pdf(x, k * h, sigma) for k in range(-8, 9))
    assert 0.5 * np.mean(np.abs(density * h - 1)) < 0.01


def test_noise_of_an_atom_does_not_depend_on_padding():
    np.testing.assert_array_equal(atom_normal(jax.random.key(0), 3), atom_normal(jax.random.key(0), 9)[:3])
