"""Densities against SciPy, and draws against densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from crystalformer.network.distributions import (
    mixture_log_prob,
    normal_log_prob,
    sample_von_mises,
    von_mises_log_prob,
    wrap_angle,
)

DRAWS = 20_000


@pytest.mark.parametrize("kappa", [1e-3, 0.1, 1.0, 30.0, 1e3, 1e4])
def test_von_mises_is_scipys_and_integrates_to_one(kappa):
    # A grid over six widths of the peak and one over the whole circle.
    width = min(np.pi, 6 / kappa**0.5)
    angle = np.linspace(-width, width, 2001).astype(np.float32)
    log_prob = np.asarray(von_mises_log_prob(jnp.asarray(angle), jnp.zeros(2001), jnp.full(2001, kappa)), np.float64)
    np.testing.assert_allclose(log_prob, scipy.stats.vonmises(kappa).logpdf(angle), rtol=1e-4, atol=2e-3)
    total = scipy.integrate.simpson(np.exp(log_prob), x=angle.astype(np.float64))
    np.testing.assert_allclose(total, 1, rtol=1e-4)


def test_von_mises_is_periodic_and_moves_with_its_location():
    angle, kappa = jnp.linspace(-3, 3, 7), jnp.full(7, 2.0)
    shifted = von_mises_log_prob(angle + 2 * np.pi, jnp.full(7, 1.5), kappa)
    np.testing.assert_allclose(shifted, scipy.stats.vonmises(2.0, loc=1.5).logpdf(angle), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kappa", [0.0, 1e-6, 1e4, 1e8])
def test_von_mises_gradients_are_finite_at_the_ends(kappa):
    gradient = jax.grad(von_mises_log_prob, argnums=(0, 1, 2))(jnp.float32(0.3), jnp.float32(0.1), jnp.float32(kappa))
    assert np.isfinite(gradient).all()


@pytest.fixture(scope="module")
def draw():
    """Many draws about a location, for any concentration by one compilation."""
    keys = jax.random.split(jax.random.key(3), DRAWS)
    compiled = jax.jit(jax.vmap(sample_von_mises, in_axes=(0, None, None)))
    return lambda location, kappa: np.asarray(compiled(keys, jnp.float32(location), jnp.float32(kappa)), np.float64)


@pytest.mark.parametrize("kappa", [0.0, 0.01, 1.0, 30.0, 1e3, 1e5])
def test_von_mises_draws_follow_their_density(draw, kappa):
    """Kolmogorov and Smirnov: a right sampler fails for one key in 100,000, and the key is fixed."""
    location = 0.7
    angle = draw(location, kappa)
    assert (angle >= -np.pi).all()
    assert (angle <= np.pi).all()
    deviation = (angle - location + np.pi) % (2 * np.pi) - np.pi
    # Beyond kappa = 1e4 a von Mises is a normal to within 1e-5 of the cumulative distribution.
    exact = scipy.stats.vonmises(kappa) if 0 < kappa <= 1e4 else scipy.stats.norm(scale=max(kappa, 1) ** -0.5)
    exact = scipy.stats.uniform(-np.pi, 2 * np.pi) if kappa == 0 else exact
    assert scipy.stats.kstest(deviation, exact.cdf).pvalue > 1e-5


def test_von_mises_draws_do_not_depend_on_the_number_of_attempts():
    keys = jax.random.split(jax.random.key(4), DRAWS)
    few = jax.jit(jax.vmap(lambda key: sample_von_mises(key, jnp.float32(0), jnp.float32(2.0), attempts=1)))(keys)
    assert scipy.stats.kstest(np.asarray(few, np.float64), scipy.stats.vonmises(2.0).cdf).pvalue > 1e-5


def test_normal_mixture_by_hand():
    """0.25 N(1; 0, 1) + 0.75 N(1; 2, 0.5) = 0.25 * 0.2419707 + 0.75 * 0.1079819 = 0.1414791."""
    log_prob = normal_log_prob(jnp.ones(2), jnp.array([0.0, 2.0]), jnp.array([1.0, 0.5]))
    np.testing.assert_allclose(np.exp(log_prob), [0.2419707, 0.1079819], rtol=1e-6)
    mixture = mixture_log_prob(jnp.log(jnp.array([0.25, 0.75])), log_prob)
    np.testing.assert_allclose(np.exp(mixture), 0.1414791, rtol=1e-6)


def test_a_mixture_of_improbable_components_stays_finite():
    value, gradient = jax.value_and_grad(mixture_log_prob, argnums=1)(jnp.log(jnp.full(2, 0.5)), jnp.full(2, -1e4))
    np.testing.assert_allclose(value, -1e4, rtol=1e-6)
    np.testing.assert_allclose(gradient, [0.5, 0.5])


def test_wrapped_angles_are_the_same_angles():
    angle = np.linspace(-20, 20, 401).astype(np.float32)
    wrapped = np.asarray(wrap_angle(jnp.asarray(angle)), np.float64)
    assert (wrapped >= -np.pi - 1e-6).all()
    assert (wrapped < np.pi + 1e-6).all()
    np.testing.assert_allclose(np.exp(1j * wrapped), np.exp(1j * angle.astype(np.float64)), atol=5e-6)


def test_a_draw_at_a_concentration_that_is_not_a_number_ends():
    drawn = sample_von_mises(jax.random.key(0), jnp.zeros(()), jnp.full((), jnp.nan))
    assert jnp.isnan(drawn)
