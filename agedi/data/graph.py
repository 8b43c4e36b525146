"""An atomistic structure as padded arrays; conversion from and to ASE."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from matterform.elements import MAX_ATOMIC_NUMBER

if TYPE_CHECKING:
    import ase

AnyArray = Any  # NumPy on the host, JAX inside
NO_WALLS = (-np.inf, np.inf)
CANONICAL = 1e-10  # Å; entries above the diagonal up to this size count as zero
FLAT = 1e-6  # Å³; cells of smaller volume are flat
OUTSIDE = 1e-5  # Å; tolerance for positions rounded to float32

logger = logging.getLogger(__name__)


class AtomsGraph(NamedTuple):
    """Atoms in a cell, padded to n rows; with a leading axis b on every leaf it is a batch."""

    x: Int[AnyArray, " n"]  # atomic numbers; 0 for padding and for the absorbing state of Types
    pos: Float[AnyArray, "n 3"]  # Cartesian, Å
    cell: Float[AnyArray, "3 3"]  # rows are lattice vectors, Å; the identity for molecules
    pbc: Bool[AnyArray, "3"]
    mask: Bool[AnyArray, " n"]  # True for fixed atoms, which are neither moved nor changed
    present: Bool[AnyArray, " n"]  # False for padding
    confinement: Float[AnyArray, "2"]  # z_min, z_max in Å; -inf, inf without walls
    edges: Any = None  # Neighbors; None before the neighbor search


def free_atoms(graph: AtomsGraph) -> Bool[AnyArray, " n"]:
    """Atoms that diffusion moves."""
    return graph.present & ~graph.mask


def from_atoms(
    atoms: "ase.Atoms",
    *,
    mask: str = "none",
    confinement: Sequence[float] | None = None,
    canonical_cell: bool = False,
) -> AtomsGraph:
    """Converts ASE Atoms to NumPy arrays without padding and without edges.

    Args:
        mask: `MaskFixed` fixes the atoms of FixAtoms constraints; `none` ignores constraints.
        confinement: z_min and z_max (Å) between which all atoms that are not fixed must lie.
        canonical_cell: rotate the structure so that its cell is lower triangular.

    Raises:
        ValueError: the cell is flat, a position is not finite, an atom is not an element or lies outside the
            confinement, or `MaskFixed` meets a constraint other than FixAtoms.
    """
    cell, rotation = full_cell(atoms, canonical_cell)
    if rotation is not None:
        logger.warning("the cell is not lower triangular; the structure is rotated so that it is")
    return convert(atoms, cell, rotation, mask, confinement)


def full_cell(
    atoms: "ase.Atoms", canonical: bool = False
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 3"] | None]:
    """A cell with three independent vectors (Å), and the rotation into it, or None if the cell stays as it is.

    Missing vectors of directions that are not periodic become unit vectors normal to the others. With `canonical` the
    cell is lower triangular; row vectors v of the structure (positions, forces) become v @ rotation.

    Raises:
        ValueError: the cell is flat, or has no vector along a periodic direction.
    """
    from ase.geometry import complete_cell

    cell, pbc = np.asarray(atoms.cell, float), np.asarray(atoms.pbc, bool)
    missing = ~cell.any(axis=1)
    if (missing & pbc).any():
        axes = ", ".join("abc"[i] for i in np.flatnonzero(missing & pbc))
        raise ValueError(f"is periodic along {axes} but has no cell vector there: set its cell, or its pbc to False")
    cell = np.asarray(complete_cell(cell))
    if not np.isfinite(cell).all() or abs(np.linalg.det(cell)) < FLAT:
        raise ValueError(
            f"has a flat cell, with dependent vectors {np.asarray(atoms.cell).tolist()}: give a proper one"
        )
    if not canonical or np.abs(cell[np.triu_indices(3, 1)]).max() <= CANONICAL:
        return cell, None
    lower = np.linalg.cholesky(cell @ cell.T)  # the same lengths and angles
    lower[2, 2] *= np.sign(np.linalg.det(cell))  # and the same handedness: a rotation, no reflection
    return lower, np.linalg.solve(cell, lower)


def convert(
    atoms: "ase.Atoms",
    cell: Float[np.ndarray, "3 3"],
    rotation: Float[np.ndarray, "3 3"] | None,
    mask: str,
    confinement: Sequence[float] | None,
) -> AtomsGraph:
    """Converts ASE Atoms in their `full_cell`; see `from_atoms`.

    Raises:
        ValueError: as `from_atoms`.
    """
    positions = np.asarray(atoms.positions, float)
    if len(atoms) == 0:
        raise ValueError("has no atoms")
    if not np.isfinite(positions).all():
        raise ValueError(f"has a position that is no number, of atom {np.argmin(np.isfinite(positions).all(axis=1))}")
    if (unknown := np.flatnonzero((atoms.numbers < 1) | (atoms.numbers > MAX_ATOMIC_NUMBER))).size:
        raise ValueError(f"has atom {unknown[0]} of no element (atomic number {atoms.numbers[unknown[0]]})")
    if rotation is not None:
        positions = positions @ rotation
    fixed = fixed_atoms(atoms, mask)
    if confinement is not None:
        check_confinement(positions[:, 2], fixed, confinement)
    return AtomsGraph(
        x=np.asarray(atoms.numbers, np.int32),
        pos=positions.astype(np.float32),
        cell=cell.astype(np.float32),
        pbc=np.asarray(atoms.pbc, bool),
        mask=fixed,
        present=np.ones(len(atoms), bool),
        confinement=np.array(NO_WALLS if confinement is None else confinement, np.float32),
    )


def fixed_atoms(atoms: "ase.Atoms", mask: str) -> Bool[np.ndarray, " n"]:
    """Atoms that are fixed with mask `none` or `MaskFixed`.

    Raises:
        ValueError: the mask is unknown, or `MaskFixed` meets a constraint other than FixAtoms.
    """
    from ase.constraints import FixAtoms

    if mask not in ("none", "MaskFixed"):
        raise ValueError(f"mask must be none or MaskFixed; got {mask!r}")
    fixed = np.zeros(len(atoms), bool)
    for constraint in atoms.constraints if mask == "MaskFixed" else ():
        if not isinstance(constraint, FixAtoms):
            raise ValueError(
                f"has the constraint {type(constraint).__name__}; MaskFixed supports only FixAtoms: "
                "replace it, or use mask none, which ignores constraints"
            )
        fixed[constraint.index] = True
    return fixed


def check_confinement(
    heights: Float[np.ndarray, " n"], fixed: Bool[np.ndarray, " n"], confinement: Sequence[float]
) -> None:
    """Checks that all free atoms lie between z_min and z_max (Å).

    Raises:
        ValueError: some do not; the message gives bounds that contain them.
    """
    low, high = confinement
    if not low < high:
        raise ValueError(f"confinement must be z_min < z_max; got {low:g}, {high:g}")
    outside = np.flatnonzero(~fixed & ((heights < low - OUTSIDE) | (heights > high + OUTSIDE)))
    if len(outside):
        free = heights[~fixed]
        wide = min(low, np.floor(free.min())), max(high, np.ceil(free.max()))
        raise ValueError(
            f"has {len(outside)} free atoms outside the confinement {low:g} to {high:g} angstrom, such as atom "
            f"{outside[0]} at z = {heights[outside[0]]:.3f}; use {wide[0]:g} to {wide[1]:g}, or fix these atoms"
        )


def to_atoms(
    graph: AtomsGraph,
    energy: float | None = None,
    forces: Float[AnyArray, "n 3"] | None = None,
) -> "ase.Atoms":
    """Converts a graph to ASE Atoms without its padding; fixed atoms get a FixAtoms constraint.

    Energy (eV) and forces (eV/Å) are stored in a single-point calculator named AGeDi.
    """
    import ase
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.constraints import FixAtoms

    present = np.asarray(graph.present)
    pbc = np.asarray(graph.pbc)
    atoms = ase.Atoms(
        numbers=np.asarray(graph.x)[present],
        positions=np.asarray(graph.pos, float)[present],
        cell=_without_fillers(np.asarray(graph.cell, float), pbc),
        pbc=pbc,
    )
    fixed = np.asarray(graph.mask)[present]
    if fixed.any():
        atoms.set_constraint(FixAtoms(mask=fixed))
    results: dict[str, float | np.ndarray] = {}
    if energy is not None:
        results["energy"] = float(energy)
    if forces is not None:
        results["forces"] = np.asarray(forces, float)[present]
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.calc.name = "AGeDi"  # pyright: ignore[reportAttributeAccessIssue]
    return atoms


def _without_fillers(cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The cell without the unit vectors that `full_cell` added."""
    overlaps = cell @ cell.T
    alone = np.abs(overlaps - np.diag(np.diag(overlaps))).max(axis=1) < 1e-5
    filler = ~pbc & alone & (np.abs(np.diag(overlaps) - 1) < 1e-5)
    return np.where(filler[:, None], 0.0, cell)


def pad_graph(graph: AtomsGraph, length: int) -> AtomsGraph:
    """Pads a graph without edges to `length` rows, on the host.

    Raises:
        ValueError: the structure has more than `length` atoms.
    """
    n = len(graph.x)
    if n > length:
        raise ValueError(f"a structure of {n} atoms does not fit into {length} rows; give more")
    assert graph.edges is None, "edges are searched after padding"
    rows = (0, length - n)
    return graph._replace(
        x=np.pad(graph.x, rows),
        pos=np.pad(graph.pos, [rows, (0, 0)]),
        mask=np.pad(graph.mask, rows),
        present=np.pad(graph.present, rows),
    )


def stack_graphs(graphs: Sequence[AtomsGraph]) -> AtomsGraph:
    """Stacks graphs of equal length to one batch, on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *graphs)
