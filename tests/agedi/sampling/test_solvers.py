"""Solvers: their order of convergence, and that corrections leave the distribution as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from exact_scores import ATOMS, KS_BOUND, MEAN, OPEN, STD, draw, gaussian_model, graph_of, no_search

from agedi.noise.noisers import make_position_noiser
from agedi.noise.sdes import make_sde, noise_level
from agedi.sampling.config import SAMPLERS, ReverseConfig, SamplerConfig
from agedi.sampling.plan import make_plan
from agedi.sampling.problem import Problem, State, make_model_functions
from agedi.sampling.solvers import SOLVERS, langevin_correction

pytestmark = pytest.mark.usefixtures("quick")


def test_every_sampler_has_a_solver():
    assert set(SOLVERS) == set(SAMPLERS)


def deterministic_error(sampler, steps, sde="ve"):
    """Largest distance from where the probability flow takes the same prior draw."""
    config = OPEN[sde]
    settings = SamplerConfig(sampler=sampler, steps=steps, grid="rho", eps=1e-5)
    result = draw(
        config, gaussian_model(config), settings, graph_of(np.eye(3), [False] * 3, count=50, held=True), trajectory=True
    )
    noise = noise_level(make_sde(config), jnp.float32(1.0))
    start = np.asarray(result.frames.pos[0, :50]) / float(make_sde(config).mean_of_noise(noise))
    expected = MEAN + (start - MEAN) * STD / np.sqrt(STD**2 + float(noise) ** 2)
    return np.abs(np.asarray(result.graph.pos[:50]) - expected).max()


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("heun_ode", 2)])
def test_order_of_convergence(sampler, order):
    errors = [deterministic_error(sampler, steps) for steps in (16, 32, 64)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(orders - order) < 0.3), (errors, orders)


def test_euler_maruyama_has_weak_order_one():
    config, many = OPEN["ve"], 100_000
    model = gaussian_model(config)
    errors = []
    for steps in (16, 32, 64):
        settings = SamplerConfig(sampler="em", steps=steps, grid="rho", eps=1e-5)
        result = draw(config, model, settings, graph_of(np.eye(3), [False] * 3, count=many, held=True))
        errors.append(abs(np.asarray(result.graph.pos[:many]).std(axis=0).mean() / STD - 1))
    sampling = 1 / np.sqrt(2 * 3 * many)
    assert errors[2] > 5 * sampling  # the orders below are not noise
    assert np.all(np.abs(np.log2(np.array(errors[:-1]) / errors[1:]) - 1) < 0.4), errors


def test_langevin_corrections_leave_the_distribution_as_it_is():
    config = OPEN["ve"]
    model = gaussian_model(config)
    settings = ReverseConfig(sampler=SamplerConfig(sampler="pc", corrector_snr=0.1))
    graph = graph_of(np.eye(3), [False] * 3, held=True)
    noiser = make_position_noiser(config)
    functions = make_model_functions(config, model, settings, no_search, noiser)
    graph = jax.tree.map(jnp.asarray, graph)
    noise = jnp.float32(0.7)
    spread = np.sqrt(STD**2 + 0.7**2)
    start = MEAN + spread * np.random.default_rng(0).standard_normal((ATOMS + 1, 3)).astype(np.float32)
    step = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), make_plan(settings.sampler, noiser, None))._replace(
        noise_next=noise
    )

    def body(state, key):
        return langevin_correction(Problem(functions, {}, graph, {}, None), state, step, key), None

    state = State(jnp.asarray(start), jnp.asarray(graph.x), None, jnp.array(False))
    state, _ = jax.lax.scan(body, state, jax.random.split(jax.random.key(3), 300))
    # After 300 corrections nothing of the start is left. Their step of eta = 2 (snr nu)^2 widens a Gaussian by
    # 1 / sqrt(1 - eta / (2 spread^2)) = 1.004, which is below the bound.
    z = (np.asarray(state.y[:ATOMS]) - MEAN) / spread
    assert np.corrcoef(z[:, 0], (start[:ATOMS, 0] - MEAN[0]) / spread)[0, 1] < 0.1
    for axis in range(3):
        assert scipy.stats.kstest(z[:, axis], "norm").statistic < KS_BOUND
