"""Log-probabilities against the original's numbers and by hand, and their laws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from crystalformer.config import LossConfig
from crystalformer.data.crystals import Crystals, iterate_crystals, truncate
from crystalformer.loss import crystal_log_prob, log_prob, make_example_loss
from crystalformer.network.parameters import as_network
from crystalformer.network.transformer import make_apply
from crystalformer.symmetry.lattice import free_parameters
from crystalformer.symmetry.wyckoff import symmetry_tables


def mean_loss(config, loss=None):
    """The loss of a batch, without dropout."""
    example_loss = make_example_loss(config, loss or LossConfig())

    def batch_loss(params, crystals):
        return jnp.mean(jax.vmap(lambda crystal: example_loss(params, None, crystal)[0])(crystals))

    return batch_loss


def stacked(parts):
    return np.stack([np.asarray(part) for part in parts])


def golden_parts(golden):
    return stacked(golden.values[f"logp_{name}"] for name in ("w", "xyz", "a", "l"))


def log_prob_and_gradient(golden, dtype):
    """Parts of all crystals, and gradient norms in the order of `grad_names`, in one compilation."""
    params = jax.tree.map(lambda x: x.astype(dtype), golden.params)
    G, L, XYZ, A, W = golden.crystals
    crystals = Crystals(G, L.astype(dtype), XYZ.astype(dtype), A, W)

    def loss(params):
        network = as_network(params, golden.config)
        parts = jax.vmap(lambda crystal: crystal_log_prob(network, None, crystal, golden.config))(crystals)
        return -jnp.mean(parts.total), parts

    gradient, parts = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))
    leaves, _ = jax.tree_util.tree_flatten_with_path(gradient)
    norms = {jax.tree_util.keystr(path): np.linalg.norm(leaf) for path, leaf in leaves}
    assert norms.keys() == set(golden.values["grad_names"])
    return stacked(parts), [norms[name] for name in golden.values["grad_names"]]


def test_log_probabilities_are_the_golden_ones(golden):
    network = as_network(golden.params, golden.config)
    compute = jax.jit(jax.vmap(lambda crystal: crystal_log_prob(network, None, crystal, golden.config)))
    found = compute(golden.crystals)
    np.testing.assert_allclose(stacked(found), golden_parts(golden), rtol=0, atol=2e-4)


@pytest.mark.slow
def test_gradients_are_the_golden_ones(golden):
    _, norms = log_prob_and_gradient(golden, np.float32)
    np.testing.assert_allclose(norms, golden.values["grad_norms"], rtol=1e-3, atol=1e-4)


def test_log_probabilities_and_gradients_are_the_golden_ones_in_float64(golden):
    with jax.enable_x64(True):
        parts, norms = log_prob_and_gradient(golden, np.float64)
    assert parts.dtype == np.float64
    # The original makes its rotary table in float32 even here.
    rotary = golden.config.generation == "rotary"
    np.testing.assert_allclose(parts, golden_parts(golden), rtol=0, atol=1e-4 if rotary else 1e-9)
    # Absolute: key biases shift all logits of a query alike, so their true gradient is 0.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if rotary else {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(norms, golden.values["grad_norms"], **tolerance)


@pytest.fixture(scope="module")
def params(tiny_config, lively):
    return lively(tiny_config)


@pytest.fixture(scope="module")
def crystals(random_crystals) -> Crystals:
    return random_crystals(40, 7)


@pytest.fixture(scope="module")
def found(params, tiny_config, crystals):
    return log_prob(params, tiny_config, crystals)


def test_parts_are_those_of_the_specification(params, tiny_config, crystals, found):
    """Section 3 read off the rows of h with SciPy's densities, crystal by crystal."""
    c, tables = tiny_config, symmetry_tables()
    transformer = jax.jit(make_apply(c), static_argnums=7)
    for index, one in enumerate(iterate_crystals(crystals)):
        M = tables.multiplicity[one.G - 1, one.W]
        h = np.asarray(transformer(params, None, one.G, one.XYZ, one.A, one.W, M, False), np.float64)
        sites = int((one.W > 0).sum())
        w = sum(h[5 * i, one.W[i]] for i in range(7))
        a = sum(h[5 * i + 1, one.A[i]] for i in range(7))
        xyz = 0.0
        for i in range(sites):
            for axis in np.flatnonzero(tables.free_coordinate[one.G - 1, one.W[i]]):
                weight, location, kappa = np.split(h[5 * i + 2 + axis, : 3 * c.Kx], 3)
                angle = 2 * np.pi * (one.XYZ[i, axis] - 0.5)
                xyz += np.log((np.exp(weight) * scipy.stats.vonmises(kappa, loc=location).pdf(angle)).sum())
        row = h[5 * sites + 1, c.atom_types :]
        mean, width = row[c.Kl : 7 * c.Kl].reshape(c.Kl, 6), row[7 * c.Kl : 13 * c.Kl].reshape(c.Kl, 6)
        density = (np.exp(row[: c.Kl, None]) * scipy.stats.norm(mean, width).pdf(one.L)).sum(0)
        l = np.log(density[free_parameters()[one.G - 1]]).sum()
        np.testing.assert_allclose([part[index] for part in found], [w, xyz, a, l], rtol=2e-4, atol=2e-4)


