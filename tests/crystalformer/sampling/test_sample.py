"""The sampler's draws against the network's own densities, its rules, and what it must not depend on.

Draws are tested at fixed keys; a correct sampler would fail a test at one key in 100,000.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from crystalformer.data.crystals import Crystals
from crystalformer.network.parameters import as_network
from crystalformer.network.transformer import (
    coordinate_columns,
    element_log_probs,
    lattice_columns,
    make_apply,
    next_letter_log_probs,
    read_coordinate,
    read_lattice,
)
from crystalformer.sampling import sample as sampling
from crystalformer.sampling import sampler
from crystalformer.sampling.constraints import make_constraints
from crystalformer.sampling.decoding import decode_token, empty_cache, fold_attention, grow_cache
from crystalformer.sampling.draws import Temperature
from crystalformer.sampling.sample import sample, sample_chunks
from crystalformer.sampling.sampler import PartialCrystals, make_add_token
from crystalformer.symmetry.lattice import free_parameters, impose_lattice
from crystalformer.symmetry.wyckoff import LETTERS, symmetry_tables
from matterform.elements import element_table

pytestmark = pytest.mark.usefixtures("quick")

CHUNK = 256  # one compiled kernel serves most tests
MANY = 4096
FALSE_ALARM = 1e-5
# All groups, and then triclinic ones, whose lattices and coordinates are free.
ALL_GROUPS = np.concatenate([np.arange(12 * 230) % 230 + 1, np.arange(MANY - 12 * 230) % 2 + 1]).astype(np.int32)
CUBIC = 221  # Pm-3m: a, b, c and d are fixed positions
HEATS = ({}, {"temperature": 0.6, "T1": 2.5}, {"temperature": 1.5, "top_p": 0.7})


@pytest.fixture(scope="module")
def config(tiny_config):
    return dataclasses.replace(tiny_config, n_max=4)


@pytest.fixture(scope="module")
def params(config, lively):
    return lively(config)


@pytest.fixture(scope="module")
def draw(params, config):
    """Samples with the shared kernel."""

    def draw(spacegroups, seed=0, **settings) -> Crystals:
        return sample(params, config, jax.random.key(seed), spacegroups, **{"batch_size": CHUNK} | settings)

    return draw


@pytest.fixture(scope="module")
def outputs(params, config):
    """Outputs of the network for the whole sequences of any number of crystals."""
    batched = jax.jit(jax.vmap(make_apply(config), in_axes=(None, None, 0, 0, 0, 0, 0, None)), static_argnums=7)

    def outputs(crystals: Crystals) -> np.ndarray:
        M = symmetry_tables().multiplicity[crystals.G[:, None] - 1, crystals.W]
        fields = (crystals.G, crystals.XYZ, crystals.A, crystals.W, M)
        count = len(crystals.G)
        rows = np.resize(np.arange(count), -(-count // CHUNK) * CHUNK).reshape(-1, CHUNK)
        parts = [batched(params, None, *(field[some] for field in fields), False) for some in rows]
        return np.concatenate(parts)[:count]

    return outputs


@pytest.fixture(scope="module", params=HEATS, ids=str)
def anywhere(request, draw, outputs):
    """Crystals of all groups, their outputs, and how they were sharpened."""
    heat = {"temperature": 1.0, "top_p": 1.0} | request.param
    crystals = draw(ALL_GROUPS, seed=1, **request.param)
    return crystals, outputs(crystals), heat["temperature"], heat["top_p"]


def draw_by_steps(params, config, key, spacegroups, group_size, stretches):
    """Crystals, and for every token drawn: its position, the lanes' crystals and the rows that followed."""
    params, num_lanes = jax.tree.map(jnp.asarray, params), len(spacegroups)
    network = fold_attention(as_network(params, config), config)
    settings = network, Temperature(*np.ones(3, np.float32)), make_constraints(config)

    @jax.jit
    def add_token(network, temperature, constraints, state):
        return make_add_token(network, temperature, constraints, config, group_size)(state)

    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, np.arange(num_lanes))
    lanes = sampler._first_lanes(network, keys, jnp.asarray(spacegroups), jnp.ones(num_lanes, bool), config)
    state = jnp.asarray(0), lanes, empty_cache(num_lanes, 0, config)
    steps = []
    for sites in (*stretches, config.n_max):
        state = (*state[:2], grow_cache(state[2], 5 * sites))
        while state[0] < 5 * sites and not state[1].finished.all():
            state = add_token(*settings, state)
            lanes: PartialCrystals = jax.tree.map(np.asarray, state[1]._replace(key=None))
            steps.append((int(state[0]) - 1, lanes))
    order = np.argsort(lanes.index)
    return jax.tree.map(lambda x: x[order], lanes.crystal), steps


