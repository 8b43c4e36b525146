import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from agedi.config import ModelConfig
from agedi.network.painn import gated_head, gaussians, modulate, normalize, smooth_norms
from agedi.network.score import random_parameters


def test_gaussians_of_a_distance():
    # Three Gaussians at 0, 2 and 4 Å, 2 Å wide.
    values = gaussians(jnp.array([0.0, 3.0]), ModelConfig(n_rbf=3, cutoff=4.0))
    expected = [[1, np.exp(-0.5), np.exp(-2)], [np.exp(-9 / 8), np.exp(-1 / 8), np.exp(-1 / 8)]]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_lengths_have_a_gradient_at_zero():
    vectors = jnp.zeros((2, 3, 4)).at[0, :, 0].set(jnp.array([1.0, 2.0, 2.0]))
    np.testing.assert_allclose(smooth_norms(vectors)[0], [3, 0, 0, 0], atol=2e-4)
    gradient = jax.grad(lambda x: smooth_norms(x).sum())(vectors)
    np.testing.assert_allclose(gradient[0, :, 0], [1 / 3, 2 / 3, 2 / 3], rtol=1e-5)
    np.testing.assert_array_equal(gradient[1], 0)


def test_modulation_is_the_identity_at_first(rng):
    network = hk.without_apply_rng(hk.transform(modulate))
    scalars, vectors, context = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in ((5, 4), (5, 3, 4), (5, 6)))
    params = random_parameters(jax.random.key(0), lambda: network.init(None, scalars, vectors, context))
    for out, expected in zip(network.apply(params, scalars, vectors, context), (scalars, vectors), strict=True):
        np.testing.assert_array_equal(out, expected)


def test_head_turns_with_its_vectors(rng):
    network = hk.without_apply_rng(hk.transform(lambda s, v: gated_head(s, v, "noise")))
    scalars, vectors = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in ((5, 8), (5, 3, 8)))
    params = random_parameters(jax.random.key(0), lambda: network.init(None, scalars, vectors))
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0].astype(np.float32)
    np.testing.assert_array_equal(network.apply(params, scalars, vectors), 0)
    params = jax.tree.map(lambda x: x + 0.1, params)
    out = network.apply(params, scalars, vectors)
    assert np.abs(out).max() > 0.1
    turned = network.apply(params, scalars, jnp.einsum("ac,ncf->naf", turn, vectors))
    np.testing.assert_allclose(turned, out @ turn.T, atol=1e-5)


def test_normalized_features_have_unit_size(rng):
    scalars, vectors = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in ((5, 64), (5, 3, 64)))
    size = jnp.array([1e-4, 1.0, 1e4, 10.0, 0.0])[:, None]
    unit, arrows = normalize(3 + size * scalars, size[..., None] * vectors)
    np.testing.assert_allclose(unit.mean(1), 0, atol=1e-3)
    np.testing.assert_allclose(unit.std(1)[1:4], 1, rtol=1e-3)
    square = np.square(arrows).sum(1).mean(1)
    np.testing.assert_allclose(square[1:4], 1, rtol=1e-2)
    assert square[0] < 1e-5  # rounding errors are not blown up
    assert square[4] == 0
