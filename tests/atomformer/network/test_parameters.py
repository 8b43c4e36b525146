"""The norm against its definition, in both precisions."""

import jax.numpy as jnp
import numpy as np
import pytest

from atomformer.network.parameters import layer_norm


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
