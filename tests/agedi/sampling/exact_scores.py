"""Exact scores of simple distributions, for the tests of solvers and of whole reverse processes."""

import jax
import jax.numpy as jnp
import numpy as np

from agedi.config import DiffusionConfig
from agedi.data.graph import AtomsGraph
from agedi.network.score import Outputs, ScoreModel
from agedi.noise.sdes import make_level, make_sde, noise_level
from agedi.sampling.config import SAMPLERS, ReverseConfig, SamplerConfig
from agedi.sampling.reverse import make_single
from matterform.neighbors import Neighbors

ATOMS = 2500  # independent, so that one structure is a sample of this size
WITHOUT_FORCES = tuple(name for name in SAMPLERS if name != "ffpc")
# The Kolmogorov-Smirnov statistic of a right sampler exceeds this with probability 1e-5.
KS_BOUND = 2.47 / ATOMS**0.5


def settings_of(sampler):
    """80 steps, with more churn than by default where there is any."""
    return SamplerConfig(sampler=sampler, eps=1e-3, steps=80, **({"churn": 30.0} if sampler == "heun" else {}))


def no_search(graph):
    """For scores that need no neighbours."""
    n = graph.x.shape[0]
    edges = Neighbors(*(jnp.zeros((n, 0), int),) * 2, jnp.zeros((n, 0), bool), jnp.zeros((n, 0), int), jnp.array(False))
    return graph._replace(edges=edges)


def graph_of(cell, pbc, walls=(-np.inf, np.inf), count=ATOMS, held=False):
    """A structure of independent atoms; `held` adds a fixed one at the origin, so that the centre is not special."""
    mask = np.zeros(count + held, bool)
    mask[count:] = True
    return AtomsGraph(
        x=np.full(count + held, 6, np.int32),
        pos=np.zeros((count + held, 3), np.float32),
        cell=np.asarray(cell, np.float32),
        pbc=np.asarray(pbc),
        mask=mask,
        present=np.ones(count + held, bool),
        confinement=np.asarray(walls, np.float32),
    )


def noise_of_level(config):
    """Inverts what the network is told."""
    sde = make_sde(config)
    level = make_level(sde)
    low, high = jnp.log(noise_level(sde, jnp.float32(1e-3))), jnp.log(noise_level(sde, jnp.float32(1.0)))
    assert (
        abs(
            float(level(noise_level(sde, jnp.float32(0.4))))
            - (2 * (np.log(noise_level(sde, jnp.float32(0.4))) - low) / (high - low) - 1)
        )
        < 1e-5
    )
    return lambda value: jnp.exp((value + 1) / 2 * (high - low) + low)


def exact_model(config, noise_function):
    """A model that says `noise_function(graph, noise level)`."""
    invert = noise_of_level(config)
    return ScoreModel(
        {},
        lambda params, graph, levels, conditions, known: Outputs(noise_function(graph, invert(levels[0])), None),
        None,
    )


def draw(config, model, sampler, graph, key=0, **settings):
    single = make_single(config, model, ReverseConfig(sampler=sampler, **settings), no_search)
    return jax.jit(single)({}, jax.random.key(key), graph, {}, jnp.zeros(0, jnp.int32))


MEAN, STD = np.array([1.0, -0.5, 0.3], np.float32), 0.4
OPEN = {
    "ve": DiffusionConfig(noisers=("Positions",), sde="ve", sigma_max=100.0),
    "vp": DiffusionConfig(noisers=("Positions",), sde="vp"),
}


def gaussian_model(config):
    """Atoms at MEAN with deviation STD: in y the marginal is N(MEAN, STD^2 + nu^2)."""
    sde = make_sde(config)

    def noise_function(graph, noise):
        y = graph.pos / sde.mean_of_noise(noise)
        return noise * (y - MEAN[None]) / (STD**2 + noise**2)

    return exact_model(config, noise_function)
