"""One atomistic structure as padded arrays, between ASE and the network."""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int

AnyArray = Any  # NumPy on the host, JAX inside


class AtomsGraph(NamedTuple):
    """Atoms in a cell, padded to n rows; with a leading axis b on every leaf it is a batch."""

    x: Int[AnyArray, " n"]  # atomic numbers; 0 is padding, or a species not drawn yet (the absorbing state of Types)
    pos: Float[AnyArray, "n 3"]  # Cartesian, Å
    cell: Float[AnyArray, "3 3"]  # rows are lattice vectors, Å; the identity for molecules
    pbc: Bool[AnyArray, "3"]
    mask: Bool[AnyArray, " n"]  # True: fixed, never moved and never changed
    present: Bool[AnyArray, " n"]  # False: padding
    confinement: Float[AnyArray, "2"]  # z_min, z_max in Å; -inf, inf without
    edges: Any = None  # Neighbors; None before the search


def free_atoms(graph: AtomsGraph) -> Bool[AnyArray, " n"]:
    """The atoms that diffusion moves."""
    return graph.present & ~graph.mask
