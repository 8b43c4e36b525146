"""The plain network and sampler compute what ours do, so comparing their speed is fair."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.baselines.crystalformer import make_plain_loss, make_plain_network, make_plain_sampler
from crystalformer import sample
from crystalformer.config import LossConfig, TransformerConfig
from crystalformer.data.crystals import Crystals
from crystalformer.loss import make_example_loss
from crystalformer.network.parameters import Params, init_params
from crystalformer.network.transformer import make_apply
from crystalformer.symmetry.wyckoff import symmetry_tables

CONFIG = TransformerConfig(
    n_max=4, h0_size=16, num_layers=2, num_heads=2, key_size=8, model_size=16, embed_size=8, Nf=2, Kx=3, Kl=2
)
GROUPS = np.array([1, 2, 12, 14, 62, 63, 139, 166, 194, 216, 221, 225], np.int32)


def lively_params(config: TransformerConfig) -> Params:
    """Parameters far from their start, where every part of the network matters."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + np.float32(0.2) * rng.standard_normal(leaf.shape, np.float32),
        init_params(jax.random.key(0), config),
    )


@pytest.fixture(scope="module")
def sampled() -> Crystals:
    """Crystals of the plain sampler."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(5), np.arange(len(GROUPS)))
    crystals = make_plain_sampler(CONFIG)(lively_params(CONFIG), keys, GROUPS)
    return Crystals(*(np.asarray(field) for field in crystals))


@pytest.mark.parametrize("changed", [{}, {"generation": "absolute", "h0_size": 0}])
def test_plain_network_computes_h(changed, sampled):
    config = dataclasses.replace(CONFIG, **changed)
    params = lively_params(config)
    crystal = Crystals(*(field[np.argmax((sampled.W > 0).sum(1))] for field in sampled))
    G, _, XYZ, A, W = crystal
    M = symmetry_tables().multiplicity[G - 1, W]
    ours = jax.jit(make_apply(config), static_argnums=7)(params, None, G, XYZ, A, W, M, False)
    plain = jax.jit(make_plain_network(config), static_argnums=3)(params, None, crystal, False)
    np.testing.assert_allclose(plain, ours, rtol=1e-4, atol=1e-4)


def test_plain_loss_is_ours(sampled):
    def losses(example_loss):
        values, _ = jax.jit(jax.vmap(example_loss, in_axes=(None, None, 0)))(lively_params(CONFIG), None, sampled)
        return values

    ours, plain = losses(make_example_loss(CONFIG, LossConfig())), losses(make_plain_loss(CONFIG))
    np.testing.assert_allclose(plain, ours, rtol=1e-4, atol=1e-3)


def test_plain_sampler_draws_the_same_crystals_as_ours(sampled):
    ours = sample(lively_params(CONFIG), CONFIG, jax.random.key(5), GROUPS)
    np.testing.assert_array_equal(sampled.W, ours.W)
    np.testing.assert_array_equal(sampled.A, ours.A)
    np.testing.assert_allclose(sampled.XYZ, ours.XYZ, atol=1e-3)
    np.testing.assert_allclose(sampled.L, ours.L, rtol=1e-3, atol=1e-3)


def test_plain_sampler_obeys_the_rules(sampled):
    tables = symmetry_tables()
    real = sampled.W > 0
    assert real[:, 0].all()
    assert not real[:, -1].any()
    assert (real[:, :-1] >= real[:, 1:]).all()  # padding is at the end
    np.testing.assert_array_equal(sampled.A > 0, real)
    assert (tables.num_letters[sampled.G - 1][:, None] >= sampled.W).all()
    previous, letter = sampled.W[:, :-1], sampled.W[:, 1:]
    fixed = tables.has_no_freedom[sampled.G[:, None] - 1, previous]
    assert (np.where(fixed, letter > previous, letter >= previous) | (letter == 0)).all()
    operation = tables.first_op[sampled.G[:, None] - 1, sampled.W]
    image = np.einsum("bnij,bnj->bni", operation[..., :3], sampled.XYZ) + operation[..., 3]
    difference = np.where(real[..., None], image - sampled.XYZ, 0)
    np.testing.assert_allclose(difference, np.round(difference), atol=1e-5)
