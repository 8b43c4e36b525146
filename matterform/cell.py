"""Unit cells: volume, inverse and wrapping of positions. For one cell; `jax.vmap` for many.

Rows are lattice vectors in Å.
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
    """The inverse of a cell, written out: a batch of 3 x 3 decompositions is slow on every device."""
    a, b, c = jnp.asarray(matrix)
    duals = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1)
    return duals / jnp.dot(a, duals[:, 0])


def complete(matrix: Float[AnyArray, "3 3"], pbc: Bool[AnyArray, "3"]) -> Float[Array, "3 3"]:
    """The cell with vectors of directions that are not periodic replaced by unit vectors normal to the others.

    Its inverse then gives fractional coordinates that do not depend on where a non-periodic vector points.
    """
    rows = [jnp.where(periodic, row, 0.0) for row, periodic in zip(jnp.asarray(matrix), jnp.asarray(pbc), strict=True)]
    for i in range(3):
        rows[i] = jnp.where(pbc[i], rows[i], _unit_normal(rows[i - 2], rows[i - 1]))
    return jnp.stack(rows)


def wrap(
    positions: Float[AnyArray, "n 3"], matrix: Float[AnyArray, "3 3"], pbc: Bool[AnyArray, "3"]
) -> Float[Array, "n 3"]:
    """Positions (Å) moved by whole periodic vectors into the cell that begins at the origin."""
    # Accelerators would round products of positions to three digits.
    fractional = jnp.matmul(positions, inverse(complete(matrix, pbc)), precision="highest")
    whole = jnp.where(jnp.asarray(pbc)[None], jnp.floor(fractional), 0.0)
    return jnp.asarray(positions) - jnp.matmul(whole, matrix, precision="highest")


def _unit_normal(first: Float[Array, "3"], second: Float[Array, "3"]) -> Float[Array, "3"]:
    """A unit vector normal to two independent vectors, of which either or both may be zero."""
    absent = ~jnp.any(first != 0), ~jnp.any(second != 0)
    one = jnp.where(absent[0], jnp.where(absent[1], jnp.array([1.0, 0.0, 0.0]), second), first)
    # Any direction will do for a missing vector, so take the axis farthest from the other.
    axis = jnp.asarray(jnp.arange(3) == jnp.argmin(jnp.abs(one)), one.dtype)
    other = jnp.where(absent[0] | absent[1], axis, second)
    normal = jnp.cross(one, other)
    return normal / jnp.sqrt(jnp.sum(normal**2))
