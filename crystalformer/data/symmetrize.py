"""Finds the space group, conventional cell and Wyckoff sites of a structure.

spglib finds the symmetry and idealises the cell. Where spglib leaves a choice, pyxtal's is used, because the published
sequences were made with it: origin choice 2, and as representative of a site the first atom, in pyxtal's order of
operations, that lies on the first operation of its Wyckoff position. Worker processes import this module, so it does
not import JAX.
"""

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from crystalformer.data.crystals import Crystals
from crystalformer.symmetry.lattice import impose_lattice, to_scaled
from crystalformer.symmetry.wyckoff import (
    apply_operations,
    general_operations,
    origin_shifts,
    symmetry_tables,
    wyckoff_operations,
)
from matterform.elements import MAX_ATOMIC_NUMBER
from matterform.errors import reason_of
from matterform.io.cif import Cell, UnreadableStructure, parse_cell, parse_structure

if TYPE_CHECKING:
    import spglib
    from pymatgen.core import Structure

TOLERANCES = (1e-2, 1e-4)  # Å; the second is used if the first fails
ANGLE_TOLERANCE_DEG = 5.0  # value of pymatgen and pyxtal
MAX_PASSES = 4
ON_POSITION = 1e-3  # fractional; spglib's idealised atoms are within 1e-5 of their position
CUBIC_ANGLES_DEG = (60.0, 90.0, math.degrees(math.acos(-1 / 3)))  # primitive cells of F, P and I lattices
ON_GRID = 1e-6  # fractional, relative or rad
MIN_EDGE = 2.0  # Å
MIN_VOLUME = 1.0  # Å³, of any cell of a crystal


def crystal_from_text(text: str) -> Crystals:
    """One crystal, unpadded, from CIF text or from the JSON of a pymatgen Structure.

    Raises:
        UnreadableStructure: the text cannot be parsed, or its structure cannot be symmetrized.
    """
    cell = parse_cell(text)
    return symmetrize(cell) if cell is not None else crystal_from_structure(parse_structure(text))


def crystal_from_structure(structure: "Structure") -> Crystals:
    """One crystal, unpadded, from an ordered pymatgen structure; charges and spins are ignored.

    Raises:
        UnreadableStructure: partial occupancy, an unknown element, or a structure that cannot be symmetrized.
    """
    from pymatgen.core import DummySpecies

    if not structure.is_ordered:
        raise UnreadableStructure("partial occupancy")
    for species in structure.types_of_species:
        if isinstance(species, DummySpecies):
            raise UnreadableStructure(f"unknown element {species.symbol!r}")
    return symmetrize(Cell(structure.lattice.matrix, structure.frac_coords, np.array(structure.atomic_numbers)))


def symmetrize(cell: Cell) -> Crystals:
    """The crystal, unpadded, with the given cell, which may be primitive, conventional or any other.

    Raises:
        UnreadableStructure: the cell is degenerate, atoms coincide, spglib finds no space group, or the sites found do
            not reproduce the cell.
    """
    # spglib kills the whole process if a cell is invalid.
    if not (np.isfinite(cell.lattice).all() and np.isfinite(cell.frac).all()):
        raise UnreadableStructure("cell or coordinates are not finite")
    if abs(np.linalg.det(cell.lattice)) < MIN_VOLUME:
        raise UnreadableStructure(f"the cell's volume is less than {MIN_VOLUME} Å³")
    if _coincide(cell):
        raise UnreadableStructure("atoms coincide: a site is listed twice, or its alternatives are")
    crystal = _on_grid(cell)
    return search_symmetry(cell) if crystal is None else crystal


def search_symmetry(cell: Cell) -> Crystals:
    """Does what `symmetrize` does, always with spglib.

    Raises:
        UnreadableStructure: no tolerance gives a space group whose sites reproduce the cell.
    """
    reason = ""
    for tolerance in TOLERANCES:
        try:
            return _crystal(cell, _standardized(cell, tolerance))
        except UnreadableStructure as error:
            reason = reason or str(error)
    raise UnreadableStructure(reason)


