"""The parameter tree: names, shapes and initial values; and LayerNorm, which all modules use.

Blocks are stacked on a leading axis; linear layers are (in, out).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from atomformer.config import AtomformerConfig
from atomformer.network.features import element_features

Params = Mapping[str, Any]

NUM_FEATURES = 17
NUM_TOKEN_TYPES = 4  # three for the caller, one for the system token
# Å²/eV: initial value of the learned step in denoised position = position + step x force.
# The optimum is 0.1 for bonds of 10 eV/Å², and less for stiffer ones.
FIRST_STEP = 0.01
NORM_EPS = 1e-5  # added to the variance in every LayerNorm


def init_params(key: PRNGKeyArray, config: AtomformerConfig) -> Params:
    """Fresh float32 parameters.

    Means and widths of the Gaussians are U(0, 3), mul is 1, bias is 0 (docs/formulas/atomformer.md). Tables are N(0, 1)
    and weights N(0, 1/inputs), smaller by sqrt(2 depth) in projections to the residual stream. The heads for labels and
    total quantities are zero.
    """
    encoder_key, head_key = jax.random.split(key)
    return {"encoder": _init_encoder(encoder_key, config), "heads": _init_heads(head_key, config)}


def fold_halves(out_proj: Float[Array, "*s columns"], dim: int) -> Float[Array, "*s dim"]:
    """The output projection of a block with its two halves, which are both added to the residual, summed."""
    return out_proj if out_proj.shape[-1] == dim else out_proj[..., :dim] + out_proj[..., dim:]


def fold_params(params: Params, config: AtomformerConfig) -> Params:
    """The same network with fewer operations, for prediction only: training needs both halves of out_proj."""
    blocks = params["encoder"]["blocks"]
    blocks = {**blocks, "out_proj": fold_halves(blocks["out_proj"], config.dim)}
    return {**params, "encoder": {**params["encoder"], "blocks": blocks}}


def layer_norm(p: Mapping[str, Array], x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """Normalises the last axis; statistics are never taken in half precision."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + NORM_EPS)
    scale, offset = (jnp.broadcast_to(p[name], x.shape) for name in ("scale", "offset"))
    return normed.astype(x.dtype) * scale + offset


def _norm(*shape: int) -> dict[str, Array]:
    return {"scale": jnp.ones(shape), "offset": jnp.zeros(shape)}


def _normal(key: PRNGKeyArray, shape: tuple[int, ...], std: float) -> Float[Array, "..."]:
    return std * jax.random.normal(key, shape)


def _init_encoder(key: PRNGKeyArray, config: AtomformerConfig) -> dict[str, Any]:
    c, hidden, pairs = config, config.mlp_ratio * config.dim, (config.vocab_size + 1) ** 2
    keys = iter(jax.random.split(key, 9))
    return {
        "tokens": _normal(next(keys), (c.vocab_size, c.dim), 1.0),
        "token_types": _normal(next(keys), (NUM_TOKEN_TYPES, c.dim), 1.0),
        "features": {
            "w": _normal(next(keys), (NUM_FEATURES, c.dim), NUM_FEATURES**-0.5),
            "b": jnp.zeros(c.dim),
        },
        "metadata": jnp.asarray(element_features()),
        "pair": {
            "mul": jnp.ones(pairs),
            "bias": jnp.zeros(pairs),
            "means": jax.random.uniform(next(keys), (c.k,), maxval=3.0),
            "stds": jax.random.uniform(next(keys), (c.k,), maxval=3.0),
        },
        "blocks": {
            "in_norm": _norm(c.depth, c.dim),
            "q_norm": _norm(c.depth, c.head_dim),
            "k_norm": _norm(c.depth, c.head_dim),
            "in_proj": _normal(next(keys), (c.depth, c.dim, hidden + 3 * c.dim), c.dim**-0.5),
            "out_proj": _normal(
                next(keys), (c.depth, hidden + c.dim, 2 * c.dim), 1 / math.sqrt(2 * c.depth * (hidden + c.dim))
            ),
            "pair_norm": _norm(c.depth, c.k),
            "pair_proj": {"w": _normal(next(keys), (c.depth, c.k), c.k**-0.5), "b": jnp.zeros(c.depth)},
        },
    }


def _init_heads(key: PRNGKeyArray, config: AtomformerConfig) -> dict[str, Any]:
    c = config
    keys = dict(zip(c.heads, jax.random.split(key, max(len(c.heads), 1)), strict=False))

    def linear(name: str, outputs: int) -> dict[str, Array]:
        return {"w": _normal(keys[name], (c.dim, outputs), c.dim**-0.5), "b": jnp.zeros(outputs)}

    def read(name: str) -> dict[str, Any]:
        match name:
            case "formation_energy":
                return {"norm": _norm(c.dim), "w": linear(name, 1)["w"]}
            case "total_energy":
                return {"norm": _norm(c.dim), "w": jnp.zeros((c.dim, 1))}
            case "forces":
                return {} if c.conservative else {"norm": _norm(c.dim), **linear(name, 3)}
            case "total_forces":
                return {} if c.conservative else {"norm": _norm(c.dim), "w": jnp.zeros((c.dim, 3))}
            case "masked":
                return linear(name, c.vocab_size)
            case "coords":
                return {"step": jnp.full((1,), FIRST_STEP)} if c.conservative else linear(name, 3)
            case _:
                return {"norm": _norm(c.dim), "w": jnp.zeros((c.dim, c.num_labels))}

    return {name: leaves for name in c.heads if (leaves := read(name))}
