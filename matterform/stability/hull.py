"""Energies above the convex hull of reference entries, in batches; the hull of a chemical system is built only once.

The hull is the maximum of the planes through its lower facets, so each facet is stored as the chemical potentials of
the elements there, and the energies of a batch are a matrix product. Formulas: docs/formulas/stability.md, section 1.

With pymatgen, entries and a phase diagram built for each of 400 crystals take 29 times as long (20 times with the
entries ready, 330 times once our hulls are cached), and the energies agree to 5e-15 eV/atom
(benchmarks/cases/hull_speed.py, results/hull_speed.jsonl).
"""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from matterform.elements import element_table
from matterform.stability.hull_entries import Entries, Kind, fractions_of, open_entries, select
from matterform.stability.hull_files import read_entries

if TYPE_CHECKING:
    import pymatgen.core

CACHED_SYSTEMS = 2**13
MAX_FACETED = 5  # elements; with more, computing all facets is slower than a linear programme per composition
SAME_ENERGY_EV = 1e-11  # as in pymatgen: an entry on the hull must be lower than the elements by this, eV/atom
MIN_STEEPNESS = 1e-9  # smallest energy component of a lower facet's normal; smaller ones are rounding of vertical walls
ALLOWED_ERROR_EV = 1e-8  # largest deviation of facets from entries, eV/atom


class AboveHull(NamedTuple):
    """One value per crystal; NaN where `problems` gives a reason."""

    values: Float[np.ndarray, " b"]  # eV/atom; negative if a crystal is below the hull of the references
    problems: list[str]  # reason why there is no value; empty if there is one
    # Whether an entry contains all elements of the crystal. False for pure elements in a hull of formation energies,
    # where they are zero by convention.
    known_system: Bool[np.ndarray, " b"]


class Hull(NamedTuple):
    """The hull of reference entries; `kind` is the kind of their energies, total or of formation."""

    kind: Kind
    energy_above_hull: "Callable[[Sequence[pymatgen.core.Composition], Float[np.ndarray, ' b']], AboveHull]"
    cache_info: Callable[[], Any]  # cache_info of functools: `misses` is the number of hulls built


def open_hull(path: str | os.PathLike[str]) -> Hull:
    """Opens the hull of a folder written by `index_hull`, instantly, or of a file of entries, which is read first.

    Files: Alexandria's or the Materials Project's entries as JSON (.bz2, .gz or plain), or a CSV of formation energies.
    Energies are total with MP2020 corrections, or of formation with elements at zero; see `Hull.kind`.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file is damaged or has other contents.
    """
    return make_hull(open_entries(path) if pathlib.Path(path).is_dir() else read_entries(path))


def make_hull(entries: Entries) -> Hull:
    """Makes the hull of `entries`. Compared crystals are not part of it, so energies above it may be negative.

    Its `energy_above_hull` raises ValueError if there is not one energy per composition.
    """
    system_hull = functools.lru_cache(maxsize=CACHED_SYSTEMS)(functools.partial(_system_hull, entries))

    def energy_above_hull(
        compositions: "Sequence[pymatgen.core.Composition]", energies: Float[np.ndarray, " b"]
    ) -> AboveHull:
        """Compares `energies` (eV per crystal, as many atoms as its composition has) with the hull."""
        if len(energies) != len(compositions):
            raise ValueError(f"expected an energy for each of {len(compositions)} crystals, got {len(energies)}")
        groups: dict[bytes, list[tuple[int, np.ndarray]]] = {}
        values, problems = np.full(len(compositions), np.nan), [""] * len(compositions)
        known = np.zeros(len(compositions), bool)
        for index, (composition, energy) in enumerate(zip(compositions, energies, strict=True)):
            try:
                system, fractions = fractions_of(composition)
            except ValueError as error:
                problems[index] = str(error)
                continue
            groups.setdefault(system, []).append((index, fractions))
            values[index] = energy / composition.num_atoms if np.isfinite(energy) else np.nan
            problems[index] = "" if np.isfinite(energy) else "its energy is not finite"
        for system, members in groups.items():
            indices, fractions = np.array([index for index, _ in members]), np.stack([part for _, part in members])
            hull, finite = system_hull(system), np.isfinite(values[indices])
            values[indices[finite]] -= hull.energy(fractions[finite])
            known[indices] = hull.known
            for index in indices.tolist():
                problems[index] = problems[index] or hull.problem
        return AboveHull(values, problems, known)

    return Hull(entries.kind, energy_above_hull, system_hull.cache_info)


