"""Initial values, folding for prediction, and LayerNorm against its definition in both precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atomformer.config import AtomformerConfig
from atomformer.network.parameters import fold_params, init_params, layer_norm


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_statistics_are_never_taken_in_half_precision(rng, offset):
    """From bfloat16 numbers far from zero comes what double precision gives, but for rounding the results."""
    x = jnp.asarray(rng.normal(offset, 1.0, (20, 64)), jnp.bfloat16)
    p = {
        "scale": jnp.asarray(rng.normal(size=64), jnp.bfloat16),
        "offset": jnp.asarray(rng.normal(size=64), jnp.bfloat16),
    }
    wide, scale, shift = (np.asarray(a, np.float64) for a in (x, p["scale"], p["offset"]))
    normed = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    found = layer_norm(p, x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), normed * scale + shift, atol=0.06)
    full = layer_norm({name: leaf.astype(jnp.float32) for name, leaf in p.items()}, x.astype(jnp.float32))
    np.testing.assert_allclose(full, normed * scale + shift, atol=2e-4)


def test_fresh_parameters_follow_the_documented_distributions():
    heads = ("formation_energy", "forces", "total_energy", "total_forces", "masked", "coords", "classification")
    config = AtomformerConfig(dim=64, num_heads=2, depth=3, k=200, num_labels=2, heads=heads)
    params = init_params(jax.random.key(0), config)
    encoder = params["encoder"]
    np.testing.assert_array_equal(encoder["pair"]["mul"], 1)
    np.testing.assert_array_equal(encoder["pair"]["bias"], 0)
    for name in ("means", "stds"):
        values = encoder["pair"][name]
        assert 0 <= values.min() < 0.2 < 2.8 < values.max() < 3
    spreads = {
        "tokens": (encoder["tokens"], 1),
        "in_proj": (encoder["blocks"]["in_proj"], 64**-0.5),
        "out_proj": (encoder["blocks"]["out_proj"], (2 * 3 * 5 * 64) ** -0.5),
        "forces": (params["heads"]["forces"]["w"], 64**-0.5),
    }
    for name, (values, expected) in spreads.items():
        assert np.std(values) == pytest.approx(expected, rel=0.2), name
    for name in ("total_energy", "total_forces", "classification"):
        np.testing.assert_array_equal(params["heads"][name]["w"], 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_conservative_models_have_no_heads_for_what_follows_from_the_energy():
    heads = ("total_energy", "forces", "coords")
    config = AtomformerConfig(dim=8, num_heads=1, depth=1, k=4, conservative=True, heads=heads)
    heads = jax.eval_shape(lambda: init_params(jax.random.key(0), config))["heads"]
    assert set(heads) == {"total_energy", "coords"}
    assert set(heads["coords"]) == {"step"}


def test_folded_projections_add_their_halves():
    config = AtomformerConfig(dim=8, num_heads=1, depth=2, k=4)
    params = init_params(jax.random.key(0), config)
    folded = fold_params(params, config)
    both = np.asarray(params["encoder"]["blocks"]["out_proj"])
    np.testing.assert_allclose(folded["encoder"]["blocks"]["out_proj"], both[..., :8] + both[..., 8:])
    again = fold_params(folded, config)
    np.testing.assert_array_equal(*(tree["encoder"]["blocks"]["out_proj"] for tree in (folded, again)))
    assert folded["heads"] is params["heads"]