@functools.partial(jax.jit, static_argnames="config")
def read_rows(rows, G, W, config):
    """Rows read as what follows W (element and lattice), what follows A, X and Y (coordinate), and Z (letter)."""

    def read(row, G, W):
        element = jnp.concatenate([element_log_probs(row, W, config), lattice_columns(row, config)])
        return element, coordinate_columns(row, config), next_letter_log_probs(row, G, W, config)

    return jax.vmap(read)(rows, G, W)


def assert_steps_equal_whole_sequences(params, config, group_size, stretches, num_lanes):
    spacegroups = np.arange(num_lanes, dtype=np.int32) * 17 % 230 + 1
    crystals, steps = draw_by_steps(params, config, jax.random.key(4), spacegroups, group_size, stretches)
    M = symmetry_tables().multiplicity[crystals.G[:, None] - 1, crystals.W]
    batched = jax.jit(jax.vmap(make_apply(config), in_axes=(None, None, 0, 0, 0, 0, 0, None)), static_argnums=7)
    expected = np.asarray(batched(params, None, crystals.G, crystals.XYZ, crystals.A, crystals.W, M, False))
    moved, compared = False, 0
    for position, lanes in steps:
        site, token = divmod(position, 5)
        readings = read_rows(lanes.row, lanes.crystal.G, lanes.crystal.W[:, site], config)
        rows = np.asarray(readings[(0, 1, 1, 1, 2)[token]])
        alive = ~lanes.finished
        assert alive[: alive.sum()].all()
        whole = expected[lanes.index[alive], position + 1, : rows.shape[1]]
        np.testing.assert_allclose(rows[alive], whole, rtol=1e-5, atol=2e-5)
        moved |= (lanes.index != np.arange(num_lanes)).any()
        compared += alive.sum()
    lengths = (crystals.W > 0).sum(1)
    assert moved
    assert len(set(lengths)) > 2
    assert compared == (5 * lengths + 1).sum()
    return crystals


# The cache of keys grows in the first; both grow in the golden case.
@pytest.mark.parametrize(("generation", "stretches"), [("rotary", (2,)), ("absolute", ())])
def test_logits_along_samples_equal_those_of_whole_sequences(config, lively, generation, stretches):
    config = dataclasses.replace(config, generation=generation)
    assert_steps_equal_whole_sequences(lively(config), config, group_size=4, stretches=stretches, num_lanes=16)


@pytest.mark.slow
def test_logits_along_samples_of_golden_weights_equal_those_of_whole_sequences(golden):
    stretches = sampler.STRETCHES
    assert_steps_equal_whole_sequences(golden.params, golden.config, 4, stretches, num_lanes=16)


def sharpened(log_probs: np.ndarray, temperature=1.0, top_p=1.0) -> np.ndarray:
    """Probabilities (last axis) at a temperature, of the smallest set whose sum exceeds `top_p`."""
    probs = scipy.special.softmax(np.asarray(log_probs, np.float64) / temperature, axis=-1)
    order = np.argsort(-probs, axis=-1)
    descending = np.take_along_axis(probs, order, -1)
    size = np.argmax(np.cumsum(descending, axis=-1) > min(top_p, 1 - 1e-9), axis=-1)
    kept = np.zeros_like(probs)
    np.put_along_axis(kept, order, np.where(np.arange(probs.shape[-1]) <= size[..., None], descending, 0), -1)
    return kept / kept.sum(-1, keepdims=True)


def assert_frequencies(counts: np.ndarray, probs: np.ndarray) -> None:
    """Chi-square of counts over classes; those expected less than five times are one class."""
    counts, probs, total = np.ravel(counts), np.ravel(probs), np.sum(counts)
    np.testing.assert_allclose(probs.sum(), 1, atol=1e-5)
    assert counts[probs == 0].sum() == 0
    rare = probs * total < 5
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, probs / probs.sum() * total))
    used = expected > 1e-3
    assert used.sum() > 1
    assert counts[~used].sum() == 0
    expected = expected[used] * (total / expected[used].sum())
    assert scipy.stats.chisquare(counts[used], expected).pvalue > FALSE_ALARM