class SystemHull(NamedTuple):
    """The hull of one chemical system. Where `problem` gives a reason why there is none, energies are NaN."""

    energy: Callable[
        [Float[np.ndarray, "b k"]], Float[np.ndarray, " b"]
    ]  # atomic fractions -> energy of the hull, eV/atom
    problem: str
    known: bool  # whether an entry contains all elements of the system


def _system_hull(entries: Entries, system: bytes) -> SystemHull:
    fractions, energies = select(entries, system)
    missing = [number for number, column in zip(system, fractions.T, strict=True) if not (column == 1).any()]
    # Elements at zero by convention do not count as known.
    known = bool((fractions > 0).all(1).any()) and (entries.kind == "total" or len(system) > 1)
    if missing:
        symbols = ", ".join(element_table().symbol[missing])
        problem = f"no elemental entry in the hull: {symbols}"
        return SystemHull(lambda queries: np.full(len(queries), np.nan), problem, known)
    potentials = chemical_potentials(fractions, energies) if len(system) <= MAX_FACETED else None
    if potentials is None:
        return SystemHull(functools.partial(_solve, fractions, energies), "", known)
    return SystemHull(lambda queries: (queries @ potentials.T).max(1), "", known)


def chemical_potentials(
    fractions: Float[np.ndarray, "n k"], energies: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "f k"] | None:
    """Chemical potentials (eV/atom) of the elements on each lower facet; the hull at x is the largest mu . x.

    Entries must include every element. Returns None if Qhull fails, or its facets do not fit the entries.
    """
    from scipy.spatial import ConvexHull, QhullError

    num_elements = fractions.shape[1]
    elemental = np.array([energies[column == 1].min() for column in fractions.T])
    # Formation energies, because rounding in Qhull is relative to the largest number.
    formation = energies - fractions @ elemental
    stable = formation < -SAME_ENERGY_EV
    if not stable.any():
        return elemental[None]
    corners = np.eye(num_elements)
    vertices = np.concatenate([fractions[stable], corners])
    heights = np.append(formation[stable], np.zeros(num_elements))
    # A point above all entries gives the body a volume, even if all entries lie in one plane.
    top = np.append(np.full(num_elements - 1, 1 / num_elements), 1.0)
    points = np.concatenate([np.column_stack([vertices[:, 1:], heights]), top[None]])
    try:
        hull = ConvexHull(points)
    except QhullError:
        return None
    # A facet is normal . (x_2, ..., x_k, E) + offset = 0.
    normal, offset = hull.equations[:, :-1], hull.equations[:, -1]
    lower = normal[:, -1] < -MIN_STEEPNESS
    slopes, first = -normal[lower, :-1] / normal[lower, -1:], -offset[lower] / normal[lower, -1]
    potentials = np.column_stack([first, first[:, None] + slopes])
    return potentials + elemental if _fits(potentials, vertices, heights, hull.simplices[lower]) else None


def _fits(potentials: np.ndarray, points: np.ndarray, heights: np.ndarray, facets: Int[np.ndarray, "f k"]) -> bool:
    """Whether no entry is below the hull, and the corners of its facets are on it."""
    if not len(potentials):
        return False
    above = heights - (points @ potentials.T).max(1)
    return bool(above.min() > -ALLOWED_ERROR_EV and above[facets].max() < ALLOWED_ERROR_EV)


def _solve(
    fractions: Float[np.ndarray, "n k"], energies: Float[np.ndarray, " n"], queries: Float[np.ndarray, "b k"]
) -> Float[np.ndarray, " b"]:
    """Energy (eV/atom) of the best mixture of entries for each composition, by a linear programme."""
    from scipy.optimize import linprog

    results = [linprog(energies, A_eq=fractions.T, b_eq=query, method="highs") for query in queries]
    for result in results:
        if result.status != 0:
            raise RuntimeError(f"the linear programme for a hull failed: {result.message}")
    return np.array([result.fun for result in results])
