"""The network: an encoder over atoms whose attention is biased by distances (docs/formulas/atomformer.md).

Everything is written for one structure; callers vmap. Parallel attention and MLP after Dehghani et al. 2023 (ViT-22B),
the pair bias after Shi et al. 2022 (Graphormer-3D) and Lu et al. 2023 (Uni-Mol+).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from atomformer.config import AtomformerConfig
from atomformer.data.structure import Structure
from atomformer.data.vocabulary import GRAPH
from atomformer.network.attention_bias import MASKED, attention_biases
from atomformer.network.heads import Outputs, add_derivatives, read_heads
from atomformer.network.parameters import Params, fold_halves, init_params, layer_norm

Apply = Callable[..., Outputs]

SYSTEM_TYPE = 3  # the token type of the system token
# Parameters that a block reads inside the scan; those of its pair bias are used before.
BLOCK_LEAVES = ("in_norm", "q_norm", "k_norm", "in_proj", "out_proj")


class Transformer(NamedTuple):
    """A parameter tree and the network as a function of it: `apply(params, key, structure) -> Outputs`."""

    params: Params
    apply: Apply


def make_transformer(key: PRNGKeyArray, config: AtomformerConfig) -> Transformer:
    """Fresh parameters, and `transformer(params, key, structure) -> Outputs` of one structure; key=None: no dropout."""
    return Transformer(init_params(key, config), make_apply(config))


def make_apply(config: AtomformerConfig) -> Apply:
    """The network as a function of its parameters, for one structure.

    With `conservative`, forces and stress are derivatives of the energy; the function can still be differentiated.
    """

    def transformer(params: Params, key: PRNGKeyArray | None, structure: Structure) -> Outputs:
        def outputs(structure: Structure) -> Outputs:
            hidden = encode(params["encoder"], key, structure, config)
            return read_heads(params["heads"], hidden, structure.mask, config)

        if config.conservative:
            return add_derivatives(outputs, structure, params["heads"], config)
        return outputs(structure)

    return transformer


def encode(
    encoder: Mapping[str, Any], key: PRNGKeyArray | None, structure: Structure, config: AtomformerConfig
) -> Float[Array, "rows d"]:
    """Hidden states of the system token (row 0) and of the atoms after the last block; there is no final norm.

    Raises:
        ValueError: as `attention_biases`.
    """
    tokens = jnp.concatenate([jnp.full((1,), GRAPH), structure.tokens])
    mask = jnp.concatenate([jnp.ones((1,), bool), structure.mask])
    biases = attention_biases(encoder, tokens, structure, config)
    biases = biases + jnp.where(mask, 0.0, MASKED)[None, None]
    x = embed_tokens(encoder, tokens, structure.token_types).astype(config.compute_dtype)
    dropout_keys = None if key is None or not config.dropout else jax.random.split(key, config.depth)

    def run(x, inputs):
        leaves, bias, dropout_key = inputs
        return block(leaves, dropout_key, x, bias, config), None

    # Only the large matrix products of a block are kept for the backward pass, with gradient checkpointing nothing:
    # recomputing the rest is cheaper than writing it to memory and reading it back.
    if config.gradient_checkpointing or not config.conservative:  # a second derivative would recompute twice
        policy = None if config.gradient_checkpointing else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        run = jax.checkpoint(run, policy=policy, prevent_cse=False)  # the scan itself prevents it
    blocks = {name: encoder["blocks"][name] for name in BLOCK_LEAVES}
    # The sum of the two halves' outputs is the output of the summed halves, at half the cost.
    blocks["out_proj"] = fold_halves(blocks["out_proj"], config.dim)
    x, _ = jax.lax.scan(run, x, (cast_floats(blocks, config.compute_dtype), biases, dropout_keys))
    return x


def embed_tokens(
    encoder: Mapping[str, Any], tokens: Int[Array, " rows"], token_types: Int[Array, " n"] | None
) -> Float[Array, "rows d"]:
    """embed(token) + Linear(element features), + the embedding of the types if given."""
    features = jax.lax.stop_gradient(encoder["metadata"])[tokens] @ encoder["features"]["w"]
    x = encoder["tokens"][tokens] + features + jnp.broadcast_to(encoder["features"]["b"], features.shape)
    if token_types is None:
        return x
    return x + encoder["token_types"][jnp.concatenate([jnp.full((1,), SYSTEM_TYPE), token_types])]


def block(
    leaves: Mapping[str, Any],
    key: PRNGKeyArray | None,
    x: Float[Array, "rows d"],
    bias: Float[Array, "rows rows"],
    config: AtomformerConfig,
) -> Float[Array, "rows d"]:
    """Parallel attention and MLP: one projection in, one out, whose two halves are both added to the residual."""
    hidden = config.mlp_ratio * config.dim
    projected = layer_norm(leaves["in_norm"], x) @ leaves["in_proj"]
    mlp = jax.nn.gelu(projected[:, :hidden], approximate=False)
    attended = attention(leaves, projected[:, hidden:], bias, config)
    update = jnp.concatenate([mlp, attended], axis=-1) @ leaves["out_proj"]
    return x + _dropout(key, update, config.dropout)


def attention(
    leaves: Mapping[str, Any],
    projected: Float[Array, "rows three_d"],
    bias: Float[Array, "rows rows"],
    config: AtomformerConfig,
) -> Float[Array, "rows d"]:
    """Attention with one bias for all heads and normalised queries and keys; the softmax is never in half precision."""
    rows = projected.shape[0]
    heads = jnp.moveaxis(projected.reshape(rows, 3, config.num_heads, -1), 0, 2)
    query, key, value = layer_norm(leaves["q_norm"], heads[0]), layer_norm(leaves["k_norm"], heads[1]), heads[2]
    logits = (query * config.head_dim**-0.5 @ jnp.swapaxes(key, 1, 2)).astype(bias.dtype) + bias[None]
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.swapaxes(weights @ value, 0, 1).reshape(rows, -1)


def _dropout(key: PRNGKeyArray | None, x: Float[Array, "*s"], rate: float) -> Float[Array, "*s"]:
    if key is None:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def cast_floats(tree: Any, dtype: str) -> Any:
    """Casts floating leaves to `dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)