def fixed_sites(G: int, letters: np.ndarray, elements: np.ndarray, n: int) -> Crystals:
    """Crystals with sites at fixed positions only: letters and elements (b, s)."""
    count, sites = letters.shape
    XYZ, A, W = np.zeros((count, n, 3), np.float32), *np.zeros((2, count, n), np.int32)
    XYZ[:, :sites] = symmetry_tables().first_op[G - 1, letters, :, 3] % 1
    A[:, :sites], W[:, :sites] = elements, letters
    return Crystals(np.full(count, G, np.int32), np.ones((count, 6), np.float32), XYZ, A, W)


@pytest.mark.parametrize("heat", HEATS, ids=str)
def test_first_letter_element_and_second_letter_are_as_probable_as_enumerated(draw, outputs, config, heat):
    numbers, fixed = np.array([8, 16, 26]), np.array([1, 2, 3, 4])
    assert symmetry_tables().has_no_freedom[CUBIC - 1, fixed].all()
    crystals = draw(
        np.full(MANY, CUBIC), seed=2, constraints=make_constraints(config, elements=["O", "S", "Fe"]), **heat
    )
    T, top_p = heat.get("temperature", 1.0), heat.get("top_p", 1.0)
    letters, elements = (grid.reshape(-1, 1) for grid in np.meshgrid(fixed, numbers, indexing="ij"))
    h = outputs(fixed_sites(CUBIC, letters, elements, config.n_max))
    first = sharpened(h[0, 0, : config.wyck_types], T, top_p)
    element = sharpened(h[:, 1, numbers], heat.get("T1", T), top_p)
    element = np.take_along_axis(element, np.searchsorted(numbers, elements), 1)
    second = sharpened(h[:, 5, : config.wyck_types], T, top_p)

    assert_frequencies(np.bincount(crystals.W[:, 0], minlength=config.wyck_types), first)
    counts = np.zeros((5, 27, config.wyck_types))
    known = crystals.W[:, 0] <= 4
    np.add.at(counts, (crystals.W[known, 0], crystals.A[known, 0], crystals.W[known, 1]), 1)
    probs = first[letters] * element * second
    assert known.sum() > 500
    assert_frequencies(counts[letters[:, 0], elements[:, 0]], probs / probs.sum())


def test_elements_are_as_probable_as_enumerated(draw, outputs, config):
    crystals = draw(np.full(MANY, CUBIC), seed=3)
    num_letters = symmetry_tables().num_letters[CUBIC - 1]
    letters = np.arange(1, num_letters + 1)[:, None]
    h = outputs(fixed_sites(CUBIC, letters, np.ones_like(letters), config.n_max))  # an element follows letters alone
    probs = np.exp(h[0, 0, 1 : num_letters + 1]) @ np.exp(h[:, 1, : config.atom_types])
    assert_frequencies(np.bincount(crystals.A[:, 0], minlength=config.atom_types), probs)


def test_forced_letters_lists_and_ties_leave_the_other_probabilities_alone(draw, outputs, config):
    constraints = make_constraints(
        config, letters="abc", site_elements=[["O", "S"], ["Fe", "Ni", "Cu"], ["O", "S", "Se"]], ties=[[0, 2]]
    )
    crystals = draw(np.full(MANY, CUBIC), seed=4, constraints=constraints, temperature=0.8)
    np.testing.assert_array_equal(crystals.W, np.tile([1, 2, 3, 0], (MANY, 1)))
    np.testing.assert_array_equal(crystals.A[:, 2], crystals.A[:, 0])
    anions, metals = np.array([8, 16]), np.array([26, 28, 29])
    elements = np.array(list(itertools.product(anions, metals)))
    h = outputs(fixed_sites(CUBIC, np.tile([1, 2], (6, 1)), elements, config.n_max))
    first, second = sharpened(h[0, 1, anions], 0.8), sharpened(h[:, 6, metals], 0.8)
    probs = first[:, None] * second[[0, 3]]
    counts = [[((crystals.A[:, :2] == (a, m)).all(1)).sum() for m in metals] for a in anions]
    assert_frequencies(np.array(counts), probs)


def assert_uniform(values: np.ndarray) -> None:
    assert len(values) >= 1000
    assert scipy.stats.kstest(values, "uniform").pvalue > FALSE_ALARM


