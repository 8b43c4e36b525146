"""Structural validity: smallest distances, volumes and densities, without relaxation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from matterform.elements import element_table
from matterform.evaluation.geometry import MIN_VOLUME_ANG3, defect, nearest_image_distances
from matterform.io.cif import UnreadableStructure, parse_structure, to_cif

if TYPE_CHECKING:
    import pymatgen.core

MIN_DISTANCE_ANG = 0.5

# The strict form: d_ij >= 0.5 (0.7 + r_i + r_j) with covalent radii r, and densities that solids can have.
RADIUS_OFFSET_ANG = 0.7
ATOM_DENSITY_RANGE_PER_ANG3 = (1e-5, 0.5)
MASS_DENSITY_RANGE_G_CM3 = (0.01, 25.0)


class Validity(NamedTuple):
    """One entry per structure. Distances are NaN where the cell or the coordinates are unusable."""

    valid: Bool[np.ndarray, " b"]  # a site's own periodic images count as atoms too close
    valid_between_sites: Bool[np.ndarray, " b"]  # as in CDVAE (Xie et al. 2022): own images are ignored
    min_distance_ang: Float[np.ndarray, " b"]  # smallest distance (Å), own periodic images included
    min_distance_between_sites_ang: Float[np.ndarray, " b"]  # inf for a single atom
    reason: tuple[str, ...]  # reason why a structure is not `valid`; empty if it is


class StrictValidity(NamedTuple):
    """One entry per structure."""

    valid: Bool[np.ndarray, " b"]
    reason: tuple[str, ...]  # the first test that failed; empty if none failed


def structural_validity(
    structures: Sequence["pymatgen.core.Structure"],
    *,
    min_distance_ang: float = MIN_DISTANCE_ANG,
    min_volume_ang3: float = MIN_VOLUME_ANG3,
) -> Validity:
    """Checks that the smallest distance >= `min_distance_ang` and the cell volume >= `min_volume_ang3` (Å, Å³)."""
    valid, between_sites, nearest, nearest_between, reasons = [], [], [], [], []
    for structure in structures:
        reason, distances = defect(structure, min_volume_ang3), np.full((2, 2), np.nan)
        if not reason:
            distances = nearest_image_distances(structure.lattice.matrix, structure.frac_coords)
            reason = _too_close(structure, distances, np.full(distances.shape, min_distance_ang))
        off_diagonal = distances[~np.eye(len(distances), dtype=bool)]
        nearest.append(distances.min())
        nearest_between.append(off_diagonal.min(initial=np.inf))
        between_sites.append(bool(nearest_between[-1] >= min_distance_ang))
        valid.append(not reason)
        reasons.append(reason)
    return Validity(
        np.array(valid, bool),
        np.array(between_sites, bool),
        np.array(nearest, np.float64),
        np.array(nearest_between, np.float64),
        tuple(reasons),
    )


def strict_validity(structures: Sequence["pymatgen.core.Structure"]) -> StrictValidity:
    """Checks distances against covalent radii, densities of atoms and mass, and that a CIF round trip loses nothing."""
    reasons = tuple(_strict_reason(structure) for structure in structures)
    return StrictValidity(np.array([not reason for reason in reasons], bool), reasons)


def _strict_reason(structure: "pymatgen.core.Structure") -> str:
    if reason := defect(structure):
        return reason
    if not structure.is_ordered:
        return "sites with partial occupancy"
    radii = element_table().covalent_radius_ang[list(structure.atomic_numbers)].astype(np.float64)
    if np.isnan(radii).any():
        return f"no covalent radius is known for {structure[int(np.isnan(radii).argmax())].species_string}"
    distances = nearest_image_distances(structure.lattice.matrix, structure.frac_coords)
    return (
        _too_close(structure, distances, 0.5 * (RADIUS_OFFSET_ANG + radii[:, None] + radii[None, :]))
        or _outside("atom density", len(structure) / structure.volume, ATOM_DENSITY_RANGE_PER_ANG3, "atoms/Å³")
        or _outside("density", float(structure.density), MASS_DENSITY_RANGE_G_CM3, "g/cm³")
        or _harm_by_cif(structure)
    )


def _too_close(
    structure: "pymatgen.core.Structure", distances: Float[np.ndarray, "n n"], limits: Float[np.ndarray, "n n"]
) -> str:
    """A description of the pair of atoms furthest below its distance limit; empty if there is none."""
    # Rounded, so that the first of equally distant pairs is chosen on every machine.
    worst = np.argmin(np.round(distances - limits, 6))
    i, j = (int(index) for index in np.unravel_index(worst, distances.shape))
    if distances[i, j] >= limits[i, j]:
        return ""
    first = f"{structure[i].species_string} (site {i})"
    second = "its own image" if i == j else f"{structure[j].species_string} (site {j})"
    return f"atoms too close: {distances[i, j]:.3f} Å between {first} and {second}, below {limits[i, j]:.3g} Å"


def _outside(name: str, value: float, allowed: tuple[float, float], unit: str) -> str:
    low, high = allowed
    return "" if low <= value <= high else f"{name} out of range: {value:.3g} {unit}, not in {low:g} to {high:g}"


def _harm_by_cif(structure: "pymatgen.core.Structure") -> str:
    try:
        again = parse_structure(to_cif(structure))
    except UnreadableStructure as error:
        return f"its CIF cannot be read again: {error}"
    if again.composition != structure.composition:
        return f"its CIF reads as {again.formula} instead of {structure.formula}"
    return ""