def _coincide(cell: Cell) -> bool:
    """Whether two atoms of any elements are within the tolerance; spglib compares only atoms of equal elements."""
    difference = cell.frac[:, None] - cell.frac
    distances = np.linalg.norm((difference - np.rint(difference)) @ cell.lattice, axis=-1)
    return bool(np.count_nonzero(distances < TOLERANCES[0]) > len(cell.frac))


def _on_grid(cell: Cell) -> Crystals | None:
    """The crystal if its lattice is cubic and its atoms sit on 24ths of the cell edges: rock salt, fluorite, Heusler.

    spglib spends most of its time on these few prototypes of high symmetry, so their result is cached. It does not
    depend on elements and edge: atoms on the grid coincide or are edge / 24 apart, far more than the tolerance.
    """
    lengths, angles = np.split(lattice_parameters(cell.lattice), 2)
    angle = next((angle for angle in CUBIC_ANGLES_DEG if np.abs(np.radians(angle) - angles).max() < ON_GRID), None)
    if angle is None or lengths.min() < MIN_EDGE or np.ptp(lengths) > ON_GRID * lengths[0]:
        return None
    ticks = np.rint(24 * cell.frac)
    if np.abs(cell.frac - ticks / 24).max() > ON_GRID:
        return None
    elements = list(dict.fromkeys(cell.numbers.tolist()))
    labels = tuple(elements.index(number) + 1 for number in cell.numbers.tolist())
    prototype = _prototype(angle, tuple(map(tuple, (ticks % 24).astype(int).tolist())), labels)
    scale = np.array([lengths[0]] * 3 + [1] * 3, np.float32)
    return prototype._replace(L=prototype.L * scale, A=np.array([0, *elements], np.int32)[prototype.A])


@functools.lru_cache(maxsize=4096)
def _prototype(angle_deg: float, ticks: tuple[tuple[int, int, int], ...], labels: tuple[int, ...]) -> Crystals:
    """A crystal on the grid with edges of 1 Å, whose elements are numbered 1, 2, ..."""
    import gemmi

    edge = 5.0
    lattice = np.array(gemmi.UnitCell(edge, edge, edge, angle_deg, angle_deg, angle_deg).orth.mat.tolist()).T
    crystal = search_symmetry(Cell(lattice, np.array(ticks) / 24, np.array(labels)))
    return crystal._replace(L=crystal.L / np.array([edge] * 3 + [1] * 3, np.float32))


def _standardized(cell: Cell, tolerance: float) -> "spglib.SpglibDataset":
    """spglib's dataset with the idealised conventional cell; repeated until idealising moves no atom.

    A cell that is moved by almost the tolerance can gain symmetry. With a tenth of the tolerance as the limit, 98 of
    100 real crystals need no second search, and the result is the same as when all are searched twice.
    """
    for _ in range(MAX_PASSES):
        dataset = _dataset(cell, tolerance)
        if _displacement(cell, dataset) < tolerance / 10:
            break
        cell = Cell(dataset.std_lattice, dataset.std_positions, dataset.std_types)
    return dataset


def _dataset(cell: Cell, tolerance: float) -> "spglib.SpglibDataset":
    import spglib

    try:
        dataset = spglib.get_symmetry_dataset(
            cell,  # pyright: ignore[reportArgumentType]
            symprec=tolerance,
            angle_tolerance=ANGLE_TOLERANCE_DEG,
        )
    except spglib.SpglibError as error:
        raise UnreadableStructure(f"space group not found: {reason_of(error)}") from error
    if dataset is None:
        raise UnreadableStructure("space group not found: spglib gave none; atoms may be too close to each other")
    return dataset


def _displacement(cell: Cell, dataset: "spglib.SpglibDataset") -> float:
    """Largest displacement (Å) of an atom or of the lattice vectors (by their metric) by idealising."""
    transformation = dataset.transformation_matrix
    difference = (cell.frac @ transformation.T + dataset.origin_shift)[:, None] - dataset.std_positions
    distances = np.linalg.norm((difference - np.rint(difference)) @ dataset.std_lattice, axis=-1)
    other = dataset.mapping_to_primitive[:, None] != dataset.std_mapping_to_primitive
    lattice = np.linalg.solve(transformation.T, cell.lattice)
    ideal = dataset.std_lattice @ dataset.std_lattice.T
    strain = np.abs(lattice @ lattice.T - ideal).max() / np.sqrt(ideal.max())
    return max(float(np.where(other, np.inf, distances).min(1).max()), float(strain))


