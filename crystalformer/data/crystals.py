"""Crystals in model units, and their conversion to pymatgen structures and symmetric CIF text."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from crystalformer.config import TransformerConfig
from crystalformer.symmetry.lattice import from_scaled, impose_lattice
from crystalformer.symmetry.wyckoff import LETTERS, apply_operations, symmetry_tables, wyckoff_operations
from matterform.io.cif import CifSite, sites_to_cif

if TYPE_CHECKING:
    from pymatgen.core import Structure


class Crystals(NamedTuple):
    """A batch of crystals, padded to n sites; without the axis b, one crystal.

    Sites are sorted by W, then x, y, z; padding (zeros) is at the end, and there is at least one padding slot.
    """

    G: Int[Any, "*b"]  # space group, 1 to 230
    L: Float[Any, "*b 6"]  # a, b, c of the conventional cell (Å) / cbrt(its number of atoms); alpha, beta, gamma (rad)
    XYZ: Float[Any, "*b n 3"]  # fractional coordinates in [0, 1) of the representative of each site's orbit
    A: Int[Any, "*b n"]  # atomic number, 0 in padding
    W: Int[Any, "*b n"]  # Wyckoff letter, a=1 ... z=26, A=27, 0 in padding


class Site(NamedTuple):
    """A symmetry-inequivalent site in float64, exactly on its Wyckoff position."""

    number: int  # atomic number
    letter: int
    orbit: Float[np.ndarray, "m 3"]  # fractional, in [0, 1); the representative first


def iterate_crystals(crystals: Crystals) -> Iterator[Crystals]:
    """Yields the crystals of a batch one by one, as NumPy arrays."""
    for fields in zip(*map(np.asarray, crystals), strict=True):
        yield Crystals(*fields)


def num_sites(crystals: Crystals) -> Int[Any, "*b"]:
    """Number of symmetry-inequivalent sites."""
    return (np.asarray(crystals.W) > 0).sum(-1)


def num_slots(crystals: Crystals) -> Int[np.ndarray, " b"]:
    """Number of slots that each crystal needs: its sites and the padding slot that ends it."""
    return num_sites(crystals) + 1


def num_atoms(crystals: Crystals) -> Int[Any, "*b"]:
    """Number of atoms in the conventional cell."""
    group = np.asarray(crystals.G)[..., None]
    return symmetry_tables().multiplicity[group - 1, np.asarray(crystals.W)].sum(-1)


def truncate(crystals: Crystals, n: int) -> Crystals:
    """The batch with `n` slots per crystal.

    Raises:
        ValueError: a crystal needs more slots.
    """
    longest = int(num_slots(crystals).max(initial=1))
    if n < longest:
        raise ValueError(f"n: the longest crystal needs {longest} slots, found {n}")
    return crystals._replace(XYZ=crystals.XYZ[:, :n], A=crystals.A[:, :n], W=crystals.W[:, :n])


def check_crystals(crystals: Crystals, config: TransformerConfig) -> None:
    """Checks on the host that a batch is valid input for the network.

    Raises:
        ValueError: a crystal has no padding slot, a gap between sites, or a value outside the vocabulary.
    """
    if crystals.W.ndim != 2:
        raise ValueError(f"expected a batch, with W of two axes (crystals, sites); found shape {crystals.W.shape}")
    real = crystals.W > 0
    if real.all(-1).any():
        raise ValueError(
            f"crystal {np.argmax(real.all(-1))} fills all {real.shape[1]} slots, but one must stay padding; raise n_max"
        )
    if gaps := np.flatnonzero((real[:, 1:] & ~real[:, :-1]).any(-1)).tolist():
        raise ValueError(f"crystal {gaps[0]} has a site after padding; its W is {crystals.W[gaps[0]]}")
    longest = int(real.sum(-1).max(initial=0)) + 1
    if config.generation == "absolute" and longest > config.n_max:
        raise ValueError(f"a crystal needs {longest} slots, but this network has positions for n_max = {config.n_max}")
    limits = (
        ("G", crystals.G, 1, 231),
        ("A", crystals.A, 0, config.atom_types),
        ("W", crystals.W, 0, config.wyck_types),
    )
    for name, field, lowest, end in limits:
        if wrong := np.argwhere((field < lowest) | (field >= end)).tolist():
            found = field[tuple(wrong[0])]
            raise ValueError(f"crystal {wrong[0][0]} has {name} = {found}; this network takes {lowest} to {end - 1}")


def cell_parameters(crystal: Crystals) -> Float[np.ndarray, "6"]:
    """(a, b, c) in Å and (alpha, beta, gamma) in degrees of one crystal, with its space group's constraints imposed."""
    lattice = impose_lattice(int(crystal.G), np.asarray(crystal.L, np.float64))
    lattice = from_scaled(lattice, num_atoms(crystal))
    return np.concatenate([lattice[:3], np.degrees(lattice[3:])])