def von_mises_mixture_cdf(x: np.ndarray, weight, location, concentration) -> np.ndarray:
    """Probability below x (b,) in [0, 1) for mixtures (b, k) in the angle 2 pi (x - 1/2), integrated numerically."""
    nodes, widths = np.polynomial.legendre.leggauss(48)
    points = x[:, None] * (nodes + 1) / 2
    angle = 2 * np.pi * (points[..., None] - 0.5) - location[:, None]
    kappa = concentration[:, None]
    density = np.exp(kappa * (np.cos(angle) - 1)) / scipy.special.i0e(kappa)  # per unit of x
    return x / 2 * np.einsum("bqk,bk,q->b", density, weight, widths)


@pytest.mark.parametrize("axis", range(3))
def test_free_coordinates_follow_their_von_mises_mixtures(anywhere, config, axis):
    crystals, h, temperature, top_p = anywhere
    operation = symmetry_tables().first_op[crystals.G[:, None] - 1, crystals.W][:, :, axis]
    drawn = (operation == np.eye(3, 4)[axis]).all(-1) & (crystals.W > 0)  # what was drawn is not changed later
    mixture = jax.tree.map(np.asarray, read_coordinate(jnp.asarray(h[:, 2 + axis :: 5][drawn]), config))
    weight = sharpened(mixture.log_weight, temperature, top_p)
    x = crystals.XYZ[..., axis][drawn].astype(np.float64)
    # Each value's own distribution function maps it to a uniform number, whatever came before it.
    u = von_mises_mixture_cdf(x, weight, mixture.location, mixture.concentration / temperature)
    assert_uniform(u)
    assert scipy.stats.kstest(x, "uniform").pvalue < FALSE_ALARM  # that is: the mixtures do matter


def test_lattices_follow_one_component_of_their_normal_mixtures(anywhere, config):
    crystals, h, temperature, top_p = anywhere
    rows = h[np.arange(MANY), 5 * (crystals.W > 0).sum(1) + 1]
    mixture = jax.tree.map(np.asarray, read_lattice(jnp.asarray(rows), config))
    width = np.sqrt(temperature) * mixture.width
    with np.errstate(divide="ignore"):
        log_weight = np.log(sharpened(mixture.log_weight, temperature, top_p))
    free = free_parameters()[crystals.G - 1]
    for j in range(6):
        # The parameters before this one say which component it was: Rosenblatt's transform of the joint density.
        z = (crystals.L[:, j, None] - mixture.mean[..., j]) / width[..., j]
        u = (scipy.special.softmax(log_weight, axis=-1) * scipy.special.ndtr(z)).sum(-1)
        log_weight = log_weight + np.where(free[:, j, None], -(z**2) / 2 - np.log(width[..., j]), 0)
        assert_uniform(u[free[:, j]])


def test_samples_obey_the_rules_of_all_230_groups(anywhere, config):
    crystals, tables = anywhere[0], symmetry_tables()
    G, L, XYZ, A, W = crystals
    assert (G.dtype, L.dtype, XYZ.dtype, A.dtype, W.dtype) == ("i4", "f4", "f4", "i4", "i4")
    np.testing.assert_array_equal(G, ALL_GROUPS)
    real, group = W > 0, G[:, None] - 1
    sites = real.sum(1)
    assert set(sites) == set(range(1, config.n_max))
    np.testing.assert_array_equal(real, np.arange(config.n_max) < sites[:, None])
    assert (tables.num_letters[group] >= W).all()
    rises = np.diff(W, axis=1) > tables.has_no_freedom[group, W][:, :-1] - 1
    assert rises[real[:, 1:]].all()
    np.testing.assert_array_equal(A > 0, real)
    assert (config.atom_types > A).all()
    assert ((XYZ >= 0) & (XYZ < 1)).all()
    assert (XYZ[~real] == 0).all()
    operation = tables.first_op[group, W]
    image = np.einsum("bnij,bnj->bni", operation[..., :3], XYZ) + operation[..., 3]
    assert np.abs((image - XYZ + 0.5) % 1 - 0.5)[real].max() < 1e-6
    imposed = [impose_lattice(int(g), lattice) for g, lattice in zip(G, L, strict=True)]
    np.testing.assert_allclose(L, imposed, rtol=1e-6, atol=1e-6)  # rounding depends on how it was compiled
    assert np.isfinite(L).all()


