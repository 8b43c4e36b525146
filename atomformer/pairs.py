"""From distances to the attention biases of all blocks, in one pass over the Gaussians.

Every block normalises the same Gaussian expansion (n, n, k) of the distances with a LayerNorm of its own and projects
it to one number (spec section 2). The statistics of the normalisation do not depend on the block. So each block's
scale, offset and projection fold into one column of a (k, depth) matrix and one constant, and one normalisation and
one matrix product serve all blocks.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Leaves = Mapping[str, Array]

MIN_WIDTH = 1e-5  # added to the widths of the Gaussians
NORM_EPS = 1e-5
# Pairs of one structure whose expansion is in memory at once: below this, splitting costs time and saves nothing.
MAX_PAIRS = 1200


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
    projected = _in_parts(normed_projection, u, pair["means"], widths, matrix)
    return projected + jnp.broadcast_to(constant, projected.shape)


def _in_parts(function, u: Float[Array, " pairs"], *parameters: Array) -> Float[Array, "pairs depth"]:
    """`function(u, *parameters)` in equal parts of at most MAX_PAIRS rows, one after another."""
    parts = -(-u.shape[0] // MAX_PAIRS)
    if parts == 1:
        return function(u, *parameters)
    rows = -(-u.shape[0] // parts)
    padded = jnp.pad(u, (0, parts * rows - u.shape[0])).reshape(parts, rows)
    out = jax.lax.map(lambda part: function(part, *parameters), padded)
    return out.reshape(parts * rows, -1)[: u.shape[0]]


@jax.custom_vjp
def normed_projection(
    u: Float[Array, " p"], means: Float[Array, " k"], widths: Float[Array, " k"], matrix: Float[Array, "k l"]
) -> Float[Array, "p l"]:
    """LN(gaussians(u)) @ matrix, with LN without scale and offset over the k normal densities at u.

    The backward pass computes the densities again: nothing of size p x k is kept for it.
    """
    _, _, centred, inverse_std = _gaussians(u, means, widths)
    return centred @ matrix * inverse_std


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


@jax.checkpoint  # so that the second derivative, which conservative forces need, keeps nothing of size p x k either
def _gradients(u, means, widths, matrix, y, dy):
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


normed_projection.defvjp(_forward, lambda residuals, dy: _gradients(*residuals, dy))