def wyckoff_sites(crystal: Crystals) -> list[Site]:
    """The sites of one crystal with all their atoms.

    Raises:
        ValueError: if the crystal has no site, or a letter that its space group lacks.
    """
    sites = []
    for letter, number, xyz in zip(*map(np.asarray, (crystal.W, crystal.A, crystal.XYZ)), strict=True):
        if letter == 0:
            break
        operations = wyckoff_operations(int(crystal.G), int(letter))
        # Wrapped twice, because a tiny negative number modulo 1 rounds to 1.
        orbit = apply_operations(operations, xyz.astype(np.float64)) % 1.0 % 1.0
        sites.append(Site(int(number), int(letter), orbit))
    if not sites:
        raise ValueError("W: expected at least one site, found only padding; drop the crystal")
    return sites


def to_structure(crystal: Crystals) -> "Structure":
    """The conventional cell of one crystal with all atoms, ordered by site.

    Raises:
        ValueError: if the crystal has no site, or a letter that its space group lacks.
    """
    from pymatgen.core import Lattice, Structure

    sites = wyckoff_sites(crystal)
    symbols = [_element_symbols()[site.number] for site in sites for _ in site.orbit]
    lattice = Lattice.from_parameters(*cell_parameters(crystal))
    return Structure(lattice, symbols, np.concatenate([site.orbit for site in sites]))


def to_structures(crystals: Crystals) -> "list[Structure]":
    """The conventional cells of a batch of crystals, as pymatgen structures.

    Raises:
        ValueError: if a crystal has no site, or a letter that its space group lacks.
    """
    return [to_structure(crystal) for crystal in iterate_crystals(crystals)]


def formula(crystal: Crystals) -> str:
    """Formula of the conventional cell with the elements in the order of their atomic numbers, e.g. `Na4 Cl4`.

    Raises:
        ValueError: if the crystal has no site, or a letter that its space group lacks.
    """
    symbols = _element_symbols()
    counts: dict[int, int] = {}
    for site in wyckoff_sites(crystal):
        counts[site.number] = counts.get(site.number, 0) + len(site.orbit)
    return " ".join(f"{symbols[number]}{counts[number]}" for number in sorted(counts))


def to_cif(crystal: Crystals) -> str:
    """CIF text of one crystal: space group, its operations in the standard setting, and the Wyckoff sites only.

    Raises:
        ValueError: if the crystal has no site, or a letter that its space group lacks.
    """
    symbols = _element_symbols()
    sites = [
        CifSite(symbols[site.number], len(site.orbit), LETTERS[site.letter], site.orbit[0].tolist())
        for site in wyckoff_sites(crystal)
    ]
    return sites_to_cif(formula(crystal), int(crystal.G), cell_parameters(crystal).tolist(), sites)


@functools.cache
def _element_symbols() -> tuple[str, ...]:
    """Symbols by atomic number; X at 0."""
    import gemmi

    return tuple(gemmi.Element(number).name for number in range(119))
