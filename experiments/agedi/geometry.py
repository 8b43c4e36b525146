"""Distances, bonds and angles, by which samples are compared with data."""

from collections.abc import Sequence

import ase
import numpy as np
import scipy.stats
from ase.neighborlist import neighbor_list

LONGEST_BOND = {"CC": 1.85, "CO": 1.75, "CH": 1.35, "HO": 1.25}  # Å
BONDS = tuple(LONGEST_BOND)
ANGLES = ("CCC", "CCO", "CCH", "HCH")


def distances_within(structures: Sequence[ase.Atoms], cutoff: float) -> np.ndarray:
    """All interatomic distances (Å) below `cutoff`, periodic images included."""
    return np.concatenate([neighbor_list("d", atoms, cutoff) for atoms in structures])


def radial_distribution(
    structures: Sequence[ase.Atoms], cutoff: float, bins: int = 120
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (Å) and the mean of the structures' radial distribution functions g(r)."""
    edges = np.linspace(0.0, cutoff, bins + 1)
    shells = 4 / 3 * np.pi * (edges[1:] ** 3 - edges[:-1] ** 3)
    each = []
    for atoms in structures:
        counts, _ = np.histogram(distances_within([atoms], cutoff), edges)
        each.append(counts / (len(atoms) * shells * len(atoms) / atoms.get_volume()))
    return (edges[1:] + edges[:-1]) / 2, np.mean(each, axis=0)


def neighbours(structures: Sequence[ase.Atoms], longest_bond: float) -> dict[str, np.ndarray]:
    """Nearest-neighbour distances (Å) and numbers of bonds of all atoms; the shortest distance (Å) of each crystal."""
    nearest, bonds, shortest = [], [], []
    for atoms in structures:
        first, distances = neighbor_list("id", atoms, 3.0)
        per_atom = np.full(len(atoms), 3.0)
        np.minimum.at(per_atom, first, distances)
        nearest.append(per_atom)
        bonds.append(np.bincount(first[distances < longest_bond], minlength=len(atoms)))
        shortest.append(distances_within([atoms], 3.0).min(initial=3.0))
    return {"nearest": np.concatenate(nearest), "bonds": np.concatenate(bonds), "shortest": np.array(shortest)}


def bonds_of(atoms: ase.Atoms) -> list[tuple[int, int]]:
    """Pairs of atoms closer than the longest bond of their elements."""
    symbols, distances = atoms.get_chemical_symbols(), atoms.get_all_distances()
    pairs = []
    for i in range(len(atoms)):
        for j in range(i):
            longest = LONGEST_BOND.get("".join(sorted(symbols[i] + symbols[j])))
            if longest is not None and distances[i, j] < longest:
                pairs.append((j, i))
    return pairs


def geometry(structures: list[ase.Atoms]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Bond lengths (Å) and angles (degrees) of all molecules, by elements."""
    lengths: dict[str, list[float]] = {name: [] for name in BONDS}
    angles: dict[str, list[float]] = {name: [] for name in ANGLES}
    for atoms in structures:
        symbols, bonds = atoms.get_chemical_symbols(), bonds_of(atoms)
        for i, j in bonds:
            lengths["".join(sorted(symbols[i] + symbols[j]))].append(atoms.get_distance(i, j))
        for centre in range(len(atoms)):
            ends = sorted((i if j == centre else j for i, j in bonds if centre in (i, j)), key=lambda k: symbols[k])
            for first in range(len(ends)):
                for second in range(first):
                    name = f"{symbols[ends[second]]}{symbols[centre]}{symbols[ends[first]]}"
                    if name in angles:
                        angles[name].append(atoms.get_angle(ends[second], centre, ends[first]))
    return {name: np.array(v) for name, v in lengths.items()}, {name: np.array(v) for name, v in angles.items() if v}


def intact_share(structures: list[ase.Atoms]) -> float:
    """Share of molecules with four C-C, two C-O, and eight bonds of hydrogen (one may be shared between oxygens)."""
    intact = 0
    for atoms in structures:
        symbols = atoms.get_chemical_symbols()
        names = ["".join(sorted(symbols[i] + symbols[j])) for i, j in bonds_of(atoms)]
        counts = [names.count(name) for name in BONDS]
        intact += counts[:2] == [4, 2] and counts[2] in (7, 8) and counts[2] + counts[3] in (8, 9)
    return intact / len(structures)


def shortest_distance(atoms: ase.Atoms) -> float:
    """The shortest interatomic distance (Å), periodic images included; 3 Å where it is larger."""
    return float(neighbor_list("d", atoms, 3.0).min(initial=3.0))


def values_of(molecules: list[ase.Atoms]) -> dict[str, np.ndarray]:
    """Bond lengths (Å) and angles (degrees) by name; empty where no molecule has one."""
    lengths, angles = geometry(molecules)
    return lengths | {name: angles.get(name, np.zeros(0)) for name in ANGLES}


def relative_distance(each: list[dict[str, np.ndarray]], reference: dict[str, np.ndarray]) -> float:
    """Mean Wasserstein distance of the distributions, each in standard deviations of the reference."""
    distances = []
    for name in (*BONDS, *ANGLES):
        values = np.concatenate([one[name] for one in each])
        distances.append(scipy.stats.wasserstein_distance(values, reference[name]) / np.std(reference[name]))
    return float(np.mean(distances))
