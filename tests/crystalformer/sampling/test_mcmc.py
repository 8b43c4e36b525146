"""The chain's stationary distribution against enumerated and integrated densities, its moves, and what it leaves alone.

Chains start from one state and give one draw each, so draws are independent; tests at fixed keys, as for sampling.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from crystalformer.data.crystals import Crystals, num_slots
from crystalformer.loss import log_prob
from crystalformer.network.transformer import make_apply, read_lattice
from crystalformer.sampling.constraints import make_constraints
from crystalformer.sampling.mcmc import propose, refine
from crystalformer.symmetry.lattice import impose_lattice
from crystalformer.symmetry.wyckoff import symmetry_tables

CHAINS = 1000  # one compiled kernel serves most tests
FALSE_ALARM = 1e-5
CUBIC = 221  # Pm-3m: a is a fixed position, e is (x, 0, 0), g is (x, x, x)
FIXED, LINE, DIAGONAL = 1, 5, 7


@pytest.fixture(scope="module")
def config(tiny_config):
    return dataclasses.replace(tiny_config, n_max=5)


@pytest.fixture(scope="module")
def params(config, lively):
    return lively(config)


def on_positions(crystals: Crystals) -> Crystals:
    """The same crystals with their sites moved onto their Wyckoff positions."""
    operation = symmetry_tables().first_op[crystals.G[:, None] - 1, crystals.W]
    XYZ = np.einsum("bnij,bnj->bni", operation[..., :3], crystals.XYZ) + operation[..., 3]
    return crystals._replace(XYZ=(XYZ % 1).astype(np.float32))


def one_site(letter: int, elements, x, n: int = 5) -> Crystals:
    """Crystals of Pm-3m with one site, for every element and x given."""
    elements, x = np.broadcast_arrays(elements, x)
    count = elements.size
    XYZ, A, W = np.zeros((count, n, 3), np.float32), *np.zeros((2, count, n), np.int32)
    XYZ[:, 0], A[:, 0], W[:, 0] = x[:, None], elements, letter
    return on_positions(Crystals(np.full(count, CUBIC, np.int32), np.ones((count, 6), np.float32), XYZ, A, W))


@pytest.fixture(scope="module")
def chains(params, config):
    """Many chains from the same crystal of one site."""

    def chains(letter: int, elements: list[str], seed: int, temperature: float = 1.0, width: float = 2.0) -> Crystals:
        start = one_site(letter, np.full(CHAINS, 8), 0.1)
        constraints = make_constraints(config, elements=elements)
        settings = {"sweeps": 30, "width": width, "temperature": temperature, "batch_size": CHAINS}
        return refine(params, config, jax.random.key(seed), start, constraints=constraints, **settings).crystals

    return chains


def target(params, config, crystals: Crystals) -> np.ndarray:
    """What the chain's stationary density is the exponential of."""
    parts = log_prob(params, config, crystals, batch_size=512)
    return (parts.w + parts.xyz + parts.a).astype(np.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_elements_come_as_often_as_their_probabilities_say(chains, params, config, temperature):
    numbers = np.array([8, 16, 26])
    energies = target(params, config, one_site(FIXED, numbers, 0.0))
    probs = scipy.special.softmax(energies / temperature)
    A = chains(FIXED, ["O", "S", "Fe"], seed=1, temperature=temperature).A[:, 0]
    counts = np.array([(number == A).sum() for number in numbers])
    assert counts.sum() == CHAINS
    assert scipy.stats.chisquare(counts, CHAINS * probs).pvalue > FALSE_ALARM
    assert scipy.stats.chisquare(counts).pvalue < FALSE_ALARM  # that is: proposals alone would not do


@pytest.mark.parametrize(("letter", "temperature"), [(LINE, 0.4), (DIAGONAL, 1.0), (DIAGONAL, 2.5)])
def test_coordinates_follow_the_normalised_density(chains, params, config, letter, temperature):
    grid = np.linspace(0, 1, 512, endpoint=False)
    density = np.exp(target(params, config, one_site(letter, 8, grid)) / temperature)
    cumulative = np.concatenate([[0], np.cumsum((density + np.roll(density, -1)) / 2)])
    x = chains(letter, ["O"], seed=2, temperature=temperature).XYZ[:, 0, 0]
    u = np.interp(x, np.append(grid, 1), cumulative / cumulative[-1])
    assert scipy.stats.kstest(u, "uniform").pvalue > FALSE_ALARM
    assert scipy.stats.kstest(x, "uniform").pvalue < FALSE_ALARM


def test_lattices_are_redrawn_from_the_networks_mixture(chains, params, config):
    crystal = jax.tree.map(lambda field: jnp.asarray(field[0]), one_site(FIXED, [8], 0.0))
    M = jnp.asarray(symmetry_tables().multiplicity[CUBIC - 1])[crystal.W]
    h = jax.jit(make_apply(config), static_argnums=7)(
        params, None, crystal.G, crystal.XYZ, crystal.A, crystal.W, M, False
    )
    mixture = jax.tree.map(np.asarray, read_lattice(h[6], config))
    for temperature in (1.0, 0.4):
        L = chains(FIXED, ["O"], seed=3, temperature=temperature).L
        weight = scipy.special.softmax(mixture.log_weight / temperature)
        z = (L[:, :1] - mixture.mean[:, 0]) / (mixture.width[:, 0] * np.sqrt(temperature))
        assert scipy.stats.kstest(scipy.special.ndtr(z) @ weight, "uniform").pvalue > FALSE_ALARM
        np.testing.assert_array_equal(L, [impose_lattice(CUBIC, lattice) for lattice in L])


def test_proposals_are_symmetric(config):
    tables, width, count = symmetry_tables(), 0.5, 4000
    double = np.array([[1, 0, 0], [2, 0, 0], [0, 0, 1]])  # (x, 2x, z), up to a shift
    G, W = np.argwhere((tables.first_op[..., :3] == double).all((-1, -2)))[0]
    start = Crystals(
        np.full(1, G + 1, np.int32),
        np.ones((1, 6), np.float32),
        np.array([[[0.9, 0.3, 0.05]] * 3 + [[0, 0, 0]]], np.float32),
        np.array([[8, 26, 8, 0]], np.int32),
        np.array([[W, W, W, 0]], np.int32),
    )
    start = jax.tree.map(lambda field: field[0], on_positions(start))
    constraints = make_constraints(config, elements=["O", "S", "Fe"], ties=[[0, 2]])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None, None, None))
    def move(key, start, site, constraints, width):
        return propose(key, start, site, constraints, width, config)

    keys = jax.random.split(jax.random.key(0), count)
    proposed = jax.tree.map(np.asarray, move(keys, start, jnp.asarray(2), constraints, jnp.asarray(width)))
    shift = (proposed.XYZ - start.XYZ + 0.5) % 1 - 0.5
    assert (shift[:, [1, 3]] == 0).all()
    assert (proposed.A[:, [1, 3]] == np.array([26, 0])).all()
    np.testing.assert_array_equal(proposed.A[:, 0], proposed.A[:, 2])
    elements = np.array([(proposed.A[:, 0] == number).sum() for number in (8, 16, 26)])
    assert elements.sum() == count
    assert scipy.stats.chisquare(elements).pvalue > FALSE_ALARM
    steps = shift[:, [0, 2]]
    np.testing.assert_allclose((steps[..., 1] - 2 * steps[..., 0] + 0.5) % 1 - 0.5, 0, atol=1e-6)
    drawn = steps[..., [0, 2]].reshape(count, 4)  # x and z of both sites, each of its own
    for column in drawn.T:
        von_mises = scipy.stats.vonmises(kappa=width**-2)
        assert scipy.stats.kstest(2 * np.pi * column, von_mises.cdf).pvalue > FALSE_ALARM
        assert scipy.stats.ks_2samp(column, -column).pvalue > FALSE_ALARM
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 4.5 / count**0.5


