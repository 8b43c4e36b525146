"""Unit cells: volume, inverse and wrapping of positions, for one cell (use `jax.vmap` for several).

The rows of a cell are lattice vectors in Å.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

AnyArray = np.ndarray | Array  # cells live on the host first and on devices later


def volume(matrix: Float[AnyArray, "3 3"]) -> Float[Array, ""]:
    """Volume of a cell (Å³), positive for left-handed cells too."""
    a, b, c = jnp.asarray(matrix)
    return jnp.abs(jnp.dot(a, jnp.cross(b, c)))


def inverse(matrix: Float[AnyArray, "3 3"]) -> Float[Array, "3 3"]:
    """Inverse of a cell (1/Å), by explicit formulas: batched 3 x 3 decompositions are slow on every device."""
    a, b, c = jnp.asarray(matrix)
    duals = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1)
    return duals / jnp.dot(a, duals[:, 0])


def complete(matrix: Float[AnyArray, "3 3"], pbc: Bool[AnyArray, "3"]) -> Float[Array, "3 3"]:
    """Replaces the lattice vectors of non-periodic directions by unit vectors (1 Å) normal to the others.

    Fractional coordinates in the resulting cell do not depend on the non-periodic vectors.
    """
    rows = [jnp.where(periodic, row, 0.0) for row, periodic in zip(jnp.asarray(matrix), jnp.asarray(pbc), strict=True)]
    for i in range(3):
        rows[i] = jnp.where(pbc[i], rows[i], _unit_normal(rows[i - 2], rows[i - 1]))
    return jnp.stack(rows)


def wrap(
    positions: Float[AnyArray, "n 3"], matrix: Float[AnyArray, "3 3"], pbc: Bool[AnyArray, "3"]
) -> Float[Array, "n 3"]:
    """Wraps positions (Å) by whole lattice vectors of the periodic directions into the cell at the origin."""
    # Highest precision: by default, accelerators round products of positions to three digits.
    fractional = jnp.matmul(positions, inverse(complete(matrix, pbc)), precision="highest")
    whole = jnp.where(jnp.asarray(pbc)[None], jnp.floor(fractional), 0.0)
    return jnp.asarray(positions) - jnp.matmul(whole, matrix, precision="highest")


def _unit_normal(first: Float[Array, "3"], second: Float[Array, "3"]) -> Float[Array, "3"]:
    """A unit vector normal to two independent vectors, of which either or both may be zero."""
    absent = ~jnp.any(first != 0), ~jnp.any(second != 0)
    one = jnp.where(absent[0], jnp.where(absent[1], jnp.array([1.0, 0.0, 0.0]), second), first)
    # A zero vector is replaced by the Cartesian axis farthest from the other vector.
    axis = jnp.asarray(jnp.arange(3) == jnp.argmin(jnp.abs(one)), one.dtype)
    other = jnp.where(absent[0] | absent[1], axis, second)
    normal = jnp.cross(one, other)
    return normal / jnp.sqrt(jnp.sum(normal**2))
