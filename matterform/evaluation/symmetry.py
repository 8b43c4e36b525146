"""Space groups found by spglib, and their comparison with requested ones."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from matterform.evaluation.geometry import is_comparable

if TYPE_CHECKING:
    import pymatgen.core

SYMPREC_ANG = 0.1
ANGLE_TOLERANCE_DEG = 5.0  # pymatgen's value, which published results use


class Symmetry(NamedTuple):
    """Symmetry found by spglib, one entry per structure."""

    space_group: Int[np.ndarray, " b"]  # 1 to 230; 0 if atoms overlap or the cell is extreme
    num_atoms_primitive: Int[np.ndarray, " b"]  # atoms in the primitive cell; in the given cell if no symmetry is found


def find_symmetry(structures: Sequence["pymatgen.core.Structure"], symprec_ang: float = SYMPREC_ANG) -> Symmetry:
    """Finds the space groups of structures with the tolerance `symprec_ang` (Å)."""
    found = [_find_symmetry(structure, symprec_ang) for structure in structures]
    space_group, num_atoms = np.array(found, np.int32).reshape(-1, 2).T
    return Symmetry(space_group, num_atoms)


def is_requested(found: Int[np.ndarray, " b"], requested: Sequence[int] | np.ndarray) -> Bool[np.ndarray, " b"]:
    """Whether each space group found is exactly the requested one; a supergroup does not count.

    Raises:
        ValueError: there is not one requested space group per structure.
    """
    if len(requested) != len(found):
        raise ValueError(f"requested: expected {len(found)} space groups, one per structure; found {len(requested)}")
    return found == np.asarray(requested)


def _find_symmetry(structure: "pymatgen.core.Structure", symprec_ang: float) -> tuple[int, int]:
    import spglib

    if not is_comparable(structure):
        return 0, len(structure)
    # Species rather than atomic numbers, to distinguish sites with partial occupancy.
    kinds: dict[str, int] = {}
    labels = [kinds.setdefault(site.species_string, len(kinds) + 1) for site in structure]
    cell = (structure.lattice.matrix, structure.frac_coords, labels)
    try:
        dataset = spglib.get_symmetry_dataset(
            cell,  # pyright: ignore[reportArgumentType]
            symprec=symprec_ang,
            angle_tolerance=ANGLE_TOLERANCE_DEG,
        )
    except spglib.SpglibError:
        return 0, len(structure)
    if dataset is None:
        return 0, len(structure)
    return int(dataset.number), len(set(dataset.mapping_to_primitive.tolist()))
