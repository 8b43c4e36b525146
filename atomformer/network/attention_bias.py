"""What every block adds to its attention logits: distances between all tokens, of molecules or of crystals."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atomformer.config import AtomformerConfig
from atomformer.data.periodic import envelope, nearest_images, safe_norm
from atomformer.data.structure import Structure
from atomformer.network.pair_bias import block_biases, pair_coordinates

# Large but finite: a row with every entry masked gives a uniform softmax, not NaN.
MASKED = -1e9
# Below this share of an unmasked weight an image counts as none.
TINY = 1e-30


def attention_biases(
    encoder: Mapping[str, Any], tokens: Int[Array, " rows"], structure: Structure, config: AtomformerConfig
) -> Float[Array, "depth rows rows"]:
    """The biases of all blocks; `tokens` and rows begin with the system token. Padding is not masked here."""
    if config.periodic == "images":
        return _image_biases(encoder, tokens, structure, config)
    distances = token_distances(structure, config)
    u = pair_coordinates(encoder["pair"], tokens[:, None], tokens[None], distances, config.vocab_size)
    biases = block_biases(encoder["pair"], encoder["blocks"], u.reshape(-1))
    return biases.T.reshape(config.depth, *u.shape)


def token_distances(structure: Structure, config: AtomformerConfig) -> Float[Array, "rows rows"]:
    """Distances (Å) between all tokens, to the nearest images if the config says so."""
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
    # Each row's own highest: against one of all rows, a row of low biases would vanish.
    highest = jax.lax.stop_gradient(jax.ops.segment_max(biases, first, rows))
    terms = weights[:, None] * jnp.exp(biases - highest[first])
    sums = jnp.zeros((rows, rows, config.depth), terms.dtype).at[first, second].add(terms)
    near = sums > TINY
    totals = jnp.where(near, jnp.log(jnp.where(near, sums, 1.0)) + highest[:, None], MASKED)
    return jnp.moveaxis(totals, -1, 0)
