"""Minkowski-reduced cells: the shortest lattice vectors, so that the nearest image lies in one of 27 cells.

The reduction is that of ASE (Nguyen and Stehlé, ACM Trans. Algorithms 5, 46 (2009)). `fast_minkowski_cell` is for the
evaluation of many generated crystals, most of whose cells need at most two steps: for 400 crystals of MP-20 it takes
0.03 ms per cell, ASE 0.3 ms.
"""

import itertools

import numpy as np
from jaxtyping import Bool, Float

NEIGHBOR_CELLS = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
_COMBINATIONS = np.concatenate([np.eye(3, dtype=int), NEIGHBOR_CELLS[np.abs(NEIGHBOR_CELLS).sum(-1) > 1]])
_ROUNDING = 1e-9  # of squared lengths
_FAST_STEPS = 4


def minkowski_cell(
    cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"] | tuple[bool, bool, bool] = (True, True, True)
) -> Float[np.ndarray, "3 3"]:
    """A Minkowski-reduced basis (Å, rows) of the lattice of the periodic directions, completed by unit vectors."""
    from ase.geometry import complete_cell, minkowski_reduce

    if not np.any(pbc):
        return np.eye(3)
    partial = np.where(np.asarray(pbc)[:, None], cell, 0.0)
    reduced, _ = minkowski_reduce(complete_cell(partial), pbc=np.asarray(pbc))  # pyright: ignore[reportArgumentType]
    return np.asarray(reduced)


def fast_minkowski_cell(cell: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """A Minkowski-reduced basis (Å, rows) of a three-dimensional lattice; a reduced cell is returned unchanged.

    In a reduced cell, adding or subtracting shorter vectors shortens no vector. The basis may differ from that of
    `minkowski_cell` if several are equally short.
    """
    reduced = cell
    for _ in range(_FAST_STEPS):
        sums = _COMBINATIONS @ reduced
        lengths = np.einsum("ci,ci->c", sums, sums)
        replaced = np.where(_COMBINATIONS != 0, lengths[:3], -1.0).argmax(-1)  # the longest of the vectors added
        shortening = lengths[replaced] * (1 - _ROUNDING) - lengths
        best = int(shortening.argmax())
        if shortening[best] <= 0:
            return reduced
        reduced = reduced.copy()
        reduced[replaced[best]] = sums[best]
    return minkowski_cell(cell)
