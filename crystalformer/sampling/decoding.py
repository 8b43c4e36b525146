"""Evaluates the network one token at a time with cached attention: the inner loop of sampling.

Values are not cached: softmax weights sum to one, so W_v and b_v can be applied after the weighted sum of the inputs,
where they are merged with the output matrix. With absolute positions the keys need no cache either, because W_k can be
merged with the query matrix. Lanes (rows of the batch) are computed in groups, and groups without an unfinished lane
are skipped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from crystalformer.config import TransformerConfig
from crystalformer.network.parameters import Network
from crystalformer.network.transformer import FORBIDDEN, layer_norm, linear, mlp, output_layer, rotate, split_heads


class Cache(NamedTuple):
    """Attention inputs and keys of the earlier tokens, per layer and lane."""

    inputs: Float[Array, "l b t d"]  # normalised inputs of the attention
    keys: Float[Array, "l b h t k"] | None  # rotated keys; None with absolute positions


def empty_cache(num_lanes: int, num_tokens: int, config: TransformerConfig) -> Cache:
    """An empty cache for `num_tokens` positions."""
    c, dtype = config, config.compute_dtype
    inputs = jnp.zeros((c.num_layers, num_lanes, num_tokens, c.model_size), dtype)
    if c.generation == "absolute":
        return Cache(inputs, None)
    return Cache(inputs, jnp.zeros((c.num_layers, num_lanes, c.num_heads, num_tokens, c.key_size), dtype))


def cache_bytes(config: TransformerConfig) -> int:
    """Size in bytes of the cache of one lane at full length."""
    shapes = jax.eval_shape(lambda: empty_cache(1, 5 * config.n_max, config))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def grow_cache(cache: Cache, num_tokens: int) -> Cache:
    """The same cache with room for `num_tokens` positions."""
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, num_tokens - x.shape[-2]), (0, 0)]), cache)


def copy_lane(cache: Cache, source: Int[Array, ""], target: Int[Array, ""]) -> Cache:
    """Copies lane `source` to lane `target`."""

    def copy(x: Float[Array, "l b *s"]) -> Float[Array, "l b *s"]:
        return jax.lax.dynamic_update_slice_in_dim(x, jax.lax.dynamic_slice_in_dim(x, source, 1, 1), target, 1)

    return jax.tree.map(copy, cache)


def fold_attention(network: Network, config: TransformerConfig) -> Network:
    """Merges weight matrices that decoding applies one directly after the other.

    Per head, `attention_out` becomes W_v W_o, applied to the weighted sum of the inputs. With absolute positions,
    `query` becomes W_q W_k^T, whose result is multiplied with the inputs (the term with b_k is the same for every
    token and cancels in the softmax).
    """
    layers = jax.tree.map(jnp.asarray, dict(network.layers))
    value, key, out = (layers.pop(role) for role in ("value", "key", "attention_out"))
    out_by_head = out["w"].reshape(config.num_layers, config.num_heads, config.key_size, -1)
    product = jnp.einsum("ldhk,lhke->lhde", split_heads(value["w"], config), out_by_head)
    bias = out["b"] + jnp.einsum("lhk,lhke->le", split_heads(value["b"], config), out_by_head)
    layers["attention_out"] = {"w": product.reshape(config.num_layers, -1, config.model_size), "b": bias}
    if config.generation == "rotary":
        layers["key"] = key
    else:
        query, key_by_head = layers["query"], split_heads(key["w"], config)
        product = jnp.einsum("ldhk,lehk->ldhe", split_heads(query["w"], config), key_by_head)
        bias = jnp.einsum("lhk,lehk->lhe", split_heads(query["b"], config), key_by_head)
        layers["query"] = {
            "w": product.reshape(config.num_layers, config.model_size, -1),
            "b": bias.reshape(config.num_layers, -1),
        }
    return network._replace(layers=layers)


def decode_token(
    network: Network,
    cache: Cache,
    x: Float[Array, "b d"],
    position: Int[Array, ""],
    num_groups: Int[Array, ""],
    group_size: int,
    config: TransformerConfig,
) -> tuple[Float[Array, "b columns"], Cache]:
    """Raw outputs after token `x` at `position`, for the first `num_groups` groups of lanes; the rest is undefined.

    `network` is what `fold_attention` returned.
    """
    if config.generation == "absolute":
        x = x + jnp.broadcast_to(network.tables["positional_embeddings"][position], x.shape)
    layers, dtype = network.layers, x.dtype
    if config.compute_dtype == "bfloat16":
        layers, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (layers, x))

    def layer(carry: tuple[Array, Cache], inputs: Any):
        p, index = inputs

        def group(number: Int[Array, ""], carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
            x, cache = carry
            start = number * group_size
            lanes = jax.lax.dynamic_slice_in_dim(x, start, group_size)
            lanes, cache = _decode_block(p, lanes, cache, index, start, position, config)
            return jax.lax.dynamic_update_slice_in_dim(x, lanes, start, 0), cache

        # The loop over groups is inside a layer, so that its weights stay in the processor's cache.
        return jax.lax.fori_loop(0, num_groups, group, carry), None

    (x, cache), _ = jax.lax.scan(layer, (x, cache), (layers, jnp.arange(config.num_layers)))
    return map_groups(lambda lanes: output_layer(network, lanes), x.astype(dtype), group_size), cache


def map_groups(function: Callable[[Any], Array], lanes: Any, group_size: int) -> Array:
    """Maps `function` over groups of lanes; fixed shapes make rounding independent of the number of lanes."""
    groups = jax.tree.map(lambda x: x.reshape(-1, group_size, *x.shape[1:]), lanes)
    results = jax.lax.map(function, groups)
    return results.reshape(-1, *results.shape[2:])


def _decode_block(
    p: Any, x: Float[Array, "g d"], cache: Cache, layer: Any, start: Any, position: Any, config: TransformerConfig
) -> tuple[Float[Array, "g d"], Cache]:
    """`transformer.block` for one token of the group of lanes from `start` on, with earlier tokens in the cache."""
    y = layer_norm(p["attention_norm"], x)
    query = (linear(p["query"], y) * config.key_size**-0.5).reshape(x.shape[0], config.num_heads, -1)
    inputs = jax.lax.dynamic_update_slice(cache.inputs, y[None, :, None], (layer, start, position, 0))
    past = _lanes_of(inputs, layer, start, x.shape[0])
    if cache.keys is None:
        keys = None
        logits = jnp.einsum("ghd,gtd->ght", query, past)
    else:
        turn = jnp.broadcast_to(position, query.shape[:-1])
        query, key = rotate(query, turn), rotate(split_heads(linear(p["key"], y), config), turn)
        keys = jax.lax.dynamic_update_slice(cache.keys, key[None, :, :, None], (layer, start, 0, position, 0))
        logits = jnp.einsum("ghk,ghtk->ght", query, _lanes_of(keys, layer, start, x.shape[0]))
    logits = logits.astype(jnp.promote_types(x.dtype, jnp.float32))
    seen = jnp.broadcast_to(jnp.arange(logits.shape[-1]) <= position, logits.shape)
    weights = jax.nn.softmax(jnp.where(seen, logits, FORBIDDEN), axis=-1).astype(x.dtype)
    mixed = jnp.einsum("ght,gtd->ghd", weights, past)
    x = x + linear(p["attention_out"], mixed.reshape(x.shape[0], -1))
    return x + mlp(p, layer_norm(p["mlp_norm"], x)), Cache(inputs, keys)


def _lanes_of(cached: Float[Array, "l b *s"], layer: Any, start: Any, size: int) -> Float[Array, "g *s"]:
    rest = cached.shape[2:]
    return jax.lax.dynamic_slice(cached, (layer, start, *(0 for _ in rest)), (1, size, *rest))[0]
