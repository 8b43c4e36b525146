"""Draws of classes, coordinates and lattices against their distributions, and projection onto Wyckoff positions.

Draws are tested at fixed keys; correct code would fail a test at one key in 100,000.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from crystalformer.network.transformer import Coordinate, Lattice
from crystalformer.sampling.draws import (
    Temperature,
    draw_class,
    draw_coordinate,
    draw_lattice,
    keep_likeliest,
    project_coordinate,
)
from crystalformer.symmetry.wyckoff import apply_operations, symmetry_tables

FALSE_ALARM = 1e-5
COUNT = 2000


def assert_uniform(values: np.ndarray) -> None:
    assert len(values) >= 1000
    assert scipy.stats.kstest(values, "uniform").pvalue > FALSE_ALARM


def many(function):
    """`function` of `COUNT` keys, compiled."""
    return jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(0), COUNT))


def test_likeliest_classes_are_kept_until_they_exceed_top_p():
    log_probs = jnp.log(jnp.array([0.2, 0.5, 0.05, 0.25]))
    for top_p, kept in ((0.0, [1]), (0.4, [1]), (0.6, [1, 3]), (0.8, [0, 1, 3]), (0.97, [0, 1, 2, 3]), (1.0, range(4))):
        found = np.asarray(jax.jit(keep_likeliest)(log_probs, jnp.asarray(top_p)))
        assert np.flatnonzero(found > -1e9).tolist() == list(kept)
        np.testing.assert_array_equal(found[np.array(kept)], log_probs[np.array(kept)])


def test_classes_are_as_frequent_as_their_probabilities_at_the_temperature():
    probs, temperature = np.array([0.2, 0.5, 0.05, 0.25]), 2.0
    drawn = many(lambda key: draw_class(key, jnp.log(probs.astype(np.float32)), jnp.float32(temperature), jnp.ones(())))
    expected = probs ** (1 / temperature) / (probs ** (1 / temperature)).sum()
    counts = np.bincount(np.asarray(drawn), minlength=4)
    assert scipy.stats.chisquare(counts, COUNT * expected).pvalue > FALSE_ALARM
    assert scipy.stats.chisquare(counts, COUNT * probs).pvalue < FALSE_ALARM


def test_coordinates_follow_a_von_mises_density_about_the_middle_of_the_cell():
    mixture = Coordinate(jnp.zeros(1), jnp.full(1, 0.5), jnp.full(1, 3.0))
    heat = Temperature(jnp.float32(1.5), jnp.ones(()), jnp.ones(()))
    angle = 2 * np.pi * (np.asarray(many(lambda key: draw_coordinate(key, mixture, heat))) - 0.5)
    assert scipy.stats.kstest(angle, scipy.stats.vonmises(3.0 / 1.5, loc=0.5).cdf).pvalue > FALSE_ALARM


def test_projection_is_the_first_operation_of_the_position():
    tables, point = symmetry_tables(), np.array([0.3, 0.9, 0.6], np.float32)
    project = jax.jit(jax.vmap(project_coordinate, in_axes=(None, None, None, 0)))
    for G, W in ((2, 1), (14, 5), (166, 6), (225, 10), (230, 8)):
        found = project(jnp.asarray(G), jnp.asarray(W), jnp.asarray(point), jnp.arange(3))
        (expected,) = apply_operations(tables.first_op[None, G - 1, W], point)
        assert ((found >= 0) & (found < 1)).all()
        assert np.abs((found - expected + 0.5) % 1 - 0.5).max() < 1e-6


def test_all_six_lattice_parameters_come_from_one_component():
    mixture = Lattice(
        jnp.log(jnp.array([0.3, 0.7])), jnp.outer(jnp.array([3.0, 6.0]), jnp.ones(6)), jnp.full((2, 6), 0.1)
    )
    keys = jax.random.split(jax.random.key(0), COUNT)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def draw(key, heat):
        return draw_lattice(key, jnp.asarray(1), mixture, heat)

    L = np.asarray(draw(keys, Temperature(*jnp.ones(3))))
    second = L > 4.5
    assert (second == second[:, :1]).all()
    assert scipy.stats.binomtest(int(second[:, 0].sum()), COUNT, 0.7).pvalue > FALSE_ALARM
    z = (L - np.where(second, 6, 3)) / 0.1
    np.testing.assert_allclose(np.cov(z.T), np.eye(6), atol=4.5 * (2 / COUNT) ** 0.5)  # parameters are independent then
    assert_uniform(scipy.special.ndtr(z).ravel())
    hot = np.asarray(draw(keys, Temperature(jnp.asarray(4.0), jnp.ones(()), jnp.asarray(0.0))))
    assert_uniform(scipy.special.ndtr((hot - 6) / 0.2).ravel())  # the likelier component, twice as wide
