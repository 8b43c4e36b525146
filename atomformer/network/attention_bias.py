"""Additive attention biases of all blocks, from the distances between all tokens of a molecule or crystal.

Each distance is expanded in k Gaussians (Ying et al. 2021, Graphormer; Shi et al. 2022, Graphormer-3D). Every block
applies its own LayerNorm to that (n, n, k) expansion and projects it to one number. The statistics of the normalisation
are the same for all blocks, so each block's scale, offset and projection fold into one column of a (k, depth) matrix
and one constant: one normalisation and one matrix product serve all blocks (docs/formulas/atomformer.md).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atomformer.config import AtomformerConfig
from atomformer.data.periodic import envelope, nearest_images, safe_norm
from atomformer.data.structure import Structure
from atomformer.network.parameters import NORM_EPS

Leaves = Mapping[str, Array]

MIN_WIDTH = 1e-5  # added to the widths of the Gaussians
# Pairs of one structure whose expansion is in memory at once. The backward pass makes several arrays of that size,
# which should fit a processor's cache; the forward pass makes two, and is split only to bound the memory.
FORWARD_PAIRS, BACKWARD_PAIRS = 10_000, 1200
# Large but finite: a row with every entry masked gives a uniform softmax, not NaN.
MASKED = -1e9
# Below this share of an unmasked weight an image counts as none.
TINY = 1e-30


def attention_biases(
    encoder: Mapping[str, Any], tokens: Int[Array, " rows"], structure: Structure, config: AtomformerConfig
) -> Float[Array, "depth rows rows"]:
    """The biases of all blocks; row 0 is the system token. Padding is not masked here.

    Raises:
        ValueError: the config has explicit periodic images, but the structure has no edges.
    """
    if config.periodic == "images":
        return _image_biases(encoder, tokens, structure, config)
    distances = token_distances(structure, config)
    u = pair_coordinates(encoder["pair"], tokens[:, None], tokens[None], distances, config.vocab_size)
    biases = block_biases(encoder["pair"], encoder["blocks"], u.reshape(-1))
    return biases.T.reshape(config.depth, *u.shape)


def token_distances(structure: Structure, config: AtomformerConfig) -> Float[Array, "rows rows"]:
    """Distances (Å) between all tokens; with `periodic="minimum_image"` to the nearest images."""
    displacements = structure.positions[None] - structure.positions[:, None]
    if config.periodic == "minimum_image" and structure.cell is not None and structure.pbc is not None:
        displacements = nearest_images(displacements, structure.cell, structure.pbc)
    system = system_distances(structure, config)
    own = jnp.concatenate([jnp.zeros_like(system[:1]), system])
    return jnp.concatenate([own[None], jnp.concatenate([system[:, None], safe_norm(displacements)], axis=1)])


def system_distances(structure: Structure, config: AtomformerConfig) -> Float[Array, " n"]:
    """Distances (Å) of the atoms from the system token, which is at their mean.

    In a crystal they are 0: the mean, and so the energy, would change with the choice of each atom's image.
    """
    weight = structure.mask[:, None].astype(structure.positions.dtype)
    mean = jnp.sum(structure.positions * weight, axis=0, keepdims=True) / jnp.sum(weight)
    distances = safe_norm(structure.positions - mean)
    if config.periodic == "none" or structure.pbc is None:
        return distances
    return jnp.where(jnp.any(structure.pbc), 0.0, distances)


def _image_biases(encoder, tokens, structure: Structure, config: AtomformerConfig) -> Float[Array, "depth rows rows"]:
    """Biases of an attention that sees every image within the cutoff as a token of its own.

    Images of an atom share its key and value, so their weights add up to one weight, and the bias for the atom is
    log sum_T f(d_T) exp(bias(d_T)) with the envelope f. Atoms see themselves and the system token whatever the cutoff.
    """
    edges, rows = structure.edges, tokens.shape[0]
    if edges is None:
        raise ValueError('periodic "images" needs the edges of every structure; make them with periodic.image_edges')
    displacements = structure.positions[edges.second] - structure.positions[edges.first]
    if structure.cell is not None:
        displacements = displacements + edges.shift.astype(displacements.dtype) @ structure.cell
    between = safe_norm(displacements)
    system, own = system_distances(structure, config), jnp.arange(rows)
    to_system = jnp.zeros_like(own[1:])
    first = jnp.concatenate([edges.first + 1, own, to_system, own[1:]])
    second = jnp.concatenate([edges.second + 1, own, own[1:], to_system])
    distances = jnp.concatenate([between, jnp.zeros(rows, between.dtype), system, system])
    seen = jnp.where(edges.mask, envelope(between, config.cutoff), 0.0)
    weights = jnp.concatenate([seen, jnp.ones(3 * rows - 2, seen.dtype)])
    u = pair_coordinates(encoder["pair"], tokens[first], tokens[second], distances, config.vocab_size)
    biases = block_biases(encoder["pair"], encoder["blocks"], u)
    # The largest bias of each row: relative to that of all rows, a row of low biases would underflow.
    highest = jax.lax.stop_gradient(jax.ops.segment_max(biases, first, rows))
    terms = weights[:, None] * jnp.exp(biases - highest[first])
    sums = jnp.zeros((rows, rows, config.depth), terms.dtype).at[first, second].add(terms)
    near = sums > TINY
    totals = jnp.where(near, jnp.log(jnp.where(near, sums, 1.0)) + highest[:, None], MASKED)
    return jnp.moveaxis(totals, -1, 0)


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
    # Without the barrier the compiler would reuse these arrays from the forward pass, and keep them until now.
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
