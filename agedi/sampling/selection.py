"""Atoms to inpaint: those that selectors name, or a random share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from agedi.data.graph import fixed_atoms
from agedi.sampling.config import Selection

if TYPE_CHECKING:
    import ase

INPAINT_MASK = "inpaint_mask"  # per-atom array of the selected atoms, read with `from_atoms` and written to results
INPAINTED = "inpainted"  # their indices in `info`, for files that do not keep per-atom arrays


def select(
    atoms: "ase.Atoms", selection: Selection, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The atoms to inpaint, and the atoms held fixed (by FixAtoms or `selection.freeze`).

    Args:
        rng: generator of random selections.

    Raises:
        ValueError: the selection is empty, contains every atom, or names fixed or unknown ones.
    """
    count = len(atoms)
    fixed = fixed_atoms(atoms, "MaskFixed")
    if selection.freeze != "all":
        fixed |= _at(selection.freeze, count, "freeze")
    if selection.named:
        selected = _named(atoms, selection) & ~fixed
        by_index = _at(selection.indices or (), count, "indices")
        if clash := np.flatnonzero(by_index & fixed).tolist():
            raise ValueError(f"indices name atoms that are fixed: {clash}")
    else:
        selected = _random(atoms, ~fixed, selection, rng)
    if not selected.any():
        raise ValueError("no atom is selected that is not fixed; choose other atoms to inpaint")
    if selected.all():
        raise ValueError("every atom is selected, so nothing is left to inpaint around; use sample")
    return selected, ~selected if selection.freeze == "all" else fixed


def _named(atoms: "ase.Atoms", selection: Selection) -> Bool[np.ndarray, " n"]:
    """The union of all selectors."""
    selected = _at(selection.indices or (), len(atoms), "indices")
    if selection.symbols is not None:
        symbols = np.array(atoms.get_chemical_symbols())
        if missing := [symbol for symbol in selection.symbols if symbol not in symbols]:
            raise ValueError(f"symbols must be among those of the structure; got {missing[0]!r}")
        selected |= np.isin(symbols, selection.symbols)
    if selection.z_range is not None:
        low, high = selection.z_range
        selected |= (low <= atoms.positions[:, 2]) & (atoms.positions[:, 2] <= high)
    if selection.sphere is not None:
        centre, radius = np.array(selection.sphere[:3]), selection.sphere[3]
        selected |= _distances(atoms, centre) <= radius
    if selection.from_atoms:
        if INPAINT_MASK in atoms.arrays:
            selected |= atoms.arrays[INPAINT_MASK].astype(bool)
        elif INPAINTED in atoms.info:
            selected |= _at(np.ravel(atoms.info[INPAINTED]).tolist(), len(atoms), INPAINTED)
        else:
            raise ValueError(f"from_atoms reads the selection from the per-atom array {INPAINT_MASK!r}; there is none")
    return selected


def _random(
    atoms: "ase.Atoms", free: Bool[np.ndarray, " n"], selection: Selection, rng: np.random.Generator
) -> Bool[np.ndarray, " n"]:
    """A random share of the free atoms; if contiguous, each is the nearest one to those before."""
    choices = np.flatnonzero(free)
    target = min(max(1, round(selection.fraction * len(choices))), len(choices))
    selected = np.zeros(len(atoms), bool)
    if not target:
        return selected
    if not selection.contiguous:
        selected[rng.choice(choices, target, replace=False)] = True
        return selected
    # Distance of each candidate to the nearest selected atom; NaN if it cannot be selected.
    distance, latest = np.where(free, np.inf, np.nan), rng.choice(choices)
    for _ in range(target):
        selected[latest], distance[latest] = True, np.nan
        distance = np.fmin(distance, np.where(np.isnan(distance), np.nan, _distances(atoms, atoms.positions[latest])))
        if selected.sum() < target:
            latest = np.nanargmin(distance)
    return selected


def _distances(atoms: "ase.Atoms", point: Float[np.ndarray, "3"]) -> Float[np.ndarray, " n"]:
    """Distances (Å) of all atoms to a point, by the minimum image."""
    from ase.geometry import get_distances

    return get_distances(point, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)[1][0]


def _at(indices: Sequence[int], count: int, name: str) -> Bool[np.ndarray, " n"]:
    """The mask of some indices, checked."""
    wrong = [
        i for i in indices if isinstance(i, bool) or not isinstance(i, int | np.integer) or not -count <= i < count
    ]
    if wrong:
        raise ValueError(f"{name} must be whole numbers below the {count} atoms; got {wrong[0]!r}")
    chosen = np.zeros(count, bool)
    chosen[list(indices)] = True
    return chosen
