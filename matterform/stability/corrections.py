"""The Materials Project's corrections of 2020 (Wang et al., Sci. Rep. 11, 15496), applied exactly once.

They are for energies of PBE and PBE+U with the settings of `MPRelaxSet`: oxides and fluorides of some transition metals
with U. pymatgen does the arithmetic with its own tables, and no VASP input is written. A correction is a sum over atoms
that depends on the composition and on how oxygen and sulfur are bound, so each case is worked out once.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from matterform.evaluation.geometry import defect

if TYPE_CHECKING:
    import pymatgen.core

OXIDE_CUTOFF = 1.05  # as MaterialsProject2020Compatibility passes it: bonds up to 1.05 of the usual length
CACHED = 2**16
NEUTRAL = {"X": 0.0}  # oxidation states that pymatgen takes for known


class Corrections(NamedTuple):
    """One value per crystal; NaN where `problems` gives a reason."""

    values: Float[np.ndarray, " b"]  # eV per crystal, to be added to an uncorrected energy
    problems: list[str]  # empty where all is well


class CorrectedEnergies(NamedTuple):
    """One value per crystal; NaN where `problems` gives a reason."""

    values: Float[np.ndarray, " b"]  # eV per crystal
    problems: list[str]  # empty where all is well; an energy that was NaN already is none of them


def corrected_energies(
    corrected: bool | None, energies: Float[np.ndarray, " b"], structures: "Sequence[pymatgen.core.Structure]"
) -> CorrectedEnergies:
    """Energies (eV per crystal) with the corrections added, unless `corrected` says that they contain them already.

    Raises:
        ValueError: it is not known (see `check_corrected`), or there is not one energy per crystal.
    """
    check_corrected(corrected)
    energies = np.asarray(energies, np.float64)
    if len(energies) != len(structures):
        raise ValueError(f"expected an energy for each of {len(structures)} crystals, got {len(energies)}")
    values, problems = energies.copy(), [""] * len(structures)
    if corrected:
        return CorrectedEnergies(values, problems)
    known = np.flatnonzero(np.isfinite(energies)).tolist()
    corrections = mp2020_corrections([structures[index] for index in known])
    values[known] += corrections.values
    for index, problem in zip(known, corrections.problems, strict=True):
        problems[index] = problem
    return CorrectedEnergies(values, problems)


def check_corrected(corrected: bool | None) -> None:
    """Raises ValueError where it is not known whether energies contain the corrections."""
    if corrected is None:
        raise ValueError(
            "it is not known whether the potential's energies contain the Materials Project's corrections of 2020: "
            "say so with --mlff-corrected True or --mlff-corrected False (in Python: Potential.corrected)"
        )


def mp2020_corrections(structures: "Sequence[pymatgen.core.Structure]") -> Corrections:
    """What MaterialsProject2020Compatibility would add to the energy of a calculation with MPRelaxSet's settings."""
    values, problems = np.full(len(structures), np.nan), [""] * len(structures)
    for index, structure in enumerate(structures):
        problems[index] = defect(structure)
        if not problems[index]:
            try:
                values[index] = _correction(structure)
            except ValueError as error:
                problems[index] = str(error)
    return Corrections(values, problems)


def _correction(structure: "pymatgen.core.Structure") -> float:
    composition = structure.composition.element_composition
    if not structure.is_ordered:
        raise ValueError("the corrections are for ordered crystals, and it has partly occupied sites")
    oxide = sulfide = ""
    if len(composition) > 1:
        symbols = {element.symbol for element in composition}
        oxide = _oxide_type(structure) if "O" in symbols else ""
        sulfide = _sulfide_type(structure) if "S" in symbols else ""
    reduced, factor = composition.get_reduced_composition_and_factor()
    amounts = tuple((element.symbol, amount) for element, amount in reduced.items())
    return factor * _correction_of(amounts, oxide, sulfide)


def _oxide_type(structure: "pymatgen.core.Structure") -> str:
    from pymatgen.core.structure_analyzer import oxide_type

    return str(oxide_type(structure, OXIDE_CUTOFF))


def _sulfide_type(structure: "pymatgen.core.Structure") -> str:
    from pymatgen.core.structure_analyzer import sulfide_type

    try:
        # None means that sulfur is bound to something more electronegative, and gets no correction.
        return sulfide_type(structure) or "sulfate"
    except IndexError as error:
        raise ValueError("a sulfur atom has no neighbour, so its corrections are not known") from error


@functools.lru_cache(maxsize=CACHED)
def _correction_of(amounts: tuple[tuple[str, float], ...], oxide: str, sulfide: str) -> float:
    """Correction (eV) of a formula unit with oxygen and sulfur bound in a known way."""
    from pymatgen.core import Composition
    from pymatgen.entries.computed_entries import ComputedEntry

    composition = Composition(dict(amounts))
    scheme, hubbard_u = _scheme()
    with warnings.catch_warnings():
        # Oxidation states that cannot be guessed have a rule of their own, and noble gases no electronegativity.
        warnings.simplefilter("ignore")
        most_electronegative = sorted(composition.elements, key=lambda element: element.X)[-1].symbol
        expected = hubbard_u.get(most_electronegative, {})
        hubbards = {symbol: expected[symbol] for symbol, _ in amounts if symbol in expected}
        parameters = {"run_type": "GGA+U" if hubbards else "GGA", "hubbards": hubbards}
        data: dict[str, Any] = {"oxide_type": oxide, "sulfide_type": sulfide}
        if not any(symbol in scheme.comp_correction for symbol, _ in amounts):
            data["oxidation_states"] = NEUTRAL  # guessing them takes long, and no anion here needs them
        entry = ComputedEntry(composition, 0.0, parameters=parameters, data=data)
        return float(sum(adjustment.value for adjustment in scheme.get_adjustments(entry)))


@functools.cache
def _scheme():
    """pymatgen's scheme and the U values (eV) of MPRelaxSet: {most electronegative element: {element: U}}."""
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
    from pymatgen.io.vasp.sets import MPRelaxSet

    settings = MPRelaxSet.CONFIG["INCAR"]["LDAUU"]
    hubbard_u = {anion: values for anion, values in settings.items() if isinstance(values, dict)}
    return MaterialsProject2020Compatibility(check_potcar=False), hubbard_u
