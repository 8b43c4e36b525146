"""Constraints of space groups on the lattice parameters (a, b, c, alpha, beta, gamma).

Angles are radians. Lengths are Å, or "scaled": divided by the cube root of the number of atoms in the conventional
cell. Functions take one crystal and compute with the library of their array argument, NumPy or `jax.numpy`.
"""

import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int


@functools.cache
def free_parameters() -> Bool[np.ndarray, "230 6"]:
    """True where a parameter is free in space group G (row G - 1); only these enter the likelihood."""
    systems = {  # (first group, last group): whether a, b, c, alpha, beta, gamma are free
        (1, 2): (1, 1, 1, 1, 1, 1),
        (3, 15): (1, 1, 1, 0, 1, 0),
        (16, 74): (1, 1, 1, 0, 0, 0),
        (75, 194): (1, 0, 1, 0, 0, 0),
        (195, 230): (1, 0, 0, 0, 0, 0),
    }
    table = np.concatenate(
        [np.tile(np.array(row, bool), (last - first + 1, 1)) for (first, last), row in systems.items()]
    )
    table.setflags(write=False)
    return table


def impose_lattice(G: Int[Any, ""] | int, lattice: Float[Any, "6"]) -> Float[Any, "6"]:
    """Sets the parameters that are not free in space group `G` to their required values; lengths in any unit, rad."""
    xp = lattice.__array_namespace__()
    a, c = lattice[0], lattice[2]
    right = xp.full_like(a, math.pi / 2)
    gamma = xp.where((G >= 143) & (G <= 194), xp.full_like(a, 2 * math.pi / 3), right)
    imposed = xp.stack([a, a, xp.where(G >= 195, a, c), right, right, gamma])
    return xp.where(xp.asarray(free_parameters())[G - 1], lattice, imposed)


def to_scaled(lattice: Float[Any, "*b 6"], num_atoms: Int[Any, "*b"] | int) -> Float[Any, "*b 6"]:
    """Divides lengths (Å) by the cube root of the number of atoms per conventional cell; angles are unchanged."""
    return _scale_lengths(lattice, num_atoms, -1 / 3)


def from_scaled(lattice: Float[Any, "*b 6"], num_atoms: Int[Any, "*b"] | int) -> Float[Any, "*b 6"]:
    """The inverse of `to_scaled`; returns lengths in Å."""
    return _scale_lengths(lattice, num_atoms, 1 / 3)


def _scale_lengths(lattice: Float[Any, "*b 6"], num_atoms: Int[Any, "*b"] | int, power: float) -> Float[Any, "*b 6"]:
    xp = lattice.__array_namespace__()
    factor = xp.asarray(num_atoms, dtype=lattice.dtype)[..., None] ** power
    return xp.concatenate([lattice[..., :3] * factor, lattice[..., 3:]], axis=-1)


def cell_problem(cell: np.ndarray) -> str:
    """The reason why no cell with these lengths (Å) and angles (degrees) exists; empty if one exists."""
    lengths, angles = cell[:3], np.radians(cell[3:])
    if not np.isfinite(cell).all():
        return "its lattice is not finite"
    if (lengths <= 0).any():
        return f"a cell length is not positive: {lengths.min():.3g} angstrom"
    cosines = np.cos(angles)
    squared_volume = 1 - (cosines**2).sum() + 2 * cosines.prod()  # of the cell with unit edges
    if ((angles <= 0) | (angles >= np.pi)).any() or squared_volume <= 0:
        return "no cell has these angles: " + ", ".join(f"{angle:.1f}" for angle in cell[3:])
    return ""
