"""Reverse processes driven by exact scores end at the distribution of the data, for every sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from exact_scores import (
    ATOMS,
    KS_BOUND,
    MEAN,
    OPEN,
    STD,
    WITHOUT_FORCES,
    draw,
    exact_model,
    gaussian_model,
    graph_of,
    no_search,
    settings_of,
)

from agedi.config import DiffusionConfig
from agedi.network.score import Outputs, ScoreModel
from agedi.noise.kernels import lattice_sums, reflected_normal, wrapped_normal
from agedi.sampling.config import ForcefieldGuidanceConfig, InpaintConfig, ReverseConfig, SamplerConfig
from agedi.sampling.reverse import make_single

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("sampler", WITHOUT_FORCES)
@pytest.mark.parametrize("sde", ["ve", "vp"])
def test_a_gaussian_is_recovered(sde, sampler):
    config = OPEN[sde]
    result = draw(
        config,
        gaussian_model(config),
        settings_of(sampler),
        graph_of(np.eye(3), [False] * 3, held=True),
    )
    z = (np.asarray(result.graph.pos[:ATOMS]) - MEAN) / STD
    for axis in range(3):
        assert scipy.stats.kstest(z[:, axis], "norm").statistic < KS_BOUND
    assert np.array_equal(result.graph.pos[ATOMS], np.zeros(3))


SKEWED = np.array([[4.0, 0.0, 0.0], [1.2, 3.5, 0.0], [-0.7, 0.9, 5.0]], np.float32)
CENTRES, WEIGHTS, WIDTH = np.array([[0.2, 0.1, 0.3], [2.5, 2.0, 3.0]], np.float32), np.array([0.3, 0.7]), 0.25
TORUS = DiffusionConfig(sigma_max=3.0)


def torus_model():
    """Wrapped normal modes of width WIDTH around CENTRES: the marginals are wrapped normals of nu^2 + WIDTH^2."""
    sums = lattice_sums(SKEWED[None], np.ones((1, 3), bool))

    def noise_function(graph, noise):
        std = jnp.sqrt(noise**2 + WIDTH**2)
        parts = [wrapped_normal(graph.pos - centre[None], std, graph.cell, graph.pbc, sums) for centre in CENTRES]
        log_density = jnp.stack([part[0] for part in parts], axis=-1) + np.log(WEIGHTS)[None].astype(np.float32)
        unit = jnp.stack([part[1] for part in parts], axis=1)  # std x minus the score of each mode
        return noise / std * jnp.sum(jax.nn.softmax(log_density)[..., None] * unit, axis=1)

    return exact_model(TORUS, noise_function)


@pytest.mark.parametrize("sampler", WITHOUT_FORCES)
def test_a_mixture_on_a_torus_is_recovered(sampler):
    result = draw(TORUS, torus_model(), settings_of(sampler), graph_of(SKEWED, [True] * 3))
    pos = np.asarray(result.graph.pos)
    fractional = pos @ np.linalg.inv(SKEWED)
    assert fractional.min() > -1e-5
    assert fractional.max() < 1 + 1e-5
    offsets = (fractional[:, None] - CENTRES[None] @ np.linalg.inv(SKEWED) + 0.5) % 1 - 0.5
    offsets = offsets @ SKEWED
    mode = np.linalg.norm(offsets, axis=-1).argmin(axis=1)
    assert abs(np.mean(mode == 1) - WEIGHTS[1]) < 4.5 * np.sqrt(WEIGHTS.prod() / ATOMS)
    z = offsets[np.arange(ATOMS), mode] / WIDTH
    for axis in range(3):
        assert scipy.stats.kstest(z[:, axis], "norm").statistic < KS_BOUND


WALLS, SLAB_MEAN, SLAB_STD = (2.0, 5.0), 2.4, 0.8
TRUNCATED = scipy.stats.truncnorm(
    (WALLS[0] - SLAB_MEAN) / SLAB_STD, (WALLS[1] - SLAB_MEAN) / SLAB_STD, SLAB_MEAN, SLAB_STD
)
FLAT = np.diag([3.0, 3.0, 20.0])


def slab_model(config):
    """The marginal along z by quadrature over the reflected kernel; uniform in the plane."""
    grid = np.linspace(*WALLS, 401)
    starts = jnp.asarray((grid[1:] + grid[:-1]) / 2, jnp.float32)
    shares = np.diff(TRUNCATED.cdf(grid)).astype(np.float32)
    low, high = jnp.float32(WALLS[0]), jnp.float32(WALLS[1])

    def noise_function(graph, noise):
        # The kernel of a step below the grid's width cannot be resolved, nor need it be.
        std = jnp.maximum(noise, 0.02)

        def kernel(z):
            log_density, unit = reflected_normal(jnp.full(starts.shape, z), starts, std, low, high)
            weights = jnp.exp(log_density) * shares
            return jnp.sum(weights * unit) / jnp.sum(weights)

        heights = jnp.linspace(*WALLS, 401)
        along = jnp.interp(graph.pos[:, 2], heights, jax.vmap(kernel)(heights)) * noise / std
        return jnp.zeros_like(graph.pos).at[:, 2].set(along)

    return exact_model(config, noise_function)


@pytest.mark.parametrize("sampler", WITHOUT_FORCES)
def test_a_truncated_gaussian_is_recovered_between_walls(sampler):
    config = DiffusionConfig(noisers=("ConfinedCellPositions",), confinement=WALLS, sigma_max=3.0)
    result = draw(config, slab_model(config), settings_of(sampler), graph_of(FLAT, [True, True, True], WALLS))
    pos = np.asarray(result.graph.pos)
    assert scipy.stats.kstest(pos[:, 2], TRUNCATED.cdf).statistic < KS_BOUND
    for axis in range(2):
        assert scipy.stats.kstest(pos[:, axis] / 3.0, "uniform").statistic < KS_BOUND


SPECIES = (8, 22, 56)
TYPES = DiffusionConfig(noisers=("Types",), species=SPECIES)


def types_model(pair_log_probs):
    """Pairs of atoms (2i, 2i + 1) with a joint distribution: exact probabilities of a hidden one given the other."""
    table = jnp.asarray(pair_log_probs)

    def apply(params, graph, levels, conditions, known):
        other = graph.x.reshape(-1, 2)[:, ::-1].reshape(-1)
        place = jnp.argmax(other[:, None] == jnp.asarray(SPECIES)[None], axis=-1)
        marginals = jnp.stack([jax.nn.logsumexp(table, axis=1), jax.nn.logsumexp(table, axis=0)])
        first = jnp.arange(len(other)) % 2
        seen = jnp.where(first[:, None] == 0, table.T[place], table[place])
        return Outputs(None, jnp.where(other[:, None] == 0, marginals[first], seen))

    return ScoreModel({}, apply, None)


@pytest.mark.parametrize("sampler", ["em", "heun_ode", "ddim", "pc"])
def test_species_have_the_enumerated_probabilities(sampler, rng):
    probabilities = rng.dirichlet(np.ones(9)).reshape(3, 3)
    graph = graph_of(np.eye(3), [False] * 3)._replace(x=np.zeros(ATOMS, np.int32))
    settings = SamplerConfig(sampler=sampler, steps=60)
    result = draw(TYPES, types_model(np.log(probabilities).astype(np.float32)), settings, graph)
    places = np.searchsorted(SPECIES, np.asarray(result.graph.x)).reshape(-1, 2)
    assert np.isin(result.graph.x, SPECIES).all()
    counts = np.zeros((3, 3))
    np.add.at(counts, (places[:, 0], places[:, 1]), 1)
    # Both atoms of a pair are revealed in one step, and then independently, with probability 1 / steps.
    joint = probabilities * (1 - 1 / 60) + np.outer(probabilities.sum(1), probabilities.sum(0)) / 60
    assert scipy.stats.chisquare(counts.ravel(), joint.ravel() * ATOMS / 2).pvalue > 1e-5


def test_a_prescribed_composition_is_met_exactly(rng):
    probabilities = rng.dirichlet(np.ones(9)).reshape(3, 3)
    graph = graph_of(np.eye(3), [False] * 3, count=20)._replace(x=np.zeros(20, np.int32))
    settings = ReverseConfig(sampler=SamplerConfig(steps=30), constrained=True)
    single = make_single(TYPES, types_model(np.log(probabilities).astype(np.float32)), settings, no_search)
    drawn = jax.jit(jax.vmap(lambda key: single({}, key, graph, {}, jnp.array([4, 1, 15])).graph.x))(
        jax.random.split(jax.random.key(0), 50)
    )
    for number, count in zip(SPECIES, (4, 1, 15), strict=True):
        assert np.all(np.sum(np.asarray(drawn) == number, axis=1) == count)
    assert len({tuple(x) for x in np.asarray(drawn)}) > 40


@pytest.mark.parametrize(("sampler", "evaluations"), [("em", 1), ("ddim", 1), ("heun", 2), ("heun_ode", 2), ("pc", 3)])
def test_evaluations_and_frames_a_step(sampler, evaluations):
    """pc with two corrections; frames are the start and one a step."""
    counted = []

    def noise_function(graph, noise):
        jax.debug.callback(lambda: counted.append(1))
        return jnp.zeros_like(graph.pos)

    corrections = {"corrector_steps": 2} if sampler == "pc" else {}
    settings = SamplerConfig(sampler=sampler, steps=7, **corrections)
    result = draw(
        TORUS, exact_model(TORUS, noise_function), settings, graph_of(SKEWED, [True] * 3, count=3), trajectory=True
    )
    jax.effects_barrier()
    assert len(counted) == 7 * evaluations
    assert result.frames.pos.shape == (8, 3, 3)
    assert np.array_equal(result.frames.pos[-1], result.graph.pos)


@pytest.mark.parametrize("sampler", WITHOUT_FORCES)
def test_fixed_atoms_stay_to_the_bit(sampler, rng):
    graph = graph_of(SKEWED, [True] * 3, count=6)
    fixed = np.array([True, False, True, False, False, False])
    graph = graph._replace(
        mask=fixed, pos=rng.normal(0, 9, (6, 3)).astype(np.float32), x=np.arange(1, 7, dtype=np.int32)
    )
    result = draw(TORUS, torus_model(), SamplerConfig(sampler=sampler, steps=9), graph, trajectory=True)
    assert np.array_equal(result.graph.pos[fixed], graph.pos[fixed])
    assert np.array_equal(np.asarray(result.frames.pos)[:, fixed], np.broadcast_to(graph.pos[fixed], (10, 2, 3)))
    assert not np.any(np.isclose(result.graph.pos[~fixed], graph.pos[~fixed]).all(axis=1))


def test_padding_and_companions_do_not_change_a_structure():
    model, settings = torus_model(), SamplerConfig(sampler="pc", steps=9)
    short, long = graph_of(SKEWED, [True] * 3, count=4), graph_of(SKEWED, [True] * 3, count=7)
    long = long._replace(present=np.arange(7) < 4)
    results = [np.asarray(draw(TORUS, model, settings, graph).graph.pos)[:4] for graph in (short, long)]
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)


def test_a_molecule_keeps_its_centre_of_mass():
    config = OPEN["ve"]
    model = exact_model(config, lambda graph, noise: jnp.sin(graph.pos) + 1.0)
    result = draw(config, model, SamplerConfig(steps=20), graph_of(np.eye(3), [False] * 3, count=5))
    np.testing.assert_allclose(np.mean(result.graph.pos, axis=0), 0.0, atol=1e-3)


def test_a_short_neighbour_list_is_reported():
    def cut_short(graph):
        graph = no_search(graph)
        return graph._replace(edges=graph.edges._replace(overflow=jnp.any(graph.pos[:, 0] > 3.5)))

    graph = jax.tree.map(jnp.asarray, graph_of(SKEWED, [True] * 3, count=50))
    overflow = [
        make_single(TORUS, torus_model(), ReverseConfig(sampler=SamplerConfig(steps=3)), search)(
            {}, jax.random.key(0), graph, {}, jnp.zeros(0, int)
        ).overflow
        for search in (no_search, cut_short)
    ]
    assert [bool(flag) for flag in overflow] == [False, True]


@pytest.mark.parametrize("sampler", WITHOUT_FORCES)
@pytest.mark.parametrize("options", [{}, {"t_start": 0.97}, {"n_resample": 3, "jump_length": 2}])
def test_inpainting_returns_known_atoms_to_the_bit_and_draws_the_others(sampler, options, rng):
    graph = graph_of(SKEWED, [True] * 3, count=200)._replace(pos=rng.normal(0, 9, (200, 3)).astype(np.float32))
    selected = np.arange(200) < 150
    sampler_config = SamplerConfig(sampler=sampler, steps=40)
    settings = ReverseConfig(sampler=sampler_config, inpaint=InpaintConfig(**options))
    single = make_single(TORUS, torus_model(), settings, no_search)
    result = jax.jit(single)({}, jax.random.key(1), graph, {}, jnp.zeros(0, jnp.int32), jnp.asarray(selected))
    assert np.array_equal(result.graph.pos[~selected], graph.pos[~selected])
    offsets = ((np.asarray(result.graph.pos)[:150, None] - CENTRES[None]) @ np.linalg.inv(SKEWED) + 0.5) % 1 - 0.5
    nearest = np.linalg.norm(offsets @ SKEWED, axis=-1).min(axis=1)
    assert np.median(nearest) < 2 * WIDTH  # chi with 3 degrees of freedom has its median at 1.54


def test_final_dynamics_of_an_inpainting_spare_known_atoms(rng):
    graph = graph_of(SKEWED, [True] * 3, count=6)._replace(pos=rng.uniform(0, 3, (6, 3)).astype(np.float32))
    selected = np.arange(6) < 4
    model = torus_model()._replace(force_field=lambda params, graph: (jnp.zeros(()), jnp.ones_like(graph.pos)))
    sampler = SamplerConfig(sampler="ffpc", steps=3, terminal_steps=4, terminal_step_size=0.01)
    single = make_single(
        TORUS, model, ReverseConfig(sampler=sampler, inpaint=InpaintConfig(), trajectory=True), no_search
    )
    result = jax.jit(single)({}, jax.random.key(1), graph, {}, jnp.zeros(0, jnp.int32), jnp.asarray(selected))
    assert np.array_equal(result.graph.pos[~selected], graph.pos[~selected])
    assert np.array_equal(result.graph.mask, graph.mask)
    assert result.frames.pos.shape[0] == 1 + 3 + 4
    assert not np.array_equal(result.frames.pos[-1][selected], result.frames.pos[-2][selected])


def test_forces_pull_along_themselves():
    """Guidance adds forces to the score: a constant force moves atoms in its direction."""
    config = OPEN["ve"]
    base = gaussian_model(config)
    model = base._replace(
        force_field=lambda params, graph: (jnp.zeros(()), jnp.ones_like(graph.pos) * jnp.array([[2.0, 0, 0]]))
    )
    graph = graph_of(np.eye(3), [False] * 3, count=300, held=True)
    means = []
    for weight in (0.0, 1.0):
        guidance = ForcefieldGuidanceConfig(guidance=weight)
        result = draw(config, model, SamplerConfig(steps=60, grid="rho"), graph, guidance=guidance)
        means.append(np.asarray(result.graph.pos)[:300].mean(axis=0))
    assert means[1][0] - means[0][0] > 0.1
    np.testing.assert_allclose(means[1][1:], means[0][1:], atol=1e-3)