def test_loss_weighs_its_parts(params, tiny_config, crystals, found):
    one = jax.tree.map(lambda field: field[3], crystals)
    loss = LossConfig(lamb_a=2.0, lamb_w=0.5, lamb_l=0.0)
    value, parts = jax.jit(make_example_loss(tiny_config, loss))(params, None, one)
    w, xyz, a, _ = (part[3] for part in found)
    np.testing.assert_allclose(value, -(xyz + 2 * a + 0.5 * w), rtol=1e-5)
    np.testing.assert_allclose(
        [parts[f"loss_{name}"] for name in ("w", "xyz", "a", "l")], [-p[3] for p in found], rtol=1e-5
    )


def test_truncation_changes_neither_value_nor_gradient(params, tiny_config, random_crystals):
    crystals = random_crystals(16, 7, seed=4, most=3)
    compute = jax.jit(jax.value_and_grad(mean_loss(tiny_config)))
    whole, whole_gradient = compute(params, crystals)
    short, short_gradient = compute(params, truncate(crystals, 4))
    np.testing.assert_allclose(short, whole, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole_gradient))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole_gradient))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5 * scale), short_gradient, whole_gradient
    )


def test_padding_contributes_exactly_nothing(params, tiny_config, random_crystals):
    """Letters and elements after the first padding slot have log-probability 0, whatever stands in XYZ there."""
    crystals = random_crystals(8, 7, seed=4, most=3)
    network = as_network(params, tiny_config)
    compute = jax.jit(jax.vmap(lambda crystal: crystal_log_prob(network, None, crystal, tiny_config)))
    padding = crystals.W == 0
    disturbed = crystals._replace(XYZ=np.where(padding[..., None], 0.7, crystals.XYZ).astype(np.float32))
    first = np.argmax(padding, axis=1)
    plain, other = stacked(compute(crystals)), stacked(compute(disturbed))
    np.testing.assert_array_equal(plain, other)
    M = np.stack([symmetry_tables().multiplicity[G - 1, W] for G, W in zip(crystals.G, crystals.W, strict=True)])
    batched = jax.vmap(make_apply(tiny_config), in_axes=(None, None, 0, 0, 0, 0, 0, None))
    batched = jax.jit(batched, static_argnums=7)
    h = np.asarray(batched(params, None, crystals.G, crystals.XYZ, crystals.A, crystals.W, M, False))
    for i in range(8):
        assert (h[i, 5 * first[i] + 5 :: 5, 0] == 0).all()
        assert (h[i, 5 * first[i] + 1 :: 5, 0] == 0).all()


def test_a_value_depends_on_its_crystal_alone(params, tiny_config, crystals, found):
    order = np.random.default_rng(0).permutation(40)
    permuted = jax.tree.map(lambda field: field[order], crystals)
    again = log_prob(params, tiny_config, permuted, batch_size=16)
    np.testing.assert_allclose(stacked(again), stacked(found)[:, order], rtol=1e-4, atol=1e-4)


def test_sizes_without_crystals_give_nothing(params, tiny_config, crystals):
    none = jax.tree.map(lambda field: field[:0], crystals)
    assert log_prob(params, tiny_config, none).total.shape == (0,)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(LossConfig)])
def test_negative_weights_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must not be negative"):
        LossConfig(**{name: -1.0})


def test_absolute_positions_end_where_the_table_ends(tiny_config, lively, random_crystals):
    absolute = dataclasses.replace(tiny_config, generation="absolute")
    params, crystals = lively(absolute), random_crystals(6, 12, most=absolute.n_max - 1)
    narrow = log_prob(params, absolute, truncate(crystals, absolute.n_max))
    np.testing.assert_allclose(log_prob(params, absolute, crystals).total, narrow.total, rtol=1e-5)
    with pytest.raises(ValueError, match=r"needs \d+ slots, but this network has positions for n_max = 7"):
        log_prob(params, absolute, random_crystals(40, 12))
