"""From distances to the attention biases of all blocks, in one pass over the Gaussians.

Every block normalises the same Gaussian expansion (n, n, k) of the distances with a LayerNorm of its own and projects
it to one number (spec section 2). The statistics of the normalisation do not depend on the block. So each block's
scale, offset and projection fold into one column of a (k, depth) matrix and one constant, and one normalisation and
one matrix product serve all blocks.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atomformer.network.layers import NORM_EPS

Leaves = Mapping[str, Array]

MIN_WIDTH = 1e-5  # added to the widths of the Gaussians
# Pairs of one structure whose expansion is in memory at once. The backward pass makes several arrays of that size,
# which should fit a processor's cache; the forward pass makes two, and is split only to bound the memory.
FORWARD_PAIRS, BACKWARD_PAIRS = 10_000, 1200


def pair_coordinates(
    pair: Leaves,
    first: Int[Array, "*#pairs"],
    second: Int[Array, "*#pairs"],
    distances: Float[Array, "*pairs"],
    vocab: int,
) -> Float[Array, "*pairs"]:
    """u = mul[t] d + bias[t], with one pair of scalars for every ordered pair of tokens t (Graphormer-3D)."""
    types = first * vocab + second
    return pair["mul"][types] * distances + pair["bias"][types]


def block_biases(pair: Leaves, blocks: Mapping[str, Leaves], u: Float[Array, " pairs"]) -> Float[Array, "pairs depth"]:
    """Linear(LayerNorm(Gaussians(u))) of every block."""
    norm, projection = blocks["pair_norm"], blocks["pair_proj"]
    matrix = (norm["scale"] * projection["w"]).T
    constant = jnp.sum(norm["offset"] * projection["w"], axis=-1) + projection["b"]
    widths = jnp.abs(pair["stds"]) + MIN_WIDTH
    projected = normed_projection(u, pair["means"], widths, matrix)
    return projected + jnp.broadcast_to(constant, projected.shape)


@jax.custom_vjp
def normed_projection(
    u: Float[Array, " p"], means: Float[Array, " k"], widths: Float[Array, " k"], matrix: Float[Array, "k l"]
) -> Float[Array, "p l"]:
    """LN(gaussians(u)) @ matrix, with LN without scale and offset over the k normal densities at u.

    The backward pass computes the densities again: nothing of size p x k is kept for it.
    """

    def project(part: tuple[Float[Array, " rows"]]) -> Float[Array, "rows l"]:
        _, _, centred, inverse_std = _gaussians(part[0], means, widths)
        return centred @ matrix * inverse_std

    return _joined(_map_parts(project, FORWARD_PAIRS, u), u.shape[0])


def _map_parts(function, most: int, *columns: Array) -> Any:
    """`function` of equal parts of the columns, of at most `most` rows, one after another; results are stacked."""
    pairs = columns[0].shape[0]
    parts = -(-pairs // most)
    rows = -(-pairs // parts)

    def split(column: Array) -> Array:
        padding = [(0, parts * rows - pairs)] + [(0, 0)] * (column.ndim - 1)
        return jnp.pad(column, padding).reshape(parts, rows, *column.shape[1:])

    return jax.lax.map(function, tuple(map(split, columns)))


def _joined(parts: Array, pairs: int) -> Array:
    return parts.reshape(-1, *parts.shape[2:])[:pairs]


def _gaussians(u, means, widths):
    """(u - mean) / width / sqrt(2), the densities, these less their mean (all (p, k)), and 1 / std (p, 1)."""
    inverse = math.sqrt(0.5) / widths
    half_z = u[:, None] * inverse[None] - (means * inverse)[None]
    density = jnp.exp(-half_z * half_z) * (1 / (math.sqrt(2 * math.pi) * widths))[None]
    centred = density - jnp.mean(density, axis=-1, keepdims=True)
    return half_z, density, centred, jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + NORM_EPS)


def _forward(u, means, widths, matrix):
    y = normed_projection(u, means, widths, matrix)
    return y, (u, means, widths, matrix, y)


def _backward(residuals, dy):
    u, means, widths, matrix, y = residuals
    # The rows that fill the last part have dy = 0, so they add nothing.
    d_u, *d_parameters = _map_parts(lambda part: _gradients(*part, means, widths, matrix), BACKWARD_PAIRS, u, y, dy)
    return (_joined(d_u, u.shape[0]), *(jnp.sum(parts, axis=0) for parts in d_parameters))


@jax.checkpoint  # so that the second derivative, which conservative forces need, keeps nothing of size p x k either
def _gradients(u, y, dy, means, widths, matrix):
    # Without the barrier the compiler sees that the forward pass computed the same, and keeps it until now.
    u, dy = jax.lax.optimization_barrier((u, dy))
    half_z, density, centred, inverse_std = _gaussians(u, means, widths)
    # The backward pass of LayerNorm, h - mean(h) - normed mean(normed h) with h = matrix dy, whose two means over k
    # follow from the small arrays: mean(h) is taken out of the matrix, sum(normed h) is y . dy.
    spread = matrix - jnp.mean(matrix, axis=0, keepdims=True)
    share = jnp.sum(y * dy, axis=-1, keepdims=True) / means.shape[0] * inverse_std
    d_exponent = density * (dy @ spread.T - centred * share) * inverse_std
    d_half_z = d_exponent * half_z
    d_means = math.sqrt(2) * jnp.sum(d_half_z, axis=0) / widths
    d_widths = (2 * jnp.sum(d_half_z * half_z, axis=0) - jnp.sum(d_exponent, axis=0)) / widths
    d_u = -math.sqrt(2) * jnp.sum(d_half_z / widths[None], axis=-1)
    return d_u, d_means, d_widths, centred.T @ (dy * inverse_std)


normed_projection.defvjp(_forward, _backward)
