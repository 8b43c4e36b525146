"""Layers that blocks and heads share."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NORM_EPS = 1e-5


def layer_norm(p: Mapping[str, Array], x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """Normalises the last axis; statistics are never taken in half precision."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + NORM_EPS)
    scale, offset = (jnp.broadcast_to(p[name], x.shape) for name in ("scale", "offset"))
    return normed.astype(x.dtype) * scale + offset
