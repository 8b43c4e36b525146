"""Distances in periodic cells: to the nearest image, or to every image within a cutoff."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from atomformer.data.structure import Edges

# In a Minkowski-reduced cell of any shape, the nearest image of a wrapped displacement is among these.
NEIGHBOURING_CELLS = np.array(list(itertools.product((-1, 0, 1), repeat=3)), np.float32)


def safe_norm(x: Float[Array, "*s 3"]) -> Float[Array, "*s"]:
    """Length of each vector, with gradient 0 (not NaN) at the zero vector."""
    square = jnp.sum(x**2, axis=-1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def nearest_images(
    displacements: Float[Array, "*pairs 3"], cell: Float[Array, "3 3"], pbc: Bool[Array, "3"]
) -> Float[Array, "*pairs 3"]:
    """The shortest displacement (Å) to any image; exact in a `matterform.reduction.minkowski_cell`.

    The choice of the image is piecewise constant, so gradients pass to the displacement and the cell.
    """
    fractional = jax.lax.stop_gradient(displacements @ jnp.linalg.inv(cell))
    wrapped = displacements - (jnp.round(fractional) * jnp.broadcast_to(pbc, fractional.shape)) @ cell
    shifts = (jnp.asarray(NEIGHBOURING_CELLS, cell.dtype) * pbc[None]) @ cell
    images = jax.lax.stop_gradient(wrapped[..., None, :] + shifts.reshape((1,) * (wrapped.ndim - 1) + shifts.shape))
    lengths = jnp.sum(images**2, axis=-1)
    return wrapped + shifts[jnp.argmin(lengths, axis=-1)]


def image_edges(
    positions: Float[np.ndarray, "n 3"], cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"], cutoff: float
) -> Edges:
    """All ordered pairs of atoms closer than `cutoff` (Å), with images of the atom itself; on the host, not padded."""
    from ase.neighborlist import primitive_neighbor_list

    first, second, shift = primitive_neighbor_list("ijS", pbc, cell, positions, cutoff)
    return Edges(first.astype(np.int32), second.astype(np.int32), shift.astype(np.int32), np.ones(len(first), bool))


def envelope(distances: Float[Array, "*s"], cutoff: float) -> Float[Array, "*s"]:
    """Cosine cutoff of Behler and Parrinello (2007): 1 at 0, and 0 with zero slope from `cutoff` (Å) on."""
    inside = distances < cutoff
    return jnp.where(inside, 0.5 * (1 + jnp.cos(jnp.pi * jnp.where(inside, distances, 0.0) / cutoff)), 0.0)
