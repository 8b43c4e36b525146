"""Exact distances in periodic crystals, and defects for which no property can be computed."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from matterform.reduction import NEIGHBOR_CELLS, fast_minkowski_cell

if TYPE_CHECKING:
    import pymatgen.core

MIN_VOLUME_ANG3 = 0.1

# Beyond these spglib and StructureMatcher, which walk through all lattice points within the longest edge, take seconds
# to hours. Layered crystals with edges of 3 and 60 Å have an elongation (longest edge cubed over volume) of 400.
MIN_EDGE_ANG = 0.5
MAX_ELONGATION = 1e4
MAX_EDGE_ANG = 500.0  # Å; with longer edges StructureMatcher fails or runs out of memory

PAIRS_AT_ONCE = 4096  # atom pairs (27 images each) computed together; bounds the memory


def defect(structure: "pymatgen.core.Structure", min_volume_ang3: float = MIN_VOLUME_ANG3) -> str:
    """The reason why no property of a structure can be computed; empty if there is none.

    Call this before passing generated structures to a library: spglib, for example, kills the process on a NaN cell.
    """
    if len(structure) == 0:
        return "no atoms"
    cell = structure.lattice.matrix
    if not (np.isfinite(cell).all() and np.isfinite(structure.frac_coords).all()):
        return "cell or coordinates are not finite"
    volume = cell_volume(structure)
    if volume < min_volume_ang3:
        return f"cell volume too small: {volume:.3g} Å³, below {min_volume_ang3:g} Å³"
    return "" if np.isfinite(volume) else "cell volume is not finite"


def is_comparable(structure: "pymatgen.core.Structure") -> bool:
    """Whether symmetry and similarity can be computed: no defect, and no extreme reduced cell."""
    if defect(structure):
        return False
    edges = np.linalg.norm(fast_minkowski_cell(structure.lattice.matrix), axis=-1)
    if not MIN_EDGE_ANG <= edges.min() <= edges.max() <= MAX_EDGE_ANG:
        return False
    return bool(edges.max() ** 3 <= MAX_ELONGATION * cell_volume(structure))


def cell_volume(structure: "pymatgen.core.Structure") -> float:
    """Volume of the cell (Å³); NaN or infinite, without a warning, if the cell is."""
    with np.errstate(all="ignore"):
        return abs(float(np.linalg.det(structure.lattice.matrix)))


def nearest_image_distances(cell: Float[np.ndarray, "3 3"], frac: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n n"]:
    """Distance (Å) of each atom to the nearest image of every other atom; on the diagonal, to its own nearest image.

    The cell is Minkowski-reduced first. Then the 26 neighbouring cells suffice, because coordinates in the Voronoi
    cell do not exceed 3/2 (Nguyen and Stehlé, ACM Trans. Algorithms 5, 46 (2009)).

    Args:
        cell: lattice vectors as rows (Å), linearly independent.
        frac: fractional coordinates, not necessarily in [0, 1).
    """
    reduced = fast_minkowski_cell(cell)
    if reduced is not cell:
        frac = (frac % 1.0) @ cell @ np.linalg.inv(reduced)
    first, second = np.triu_indices(len(frac), k=1)
    difference = frac[first] - frac[second]
    difference = (difference - np.round(difference)) @ reduced
    shifts = NEIGHBOR_CELLS @ reduced
    square = np.empty(len(first))
    for start in range(0, len(first), PAIRS_AT_ONCE):
        images = difference[start : start + PAIRS_AT_ONCE, None] + shifts
        square[start : start + PAIRS_AT_ONCE] = np.einsum("psi,psi->ps", images, images).min(-1)
    distances = np.diag(np.full(len(frac), np.linalg.norm(reduced, axis=-1).min()))
    distances[first, second] = distances[second, first] = np.sqrt(square)
    return distances