def _crystal(cell: Cell, dataset: "spglib.SpglibDataset") -> Crystals:
    """Wyckoff sites of an idealised conventional cell; checks that their orbits are exactly its atoms."""
    number, numbers = dataset.number, dataset.std_types
    if not _same_composition(cell.numbers, numbers):
        raise UnreadableStructure("the conventional cell that spglib found has another composition")
    frac = dataset.std_positions + origin_shifts()[number - 1]
    sites = []
    for members in _orbits(dataset):
        letter, xyz = _representative(number, frac[members])
        sites.append((letter, *xyz, int(numbers[members[0]])))
    letters, *xyz, elements = zip(*sorted(sites), strict=True)
    lattice = to_scaled(impose_lattice(number, lattice_parameters(dataset.std_lattice)), np.int64(len(frac)))
    return Crystals(
        G=np.int32(number),
        L=lattice.astype(np.float32),
        XYZ=np.array(xyz).T.astype(np.float32) % np.float32(1),  # float32 may have rounded up to 1
        A=np.array(elements, np.int32),
        W=np.array(letters, np.int32),
    )


def _orbits(dataset: "spglib.SpglibDataset") -> list[Int[np.ndarray, " m"]]:
    """The atoms of the conventional cell as groups of equivalent ones, in the order of their first atoms."""
    # spglib gives orbits of the input atoms; atoms of the conventional cell inherit them through the primitive cell.
    orbit_of_primitive = np.empty(dataset.mapping_to_primitive.max() + 1, np.int64)
    orbit_of_primitive[dataset.mapping_to_primitive] = dataset.crystallographic_orbits
    orbit = orbit_of_primitive[dataset.std_mapping_to_primitive]
    return [np.flatnonzero(orbit == first) for first in dict.fromkeys(orbit.tolist())]


def _representative(number: int, orbit: Float[np.ndarray, "m 3"]) -> tuple[int, list[float]]:
    """Wyckoff letter of an orbit, and the coordinates of its representative, exactly on the first operation."""
    images = apply_operations(general_operations(number), orbit[0])
    # Only positions of the same multiplicity as the orbit can match.
    for letter in np.flatnonzero(symmetry_tables().multiplicity[number - 1] == len(orbit)).tolist():
        operations = wyckoff_operations(number, letter)
        change = images @ operations[0, :, :3].T + operations[0, :, 3] - images
        change -= np.rint(change)
        on_position = np.abs(change).max(-1) < ON_POSITION
        first = on_position.argmax()
        if on_position[first] and _same_points(apply_operations(operations, images[first] + change[first]), orbit):
            return letter, (np.round(images[first] + change[first], 8) % 1.0).tolist()
    raise UnreadableStructure(f"{len(orbit)} equivalent atoms are on no Wyckoff position of space group {number}")


def _same_points(points: Float[np.ndarray, "m 3"], others: Float[np.ndarray, "m 3"]) -> bool:
    """Whether two sets of fractional coordinates are equal modulo 1."""
    difference = points[:, None] - others
    near = np.abs(difference - np.rint(difference)).max(-1) < ON_POSITION
    return bool(near.any(0).all() and near.any(1).all())


def _same_composition(numbers: Int[np.ndarray, " n"], others: Int[np.ndarray, " m"]) -> bool:
    """Whether two cells contain the elements in the same proportions."""
    counts, other_counts = (np.bincount(z, minlength=MAX_ATOMIC_NUMBER + 1) for z in (numbers, others))
    return bool((counts * len(others) == other_counts * len(numbers)).all())


def lattice_parameters(lattice: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "6"]:
    """(a, b, c, alpha, beta, gamma) of the lattice vectors (rows, Å); lengths in Å, angles in rad."""
    lengths = np.linalg.norm(lattice, axis=1)
    unit = lattice / lengths[:, None]
    cosines = np.array([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]])
    return np.concatenate([lengths, np.arccos(cosines)])