def test_forced_letters_are_taken_exactly(draw, config):
    tables = symmetry_tables()
    for letters in ("a", "abc", "ac"):
        groups = np.flatnonzero(tables.num_letters >= LETTERS.index(letters[-1])) + 1
        W = draw(np.resize(groups, CHUNK), constraints=make_constraints(config, letters=letters)).W
        expected = [LETTERS.index(letter) for letter in letters] + [0] * (config.n_max - len(letters))
        np.testing.assert_array_equal(W, np.tile(expected, (CHUNK, 1)))
    full = draw(np.ones(CHUNK, int), constraints=make_constraints(config, letters="aaa"))
    np.testing.assert_array_equal(full.W, np.tile([1, 1, 1, 0], (CHUNK, 1)))


def test_elements_are_among_the_allowed_and_shared_by_tied_sites(draw, config):
    constraints = make_constraints(
        config, elements=["V", "Cr", "O", "S"], site_elements=[["V", "Cr"], ["O", "S"]], ties=[[0, 2]]
    )
    for heat in HEATS:
        A = draw(ALL_GROUPS[:CHUNK], constraints=constraints, **heat).A
        for site, allowed in enumerate(([23, 24], [8, 16], [23, 24])):
            assert set(A[:, site]) - {0} == set(allowed)
        np.testing.assert_array_equal(A[:, 2], np.where(A[:, 2] > 0, A[:, 0], 0))
        assert (A[:, 2] > 0).any()


def test_radioactive_elements_and_noble_gases_can_be_left_out(draw, config):
    table = element_table()
    free = set(draw(ALL_GROUPS, seed=6).A.ravel())
    radioactive, noble = set(np.flatnonzero(table.radioactive)), set(np.flatnonzero(table.noble_gas))
    assert free & radioactive - noble
    assert free & noble - radioactive
    kept = set(
        draw(ALL_GROUPS, seed=6, constraints=make_constraints(config, no_radioactive=True, no_noble_gas=True)).A.ravel()
    )
    assert not kept & (radioactive | noble)
    assert kept == set(range(config.atom_types)) - radioactive - noble


def assert_same(found: Crystals, expected: Crystals) -> None:
    """Equal choices; numbers up to rounding, which differs with the shapes of products."""
    for name in ("G", "A", "W"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.L, expected.L, rtol=1e-5, atol=1e-5)
    assert np.abs((found.XYZ - expected.XYZ + 0.5) % 1 - 0.5).max() < 1e-5


def some(crystals: Crystals, rows) -> Crystals:
    return jax.tree.map(lambda field: field[rows], crystals)


def test_the_key_decides(draw):
    spacegroups = ALL_GROUPS[:CHUNK]
    first, again, other = draw(spacegroups, seed=5), draw(spacegroups, seed=5), draw(spacegroups, seed=6)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.W != other.W).any(1).mean() > 0.5
    assert (first.L[:, 0] != other.L[:, 0]).all()
    assert len(np.unique(first.L[:, 0])) == CHUNK  # and each crystal has its own


def test_a_raw_key_is_accepted(draw, params, config):
    raw = sample(params, config, jax.random.PRNGKey(5), ALL_GROUPS[:CHUNK], chunk_size=CHUNK)  # its other name
    jax.tree.map(np.testing.assert_array_equal, raw, draw(ALL_GROUPS[:CHUNK], seed=5))


def test_other_crystals_do_not_matter(draw):
    spacegroups = ALL_GROUPS[:CHUNK]
    expected = draw(spacegroups, seed=5)
    others = draw(np.where(np.arange(CHUNK) % 3 == 0, spacegroups, 231 - spacegroups), seed=5)
    assert_same(some(others, slice(0, None, 3)), some(expected, slice(0, None, 3)))


def test_chunks_do_not_matter(draw, params, config):
    spacegroups = ALL_GROUPS[:40]
    expected = some(draw(ALL_GROUPS[:CHUNK], seed=5), slice(40))
    chunks = list(sample_chunks(params, config, jax.random.key(5), spacegroups, batch_size=16))
    assert [len(chunk.G) for chunk in chunks] == [16, 16, 8]
    assert_same(Crystals(*map(np.concatenate, zip(*chunks, strict=True))), expected)
    assert_same(draw(spacegroups[:1], seed=5), some(expected, slice(1)))


