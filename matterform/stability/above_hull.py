"""Stability of crystals: corrected energies of a potential, compared with the hull of reference entries."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from matterform.stability.corrections import check_corrected, corrected_energies
from matterform.stability.hull import Hull
from matterform.stability.references import FormationEnergies, References, Residual, fit_references

if TYPE_CHECKING:
    import pymatgen.core

    from matterform.potentials.base import Potential
    from matterform.potentials.relax import Relaxed

METASTABLE_EV = 0.1  # largest energy above the hull of a metastable crystal, eV/atom
STABLE_EV = 0.0
CHUNK = 256  # number of crystals between two progress reports


class Stability(NamedTuple):
    """One entry per crystal; values are NaN where `problems` gives a reason."""

    e_above_hull: Float[np.ndarray, " b"]  # eV/atom; negative below the hull of the references
    energy_per_atom: Float[np.ndarray, " b"]  # eV/atom, of the potential, with corrections
    formation_energy_per_atom: Float[np.ndarray, " b"]  # eV/atom; NaN without references
    problems: list[str]  # reason why there is no value; empty if there is one
    relaxed: "Relaxed | None"  # None without relaxation; includes crystals that did not converge
    # Whether an entry of the hull contains all elements of the crystal; if none does, any bound crystal seems stable.
    known_system: Bool[np.ndarray, " b"]


class Shares(NamedTuple):
    """Shares of all generated crystals, including those that cannot be evaluated; NaN where not requested."""

    stable: float  # on or below the hull
    metastable: float  # at most 0.1 eV/atom above it
    sun: float  # stable, unique and novel
    metastable_sun: float  # metastable, unique and novel


def above_hull(
    structures: "Sequence[pymatgen.core.Structure]",
    potential: "Potential",
    hull: Hull,
    references: References | None = None,
    relax_steps: int = 0,
) -> Stability:
    """Energies above the hull of crystals, as given or after at most `relax_steps` relaxation steps.

    Args:
        references: energies of the elements in the potential; required for a hull of formation energies, and only
            allowed for such a hull.

    Raises:
        ValueError: references are missing, not needed (for a hull of total energies) or of another potential, or it is
            unknown whether the potential's energies include the corrections.
    """
    check_references(hull, references, potential)
    structures, energies, problems, relaxed = _energies(structures, potential, relax_steps)
    compositions = [structure.composition for structure in structures]
    corrected = corrected_energies(potential.corrected, energies, structures)
    if references is None:
        formation = FormationEnergies(np.full(len(structures), np.nan), [""] * len(structures))
        above = hull.energy_above_hull(compositions, corrected.values)
    else:
        formation = references.formation_energies(compositions, corrected.values)
        above = hull.energy_above_hull(compositions, formation.values)
    num_atoms = np.array([max(len(structure), 1) for structure in structures])
    reasons = zip(problems, corrected.problems, formation.problems, above.problems, strict=True)
    return Stability(
        above.values,
        corrected.values / num_atoms,
        formation.values / num_atoms,
        [next(filter(None, reason), "") for reason in reasons],  # the first reason causes the others
        relaxed,
        above.known_system,
    )


def check_references(hull: Hull, references: References | None, potential: "Potential | None" = None) -> None:
    """Checks that a hull, references and a potential can be combined.

    Args:
        potential: the potential; None if it is not loaded yet.

    Raises:
        ValueError: references are missing, not needed or of another potential, or it is unknown whether the
            potential's energies include the corrections.
    """
    if hull.kind == "formation" and references is None:
        raise ValueError(
            "the hull is one of formation energies, and a potential's energies need references to be compared with it: "
            "fit them with `matterform references TABLE.csv --out references.json` (in Python: fit_references)"
        )
    if hull.kind == "total" and references is not None:
        raise ValueError("the hull is one of total energies, which need no references; leave them out")
    if potential is None:
        return
    check_corrected(potential.corrected)
    if references is not None and references.potential not in ("", potential.name):
        raise ValueError(
            f"the references are of {references.potential}, and the energies of {potential.name}: fit references to it "
            'with `matterform references` (or, if it only has another name, change "potential" in their file)'
        )
    if references is not None and references.corrected not in (None, potential.corrected):
        words = {True: "already in", False: "added to"}
        raise ValueError(
            f"the references were fitted with corrections {words[references.corrected]} the energies of "
            f"{potential.name}, now {words[bool(potential.corrected)]}: give --mlff-corrected "
            "(in Python: mlff_corrected) as then"
        )


class _Energies(NamedTuple):
    structures: "Sequence[pymatgen.core.Structure]"
    energies: Float[np.ndarray, " b"]
    problems: list[str]
    relaxed: "Relaxed | None"


def _energies(structures: "Sequence[pymatgen.core.Structure]", potential: "Potential", relax_steps: int) -> _Energies:
    if relax_steps < 0:
        raise ValueError(f"relax_steps must be a number of steps, 0 for none; got {relax_steps}")
    if relax_steps == 0:
        energies, _, _, problems = potential.predict(structures, "energy")
        return _Energies(structures, energies, problems, None)
    from matterform.potentials.relax import relax

    relaxed = relax(potential, structures, relax_steps)
    # A crystal whose relaxation stopped early has an energy, so that is not a problem.
    known = np.isfinite(relaxed.energy)
    problems = ["" if fine else problem for fine, problem in zip(known, relaxed.problems, strict=True)]
    return _Energies(relaxed.structures, relaxed.energy, problems, relaxed)


class PotentialFit(NamedTuple):
    """References of a potential, and the residual of their fit."""

    references: References
    residual: Residual
    used: Int[np.ndarray, " m"]  # indices of the crystals that were used; those with a problem are left out
    energy_per_atom: Float[np.ndarray, " b"]  # eV/atom, of the potential, with corrections; NaN where there is none
    problems: list[str]


def fit_potential_references(
    potential: "Potential",
    structures: "Sequence[pymatgen.core.Structure]",
    formation_energies_per_atom: Float[np.ndarray, " b"],
    progress: Callable[[int], None] = lambda done: None,
) -> PotentialFit:
    """Fits the references of a potential to known formation energies (eV/atom).

    Raises:
        ValueError: no crystal has both energies, or it is unknown whether the potential's energies include the
            corrections.
    """
    check_corrected(potential.corrected)
    energy_per_atom, problems = np.full(len(structures), np.nan), []
    for start in range(0, len(structures), CHUNK):
        chunk = structures[start : start + CHUNK]
        energies, _, _, found = potential.predict(chunk, "energy")
        corrected = corrected_energies(potential.corrected, energies, chunk)
        energy_per_atom[start : start + CHUNK] = corrected.values / [max(len(structure), 1) for structure in chunk]
        problems += [next(filter(None, reason), "") for reason in zip(found, corrected.problems, strict=True)]
        progress(len(problems))
    used = np.flatnonzero(np.isfinite(energy_per_atom) & np.isfinite(formation_energies_per_atom))
    compositions = [structures[index].composition for index in used.tolist()]
    references, residual = fit_references(
        compositions, energy_per_atom[used], np.asarray(formation_energies_per_atom)[used]
    )
    references = references._replace(potential=potential.name, corrected=potential.corrected)
    return PotentialFit(references, residual, used, energy_per_atom, problems)


def stability_shares(
    e_above_hull: Float[np.ndarray, " b"],
    unique: Bool[np.ndarray, " b"] | None = None,
    novel: Bool[np.ndarray, " b"] | None = None,
) -> Shares:
    """Shares over all crystals; one without a value (NaN) counts as unstable.

    S.U.N. needs `unique` and `novel`, an entry for each crystal that was generated.

    Raises:
        ValueError: there is no crystal.
    """
    if not len(e_above_hull):
        raise ValueError("expected at least one crystal, found none")
    stable, metastable = e_above_hull <= STABLE_EV, e_above_hull <= METASTABLE_EV
    if unique is None or novel is None:
        return Shares(float(stable.mean()), float(metastable.mean()), np.nan, np.nan)
    new = np.asarray(unique, bool) & np.asarray(novel, bool)
    return Shares(*(float(share.mean()) for share in (stable, metastable, stable & new, metastable & new)))
