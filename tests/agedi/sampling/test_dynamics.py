"""Final dynamics: Boltzmann's distribution, the unit of time, walls, fixed atoms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from agedi.data.graph import AtomsGraph
from agedi.noise.kernels import reflect
from agedi.sampling.config import SamplerConfig
from agedi.sampling.dynamics import brownian_steps, langevin_steps, terminal_dynamics

pytestmark = pytest.mark.usefixtures("quick")

STIFFNESS, TEMPERATURE = 5.0, 0.1  # eV/Å^2, eV
ATOMS = 2500


def graph_of(count=ATOMS, number=29, walls=(-np.inf, np.inf), fixed=1):
    return AtomsGraph(
        x=jnp.full(count, number, jnp.int32),
        pos=jnp.zeros((count, 3)),
        cell=jnp.eye(3),
        pbc=jnp.zeros(3, bool),
        mask=jnp.arange(count) < fixed,
        present=jnp.ones(count, bool),
        confinement=jnp.asarray(walls, jnp.float32),
    )


def spring(pos):
    return -STIFFNESS * pos, jnp.array(False)


def unchanged(graph, pos):
    return pos


def settings_of(steps, temperature, step_size=None, friction=None):
    return SamplerConfig(
        sampler="ffpc",
        terminal_steps=steps,
        temperature=temperature,
        terminal_step_size=step_size,
        terminal_friction=friction,
    )


@pytest.mark.parametrize(("run", "steps", "step_size"), [(brownian_steps, 1200, 4e-3), (langevin_steps, 600, 5.0)])
def test_a_spring_reaches_boltzmanns_distribution(run, steps, step_size):
    graph = graph_of()
    settings = settings_of(steps, TEMPERATURE, step_size)
    pos, frames, _ = jax.jit(lambda key: run(spring, graph, key, settings, unchanged))(jax.random.key(0))
    z = np.asarray(pos)[1:] / np.sqrt(TEMPERATURE / STIFFNESS)
    for axis in range(3):
        assert scipy.stats.kstest(z[:, axis], "norm").statistic < 2.47 / ATOMS**0.5
    assert np.array_equal(pos[0], np.zeros(3))
    assert np.array_equal(frames[-1], pos)


def test_time_is_in_femtoseconds():
    """Without friction an atom on a spring swings with period 2 pi sqrt(m / k); 1 u Å^2/eV is (10.1805 fs)^2."""
    graph = graph_of(count=2, number=6)._replace(pos=jnp.array([[0.0] * 3, [0.3, 0.0, 0.0]]))
    _, frames, _ = langevin_steps(spring, graph, jax.random.key(0), settings_of(4000, 1e-12, 0.1, 1e-12), unchanged)
    x = np.asarray(frames)[:, 1, 0]
    downward = np.flatnonzero((x[:-1] > 0) & (x[1:] <= 0))
    period = np.diff(downward).mean() * 0.1
    assert period == pytest.approx(2 * np.pi * np.sqrt(12.011 / STIFFNESS) * 10.1805, rel=1e-3)


@pytest.mark.parametrize("run", [brownian_steps, langevin_steps])
def test_walls_hold(run):
    graph = graph_of(count=200, walls=(-0.1, 0.15))

    def mirror(graph, pos):
        return pos.at[:, 2].set(reflect(pos[:, 2], graph.confinement[0], graph.confinement[1]))

    _, frames, _ = run(
        lambda pos: (jnp.zeros_like(pos), jnp.array(False)), graph, jax.random.key(0), settings_of(200, 1.0), mirror
    )
    heights = np.asarray(frames)[:, 1:, 2]
    assert heights.min() >= -0.1
    assert heights.max() <= 0.15
    flat = heights[150:].ravel()
    assert scipy.stats.kstest(flat[::50], scipy.stats.uniform(-0.1, 0.25).cdf).pvalue > 1e-5


def test_a_free_molecule_does_not_drift():
    graph = graph_of(count=5, fixed=0)._replace(
        x=jnp.array([1, 6, 8, 1, 1], jnp.int32), pos=jax.random.normal(jax.random.key(1), (5, 3))
    )
    _, frames, _ = langevin_steps(
        lambda pos: (jnp.zeros_like(pos), jnp.array(False)), graph, jax.random.key(0), settings_of(300, 0.1), unchanged
    )
    masses = np.array([1.008, 12.011, 15.999, 1.008, 1.008])
    centres = np.einsum("a,fac->fc", masses, np.asarray(frames)) / masses.sum()
    assert np.abs(centres - centres[0]).max() < 1e-4


def test_an_incomplete_neighbour_list_is_reported():
    for run in (brownian_steps, langevin_steps):
        _, _, overflow = run(
            lambda pos: (-pos, jnp.array(True)), graph_of(count=2), jax.random.key(0), settings_of(2, 0.1), unchanged
        )
        assert bool(overflow)


@pytest.mark.parametrize(("name", "run"), [("overdamped", brownian_steps), ("langevin_md", langevin_steps)])
def test_the_dynamics_is_chosen_by_name(name, run):
    graph = graph_of(count=3)
    settings = SamplerConfig(sampler="ffpc", terminal_steps=3, temperature=0.1, terminal_dynamics=name)
    chosen, expected = (
        function(spring, graph, jax.random.key(2), settings, unchanged)[0] for function in (terminal_dynamics, run)
    )
    np.testing.assert_array_equal(chosen, expected)