@pytest.mark.slow
def test_groups_of_lanes_do_not_matter(draw, monkeypatch):
    expected = some(draw(ALL_GROUPS[:CHUNK], seed=5), slice(16))
    monkeypatch.setattr(sampling, "CPU_GROUP", 5)
    assert_same(draw(ALL_GROUPS[:16], seed=5), expected)


FOUR_DEVICES = """
import json
import sys
import jax
import numpy as np
from crystalformer.config import TransformerConfig
from crystalformer.sampling.sample import sample

assert jax.device_count() == 4
with np.load(sys.argv[1]) as file:
    leaves = dict(file)
params = {}
for name, leaf in leaves.items():
    module, _, leaf_name = name.rpartition(":")
    params.setdefault(module, {})[leaf_name] = leaf
config = TransformerConfig(**json.loads(sys.argv[2]))
crystals = sample(params, config, jax.random.key(5), np.arange(50) % 230 + 1, batch_size=40)
np.savez(sys.argv[3], **crystals._asdict())
"""


@pytest.mark.slow
def test_devices_do_not_matter(draw, params, config, tmp_path: pathlib.Path):
    leaves = {f"{module}:{name}": leaf for module, named in params.items() for name, leaf in named.items()}
    np.savez(tmp_path / "params.npz", **leaves)
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    files = tmp_path / "params.npz", json.dumps(dataclasses.asdict(config)), tmp_path / "crystals.npz"
    subprocess.run([sys.executable, "-c", FOUR_DEVICES, *map(str, files)], env=environment, check=True)
    with np.load(tmp_path / "crystals.npz") as file:
        found = Crystals(**file)
    assert_same(found, some(draw(ALL_GROUPS[:CHUNK], seed=5), slice(50)))


def test_kernel_compiles_once_and_computes_unfinished_lanes_only(params, config, monkeypatch):
    traces, steps = [], []

    def counted(network, cache, x, position, num_groups, group_size, config):
        traces.append(position)
        jax.debug.callback(lambda *step: steps.append(tuple(map(int, step))), position, num_groups)
        return decode_token(network, cache, x, position, num_groups, group_size, config)

    monkeypatch.setattr(sampler, "decode_token", counted)
    monkeypatch.setattr(sampling, "CPU_GROUP", 4)
    monkeypatch.setattr(sampler, "STRETCHES", ())
    config = dataclasses.replace(config, n_max=3)  # not compiled before
    compiled = None
    for seed, letters in enumerate(("", "", "a")):
        steps.clear()
        constraints = make_constraints(config, letters=letters)
        crystals = sample(params, config, jax.random.key(seed), ALL_GROUPS[:20], constraints=constraints)
        jax.effects_barrier()
        sites = (crystals.W > 0).sum(1)
        # A crystal of s sites feeds 5 s + 1 tokens; the step after the last of all only finds that nothing is left.
        unfinished = [(5 * sites >= position).sum() for position in range(5 * sites.max() + 2)]
        assert sorted(steps) == [(position, -(-count // 4)) for position, count in enumerate(unfinished)]
        assert len(traces) == (compiled := compiled or len(traces))
    assert len(steps) == 7  # one site each


@pytest.mark.parametrize(
    ("spacegroups", "settings", "message"),
    [
        ([], {}, r"spacegroups must be a list of one or more integers; got shape \(0,\)"),
        ([1, 231], {}, r"spacegroups must lie in 1\.\.230; got 231"),
        ([0], {}, r"spacegroups must lie in 1\.\.230; got 0"),
        ([1], {"temperature": 0.0}, r"temperature must .*got 0\.0"),
        ([1], {"temperature": float("nan")}, r"temperature must .*got nan"),
        ([1], {"T1": -1.0}, r"T1 must .*got -1\.0"),
        ([1], {"top_p": 1.5}, r"top_p must lie in \[0, 1\]; got 1\.5"),
        ([1], {"top_p": -0.1}, r"top_p must lie in \[0, 1\]; got -0\.1"),
        ([1], {"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ],
)
def test_wrong_requests_are_refused(draw, spacegroups, settings, message):
    with pytest.raises(ValueError, match=message):
        draw(np.array(spacegroups, np.int32), **settings)


def test_letters_that_a_group_lacks_are_refused_before_drawing(params, config):
    constraints = make_constraints(config, letters="ab")
    with pytest.raises(ValueError, match="letters: space group 1 has a to a, so b cannot be a site"):
        sample_chunks(params, config, jax.random.key(0), np.array([2, 1]), constraints=constraints)
