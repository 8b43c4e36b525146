"""Schedules against quadrature, kernels against the differential equations that they solve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from agedi.config import DiffusionConfig
from agedi.noise.sdes import make_level, make_schedule, make_sde, noise_level

TIMES = np.array([0.0, 1e-4, 0.1, 0.37, 0.5, 0.9, 1.0])
SDES = {
    "ve linear": DiffusionConfig(schedule="linear", sigma_max=4.0),
    "ve exponential": DiffusionConfig(schedule="exponential", sigma_max=4.0),
    "ve cosine": DiffusionConfig(schedule="cosine", sigma_max=4.0),
    "vp linear": DiffusionConfig(noisers=("Positions",), sde="vp", schedule="linear"),
    "vp exponential": DiffusionConfig(noisers=("Positions",), sde="vp", schedule="exponential"),
    "vp cosine": DiffusionConfig(noisers=("Positions",), sde="vp", schedule="cosine"),
}


@pytest.mark.parametrize("name", ["linear", "exponential", "cosine"])
def test_schedules_reach_their_ends_and_integrate_their_values(name):
    with jax.enable_x64(True):
        schedule = make_schedule(name, 0.1, 20.0)

        def value(t):
            return schedule.minimum + float(schedule.increment(jnp.float64(t)))

        assert value(0.0) == pytest.approx(0.1)
        assert value(1.0) == pytest.approx(20.0)
        for t in TIMES:
            expected, _ = scipy.integrate.quad(value, 0, t, epsabs=1e-12)
            assert float(schedule.integral(jnp.float64(t))) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        for t in TIMES[2:-1]:
            slope = (value(t + 1e-5) - value(t - 1e-5)) / 2e-5
            assert float(schedule.derivative(jnp.float64(t))) == pytest.approx(slope, rel=1e-6)


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="linear, exponential, cosine; got 'square'"):
        make_schedule("square", 0.1, 1.0)


@pytest.mark.parametrize("config", SDES.values(), ids=SDES)
def test_kernels_solve_their_equations(config):
    """d mean / dt = drift mean and d var / dt = 2 drift var + diffusion, from 1 and 0."""
    with jax.enable_x64(True):
        sde = make_sde(config)
        assert float(sde.mean(jnp.float64(0))) == 1.0
        assert float(sde.std(jnp.float64(0))) == 0.0
        for t in map(jnp.float64, TIMES[2:]):
            drift = sde.drift(t)
            np.testing.assert_allclose(jax.grad(sde.mean)(t), drift * sde.mean(t), rtol=1e-9, atol=1e-12)
            slope = jax.grad(lambda t: sde.std(t) ** 2)(t)
            np.testing.assert_allclose(slope, 2 * drift * sde.std(t) ** 2 + sde.diffusion(t), rtol=1e-9)
            np.testing.assert_allclose(sde.mean_of_noise(noise_level(sde, t)), sde.mean(t), rtol=1e-9)


@pytest.mark.parametrize("config", SDES.values(), ids=SDES)
def test_small_times_do_not_cancel_in_single_precision(config):
    t = 1e-5
    single = make_sde(config).std(jnp.float32(t))
    with jax.enable_x64(True):
        double = make_sde(config).std(jnp.float64(t))
    np.testing.assert_allclose(single, double, rtol=1e-3)


def test_vp_keeps_unit_variance():
    sde = make_sde(SDES["vp cosine"])
    t = jnp.linspace(0, 1, 50)
    np.testing.assert_allclose(sde.mean(t) ** 2 + sde.std(t) ** 2, 1.0, rtol=1e-5)
    # With A(1) = 0.1 + 19.9 / 2 = 10.05
    np.testing.assert_allclose(sde.mean(jnp.float32(1.0)), np.exp(-10.05 / 2), rtol=1e-4)


@pytest.mark.parametrize("config", SDES.values(), ids=SDES)
def test_the_level_rises_with_the_noise_within_its_range(config):
    sde = make_sde(config)
    levels = jax.vmap(lambda t: make_level(sde)(noise_level(sde, t)))(jnp.linspace(0, 1, 200))
    assert levels[0] == -2.0
    assert np.all(np.diff(levels) >= 0)
    assert float(levels[-1]) == pytest.approx(1.0, abs=1e-5)


def test_an_unknown_sigma_max_says_what_to_do():
    with pytest.raises(ValueError, match=r"sigma_max is not set.*train the model"):
        make_sde(DiffusionConfig())
