"""Forward processes: moments, what is to be predicted, and that t = 1 is the prior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from agedi.config import DiffusionConfig
from agedi.data.graph import AtomsGraph
from agedi.noise.kernels import lattice_sums
from agedi.noise.noisers import absorb, choose_sigma_max, make_perturb, make_position_noiser, reveal
from agedi.noise.sdes import make_sde

ATOMS = 2000
KS_BOUND = 2.47 / ATOMS**0.5  # exceeded by a right sample with probability 1e-5
WALLS = (2.0, 6.0)
CELL = np.array([[5.0, 0.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 14.0]])


def graph_of(pbc, cell=CELL, walls=(-np.inf, np.inf), count=ATOMS, fixed=0, seed=0):
    """Atoms in a small part of the cell, so that noise has something to blur."""
    rng = np.random.default_rng(seed)
    pos = rng.normal(0, 0.3, (count, 3)) + np.array([1.0, 1.0, 3.0])
    return AtomsGraph(
        x=jnp.asarray(rng.choice([8, 22], count), jnp.int32),
        pos=jnp.asarray(pos, jnp.float32),
        cell=jnp.asarray(cell, jnp.float32),
        pbc=jnp.asarray(pbc),
        mask=jnp.arange(count) < fixed,
        present=jnp.ones(count, bool),
        confinement=jnp.asarray(walls, jnp.float32),
    )


def sums_of(graph, pbc):
    return lattice_sums(np.asarray(graph.cell)[None], np.asarray(pbc)[None])


TORUS = DiffusionConfig(sigma_max=choose_sigma_max(CELL[None], np.ones((1, 3), bool)))
SLAB = DiffusionConfig(
    noisers=("ConfinedCellPositions",),
    confinement=WALLS,
    sigma_max=choose_sigma_max(CELL[None], np.array([[True, True, False]]), WALLS[1] - WALLS[0]),
)
OPEN = {
    "ve": DiffusionConfig(noisers=("Positions",), sigma_max=9.0),
    "vp": DiffusionConfig(noisers=("Positions",), sde="vp"),
}


def fractions(graph, pos):
    return np.asarray(pos) @ np.linalg.inv(np.asarray(graph.cell, float))


def test_the_end_of_the_noise_on_a_torus_is_the_prior():
    graph = graph_of([True] * 3)
    noised = jax.jit(make_perturb(TORUS, sums_of(graph, [True] * 3)))(jax.random.key(0), graph, jnp.float32(1.0))
    prior = jax.jit(make_position_noiser(TORUS).space.prior)(jax.random.key(1), graph)
    for pos in (noised.graph.pos, prior):
        for axis in range(3):
            assert scipy.stats.kstest(fractions(graph, pos)[:, axis], "uniform").statistic < KS_BOUND


@pytest.mark.parametrize("walls", ["reflected", "truncated"])
def test_the_end_of_the_noise_between_walls_is_the_prior(walls):
    # Without mirror images a normal between walls takes four times the deviation to become uniform.
    sigma = SLAB.sigma_max * (4 if walls == "truncated" else 1)
    config = dataclasses.replace(SLAB, walls=walls, sigma_max=sigma)
    graph = graph_of([True] * 3, walls=WALLS)
    noised = jax.jit(make_perturb(config, sums_of(graph, [True, True, False])))(
        jax.random.key(0), graph, jnp.float32(1.0)
    )
    prior = jax.jit(make_position_noiser(config).space.prior)(jax.random.key(1), graph)
    for pos in (noised.graph.pos, prior):
        assert (
            scipy.stats.kstest((np.asarray(pos)[:, 2] - WALLS[0]) / (WALLS[1] - WALLS[0]), "uniform").statistic
            < KS_BOUND
        )
        for axis in range(2):
            assert scipy.stats.kstest(fractions(graph, pos)[:, axis], "uniform").statistic < KS_BOUND


@pytest.mark.parametrize("walls", ["reflected", "truncated"])
@pytest.mark.parametrize("t", [0.2, 0.6, 0.9])
def test_no_noised_atom_leaves_the_walls(walls, t):
    graph = graph_of([True] * 3, walls=WALLS)
    perturb = jax.jit(make_perturb(dataclasses.replace(SLAB, walls=walls), sums_of(graph, [True, True, False])))
    heights = np.asarray(perturb(jax.random.key(2), graph, jnp.float32(t)).graph.pos)[:, 2]
    assert heights.min() >= WALLS[0]
    assert heights.max() <= WALLS[1]
    assert np.isfinite(perturb(jax.random.key(2), graph, jnp.float32(t)).noise).all()


@pytest.mark.parametrize("sde", OPEN)
def test_molecules_end_at_the_prior_without_moving_their_centre(sde):
    config, graph = OPEN[sde], graph_of([False] * 3)
    noised = jax.jit(make_perturb(config))(jax.random.key(0), graph, jnp.float32(1.0))
    prior = jax.jit(make_position_noiser(config).space.prior)(jax.random.key(1), graph)
    centre = np.asarray(graph.pos).mean(axis=0)
    std = float(make_sde(config).std(jnp.float32(1.0)))
    for pos in (noised.graph.pos, prior):
        np.testing.assert_allclose(np.asarray(pos).mean(axis=0), centre, atol=1e-3)
        for axis in range(3):
            z = (np.asarray(pos)[:, axis] - centre[axis]) / std
            assert scipy.stats.kstest(z, "norm").statistic < KS_BOUND


@pytest.mark.parametrize("sde", OPEN)
@pytest.mark.parametrize("t", [0.01, 0.3, 0.8])
def test_moments_and_the_noise_of_molecules(sde, t):
    config, graph = OPEN[sde], graph_of([False] * 3)
    noised = jax.jit(make_perturb(config))(jax.random.key(0), graph, jnp.float32(t))
    process = make_sde(config)
    centre = np.asarray(graph.pos).mean(axis=0)
    mean, std = float(process.mean(jnp.float32(t))), float(process.std(jnp.float32(t)))
    expected = centre + mean * (np.asarray(graph.pos) - centre) + std * np.asarray(noised.noise)
    np.testing.assert_allclose(noised.graph.pos, expected, atol=1e-4)
    np.testing.assert_allclose(np.asarray(noised.noise).mean(axis=0), 0.0, atol=1e-4)
    assert scipy.stats.kstest(np.asarray(noised.noise).ravel(), "norm").statistic < KS_BOUND


def test_two_stages_of_noise_make_one():
    """x_to | x_from is a x_from with variance var(to) - a^2 var(from), a = mean(to) / mean(from)."""
    for config in OPEN.values():
        sde = make_sde(config)
        early, late = jnp.float32(0.3), jnp.float32(0.7)
        a = sde.mean(late) / sde.mean(early)
        rest = sde.std(late) ** 2 - a**2 * sde.std(early) ** 2
        assert float(rest) > 0
        # The same in the samplers' variable: noise levels add in squares.
        added = (sde.std(late) / sde.mean(late)) ** 2 - (sde.std(early) / sde.mean(early)) ** 2
        np.testing.assert_allclose(rest / sde.mean(late) ** 2, added, rtol=1e-4)


def test_small_noise_on_a_torus_is_the_displacement_over_its_deviation():
    graph = graph_of([True] * 3, count=50)
    noised = jax.jit(make_perturb(TORUS, sums_of(graph, [True] * 3)))(jax.random.key(0), graph, jnp.float32(0.3))
    std = make_sde(TORUS).std(jnp.float32(0.3))
    shift = fractions(graph, noised.graph.pos - graph.pos)
    displacement = (shift - np.round(shift)) @ np.asarray(graph.cell)
    np.testing.assert_allclose(noised.noise, displacement / std, atol=2e-3)


@pytest.mark.parametrize("config", [TORUS, SLAB, OPEN["ve"], OPEN["vp"]], ids=["torus", "slab", "ve", "vp"])
def test_fixed_atoms_and_padding_neither_move_nor_count(config):
    graph = graph_of([True, True, False], walls=WALLS, count=9, fixed=3)
    graph = graph._replace(present=jnp.arange(9) < 7)
    noised = jax.jit(make_perturb(config, sums_of(graph, [True, True, False])))(
        jax.random.key(0), graph, jnp.float32(0.7)
    )
    still = np.array([0, 1, 2, 7, 8])
    assert np.array_equal(noised.graph.pos[still], graph.pos[still])
    assert np.array_equal(noised.noise[still], np.zeros((5, 3)))
    assert np.abs(noised.noise[3:7]).min() > 0


def test_open_directions_of_a_crystal_keep_their_mean():
    graph = graph_of([True, True, False])
    noised = jax.jit(make_perturb(TORUS, sums_of(graph, [True, True, False])))(
        jax.random.key(0), graph, jnp.float32(1.0)
    )
    z = (np.asarray(noised.graph.pos - graph.pos)[:, 2]) / float(make_sde(TORUS).std(jnp.float32(1.0)))
    assert scipy.stats.kstest(z, "norm").statistic < KS_BOUND
    assert scipy.stats.kstest(fractions(graph, noised.graph.pos)[:, 0], "uniform").statistic < KS_BOUND


def test_species_are_absorbed_with_the_share_of_the_time():
    config = DiffusionConfig(noisers=("Types",), species=(8, 22))
    graph = graph_of([False] * 3, fixed=400)
    perturb = jax.jit(make_perturb(config))
    for t in (0.0, 0.25, 0.8, 1.0):
        noised = perturb(jax.random.key(0), graph, jnp.float32(t))
        assert np.array_equal(noised.graph.x[:400], graph.x[:400])
        assert set(np.unique(np.where(noised.graph.x == 0, graph.x, noised.graph.x) - graph.x)) == {0}
        hidden = np.asarray(noised.absorbed)
        assert np.array_equal(hidden[400:], np.asarray(noised.graph.x == 0)[400:])
        share = hidden[400:].mean()
        assert abs(share - t) <= 4.5 * np.sqrt(t * (1 - t) / 1600)


def test_revealing_undoes_absorbing_in_distribution():
    """From share t to s: an atom is hidden at s with probability s, whatever the probabilities of species."""
    x = absorb(jax.random.key(0), jnp.full(ATOMS, 8, jnp.int32), jnp.float32(0.8))
    log_probs = jnp.log(jnp.tile(jnp.array([[0.2, 0.5, 0.3]]), (ATOMS, 1)))
    species = np.array([1, 6, 8], np.int32)
    later, _ = reveal(jax.random.key(1), x, log_probs, species, jnp.float32((0.8 - 0.3) / 0.8))
    assert abs(np.mean(later == 0) - 0.3) < 4.5 * np.sqrt(0.3 * 0.7 / ATOMS)
    assert np.array_equal(later[x != 0], x[x != 0])
    drawn = np.asarray(later)[(x == 0) & (later != 0)]
    counts = [np.sum(drawn == number) for number in species]
    assert scipy.stats.chisquare(counts, np.array([0.2, 0.5, 0.3]) * len(drawn)).pvalue > 1e-5


def test_the_prior_of_open_directions_is_around_the_fixed_atoms():
    graph = graph_of([True, True, False], count=400, fixed=200)
    graph = graph._replace(pos=graph.pos + jnp.array([[0.0, 0.0, 30.0]]))
    heights = np.asarray(jax.jit(make_position_noiser(TORUS).space.prior)(jax.random.key(0), graph))[200:, 2]
    sigma = float(make_sde(TORUS).std(jnp.float32(1.0)))
    assert abs(heights.mean() - 33.0) < 4.5 * sigma / np.sqrt(200)
