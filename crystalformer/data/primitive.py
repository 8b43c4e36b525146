"""Primitive cells of crystals from the centring of their space group: exact, without a search and its tolerance.

A conventional cell contains up to four primitive cells, and the cost of a force field grows with the number of atoms.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from crystalformer.data.crystals import Crystals, Site, cell_parameters, iterate_crystals, wyckoff_sites
from crystalformer.symmetry.lattice import cell_problem
from crystalformer.symmetry.wyckoff import general_operations, symmetry_tables, wyckoff_operations
from matterform.evaluation.geometry import MAX_EDGE_ANG

if TYPE_CHECKING:
    from pymatgen.core import Composition, Structure

GRID = 24  # all translations of the operations are multiples of 1/24

# Rows are primitive vectors in units of the conventional ones. R is the obverse setting, in hexagonal axes.
PRIMITIVE_VECTORS = {
    "P": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "A": ((1, 0, 0), (0, 1 / 2, -1 / 2), (0, 1 / 2, 1 / 2)),
    "C": ((1 / 2, -1 / 2, 0), (1 / 2, 1 / 2, 0), (0, 0, 1)),
    "I": ((-1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (1 / 2, 1 / 2, -1 / 2)),
    "F": ((0, 1 / 2, 1 / 2), (1 / 2, 0, 1 / 2), (1 / 2, 1 / 2, 0)),
    "R": ((2 / 3, 1 / 3, 1 / 3), (-1 / 3, 1 / 3, 1 / 3), (-1 / 3, -2 / 3, 1 / 3)),
}

# Pure translations of each centring except 0, in multiples of 1/24 of the cell vectors.
TRANSLATIONS = {
    "P": frozenset(),
    "A": frozenset({(0, 12, 12)}),
    "C": frozenset({(12, 12, 0)}),
    "I": frozenset({(12, 12, 12)}),
    "F": frozenset({(0, 12, 12), (12, 0, 12), (12, 12, 0)}),
    "R": frozenset({(16, 8, 8), (8, 16, 16)}),
}


def build_structures(crystals: Crystals) -> "tuple[list[Structure | None], list[str]]":
    """Primitive cells of sampled crystals (None if a crystal has none), and the reasons (empty if it has one).

    Never raises for a bad crystal (no sites, impossible or huge lattice, NaN, ...).
    """
    structures: list[Structure | None] = []
    problems = []
    for crystal in iterate_crystals(crystals):
        cell = cell_parameters(crystal)
        problem = _problem(crystal, cell)
        problems.append(problem)
        structures.append(None if problem else _primitive(crystal, cell, wyckoff_sites(crystal)))
    return structures, problems


@functools.cache
def centring(G: int) -> str:
    """Letter of a space group's centring in its standard setting: P, A, C, I, F or R."""
    rotation, translation = _in_grid(general_operations(G))
    pure = (rotation == np.eye(3, dtype=int)).all((1, 2))
    found = frozenset(tuple(vector) for vector in translation[pure].tolist()) - {(0, 0, 0)}
    return next(letter for letter, translations in TRANSLATIONS.items() if translations == found)


@functools.cache
def first_of_translates(G: int, W: int) -> Int[np.ndarray, " p"]:
    """Indices of the operations of a Wyckoff position that give the atoms of a primitive cell.

    Operations that differ by a centring translation give equivalent atoms, so one of them is enough.

    Raises:
        ValueError: `G` is not a space group or has no letter `W`.
    """
    rotation, translation = _in_grid(wyckoff_operations(G, W))
    kept, seen = [], set()
    for index, (turn, shift) in enumerate(zip(rotation, translation, strict=True)):
        if (turn.tobytes(), tuple(shift.tolist())) not in seen:
            kept.append(index)
            for extra in ((0, 0, 0), *TRANSLATIONS[centring(G)]):
                seen.add((turn.tobytes(), tuple(((shift + extra) % GRID).tolist())))
    found = np.array(kept)
    found.setflags(write=False)
    return found


def _primitive(crystal: Crystals, cell: Float[np.ndarray, "6"], sites: Sequence[Site]) -> "Structure":
    """The primitive cell with all atoms, ordered by site, in the orientation of the conventional cell."""
    from pymatgen.core import Lattice, Structure

    group = int(crystal.G)
    vectors, inverse = _bases(centring(group))
    orbits = [site.orbit[first_of_translates(group, site.letter)] for site in sites]
    species = [_species(site.number) for site, orbit in zip(sites, orbits, strict=True) for _ in orbit]
    # Wrapped twice, because a tiny negative number modulo 1 rounds to 1.
    frac = (np.concatenate(orbits) @ inverse) % 1.0 % 1.0
    conventional = Lattice.from_parameters(*cell.tolist())
    return Structure(Lattice(vectors @ conventional.matrix), species, frac)  # pyright: ignore[reportArgumentType]


def _problem(crystal: Crystals, cell: Float[np.ndarray, "6"]) -> str:
    real = crystal.W > 0
    if not real[0]:
        return "it has no site"
    if (crystal.A[real] < 1).any():
        return "a site has no element"
    if crystal.W.max() > symmetry_tables().num_letters[int(crystal.G) - 1]:
        return "a site has a letter that its space group lacks"
    if not np.isfinite(crystal.XYZ[real]).all():
        return "its coordinates are not finite"
    if problem := cell_problem(cell):
        return problem
    # In a huge cell, neighbour searches run out of memory.
    huge = cell[:3].max() > MAX_EDGE_ANG
    return f"a cell length is too large: {cell[:3].max():.3g} angstrom" if huge else ""


@functools.cache
def _bases(letter: str) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 3"]]:
    """Primitive vectors as rows, and the integer matrix that converts conventional to primitive coordinates."""
    vectors = np.array(PRIMITIVE_VECTORS[letter], np.float64)
    return vectors, np.round(np.linalg.inv(vectors))


def _in_grid(operations: Float[np.ndarray, "m 3 4"]) -> tuple[Int[np.ndarray, "m 3 3"], Int[np.ndarray, "m 3"]]:
    """Rotations, and translations in multiples of 1/24 modulo whole cells, as exact integers."""
    rotation, translation = operations[:, :, :3], operations[:, :, 3]
    return rotation.astype(np.int64), np.round(translation * GRID).astype(np.int64) % GRID


@functools.cache
def _species(number: int) -> "Composition":
    """One atom of an element, cached because pymatgen would otherwise build and check one for each site."""
    from pymatgen.core import Composition, Element

    return Composition({Element.from_Z(number): 1})