@pytest.fixture(scope="module")
def templates(random_crystals):
    return on_positions(random_crystals(48, 5, most=3))


@pytest.fixture(scope="module")
def refine_templates(params, config):
    def refine_templates(crystals, seed=0, **settings):
        settings = {"sweeps": 1, "batch_size": 48} | settings
        return refine(params, config, jax.random.key(seed), crystals, **settings)

    return refine_templates


def test_acceptance_is_the_share_of_moves_made(refine_templates, templates):
    triclinic = on_positions(templates._replace(G=np.ones_like(templates.G), W=np.minimum(templates.W, 1)))
    refined = refine_templates(triclinic, width=1.0)
    moved = (refined.crystals.XYZ != triclinic.XYZ).any(-1)  # an accepted move shifts all three coordinates
    assert (refined.accepted, refined.proposed) == (moved.sum(), (triclinic.W > 0).sum())
    assert 0.05 < refined.acceptance < 0.95


def test_groups_letters_padding_and_positions_stay(refine_templates, templates):
    refined = refine_templates(templates, sweeps=5, width=0.5).crystals
    np.testing.assert_array_equal(refined.G, templates.G)
    np.testing.assert_array_equal(refined.W, templates.W)
    real = templates.W > 0
    np.testing.assert_array_equal(refined.A > 0, real)
    assert (refined.XYZ[~real] == 0).all()
    assert ((refined.XYZ >= 0) & (refined.XYZ < 1)).all()
    shift = refined.XYZ - on_positions(refined).XYZ
    assert np.abs((shift + 0.5) % 1 - 0.5).max() < 1e-6
    free = real & ~symmetry_tables().has_no_freedom[templates.G[:, None] - 1, templates.W]
    assert (refined.XYZ != templates.XYZ).any(-1)[free].mean() > 0.3
    assert (refined.A != templates.A)[real].mean() > 0.3
    expected = [impose_lattice(int(G), lattice) for G, lattice in zip(refined.G, refined.L, strict=True)]
    np.testing.assert_array_equal(refined.L, expected)


def test_elements_are_allowed_and_tied_sites_move_together(refine_templates, templates, config):
    # Templates come with other elements: the first sweep replaces them, likely or not.
    constraints = make_constraints(config, site_elements=[["V", "Cr"], ["O", "S"], ["V", "Cr"]], ties=[[0, 2]])
    seen = []
    for sweeps in (1, 2):
        A = refine_templates(templates, constraints=constraints, sweeps=sweeps).crystals.A
        for site, allowed in enumerate(([23, 24], [8, 16], [23, 24])):
            assert set(A[:, site]) - {0} == set(allowed)
        three = A[:, 2] > 0
        assert three.any()
        np.testing.assert_array_equal(A[three, 0], A[three, 2])
        seen.append(A)
    assert (seen[0] != seen[1]).any()


def test_the_key_decides(refine_templates, templates):
    first = refine_templates(templates, seed=1, sweeps=3, width=0.5)
    again = refine_templates(templates, seed=1, sweeps=3, width=0.5)
    other = refine_templates(templates, seed=2, sweeps=3, width=0.5)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.crystals.L[:, 0] != other.crystals.L[:, 0]).all()


@pytest.mark.slow
def test_batches_do_not_matter(refine_templates, templates):
    first = refine_templates(templates, seed=1, sweeps=3, width=0.5)
    small = refine_templates(templates, seed=1, sweeps=3, width=0.5, batch_size=20)
    np.testing.assert_array_equal(small.crystals.A, first.crystals.A)
    np.testing.assert_allclose(small.crystals.L, first.crystals.L, rtol=1e-5, atol=1e-5)
    assert np.abs((small.crystals.XYZ - first.crystals.XYZ + 0.5) % 1 - 0.5).max() < 1e-5
    assert small.acceptance == pytest.approx(first.acceptance, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sweeps": 0}, "sweeps must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"width": 0.0}, "width must be at least 1e-06 rad.*got 0.0"),
        ({"width": float("nan")}, "width must be at least 1e-06 rad.*got nan"),
        ({"temperature": 0.0}, "temperature must lie in 1e-06..1000000.0; got 0.0"),
    ],
)
def test_wrong_requests_are_refused(refine_templates, templates, settings, message):
    with pytest.raises(ValueError, match=message):
        refine_templates(templates, **settings)


def test_crystals_without_padding_are_refused(refine_templates, templates):
    full = templates._replace(W=np.maximum(templates.W, 1))
    with pytest.raises(ValueError, match="crystal 0 fills all 5 slots"):
        refine_templates(full)


def test_crystals_longer_than_the_network_reads_are_refused(refine_templates, random_crystals):
    with pytest.raises(ValueError, match=r"n_max is 5 in this network; the longest needs \d+ slots"):
        refine_templates(random_crystals(48, 9, most=8))


def test_crystals_without_sites_are_refused(refine_templates, templates):
    empty = templates._replace(W=np.zeros_like(templates.W), A=np.zeros_like(templates.A))
    with pytest.raises(ValueError, match="expected sites to move; found none"):
        refine_templates(empty)


def test_padding_and_longer_companions_do_not_matter(params, config, templates):
    sites = (templates.W > 0).sum(-1)
    short = jax.tree.map(lambda x: x[sites <= 2], templates)
    assert len(short.G) >= 2
    longest = jax.tree.map(lambda x: x[[sites.argmax()]], templates)
    together = jax.tree.map(lambda *x: np.concatenate(x), short, longest)
    assert num_slots(together).max() > 3 >= num_slots(short).max()  # so that they are cut to different lengths
    settings = {"sweeps": 3, "width": 0.5, "batch_size": 48}
    alone = refine(params, config, jax.random.key(1), short, **settings).crystals
    among = refine(params, config, jax.random.key(1), together, **settings).crystals
    np.testing.assert_array_equal(among.A[: len(short.G)], alone.A)
    difference = (among.XYZ[: len(short.G)] - alone.XYZ + 0.5) % 1 - 0.5
    assert np.abs(difference).max() < 1e-5
