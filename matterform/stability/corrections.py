"""The Materials Project's corrections of 2020 (Wang et al., Sci. Rep. 11, 15496), applied exactly once.

They apply to PBE and PBE+U energies with the settings of `MPRelaxSet` (U for oxides and fluorides of some transition
metals). They are computed by pymatgen with its tables, without VASP inputs. A correction depends only on composition
and bonding of oxygen and sulfur, so each case is computed once and cached.
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

OXIDE_CUTOFF = 1.05  # as in MaterialsProject2020Compatibility: bonds up to 1.05 times the usual length
CACHED = 2**16
NEUTRAL = {"X": 0.0}  # oxidation states that pymatgen then does not guess


class Corrections(NamedTuple):
    """One value per crystal; NaN where `problems` gives a reason."""

    values: Float[np.ndarray, " b"]  # eV per crystal, to be added to an uncorrected energy
    problems: list[str]  # reason why there is no value; empty if there is one


class CorrectedEnergies(NamedTuple):
    """One value per crystal; NaN where `problems` gives a reason."""

    values: Float[np.ndarray, " b"]  # eV per crystal
    problems: list[str]  # reason why there is no value; empty if there is one, or if the given energy is NaN


def corrected_energies(
    corrected: bool | None, energies: Float[np.ndarray, " b"], structures: "Sequence[pymatgen.core.Structure]"
) -> CorrectedEnergies:
    """Adds the corrections to energies (eV per crystal), unless `corrected` is True: they are included already.

    Raises:
        ValueError: `corrected` is None (unknown), or there is not one energy per crystal.
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
    """Checks that it is known whether energies include the corrections.

    Raises:
        ValueError: `corrected` is None.
    """
    if corrected is None:
        raise ValueError(
            "it is not known whether the potential's energies contain the Materials Project's corrections of 2020: "
            "say so with --mlff-corrected True or --mlff-corrected False (in Python: Potential.corrected)"
        )


def mp2020_corrections(structures: "Sequence[pymatgen.core.Structure]") -> Corrections:
    """Corrections (eV per crystal) by MaterialsProject2020Compatibility for energies with MPRelaxSet's settings."""
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
        # None: sulfur is bound to a more electronegative element, and has no correction.
        return sulfide_type(structure) or "sulfate"
    except IndexError as error:
        raise ValueError("a sulfur atom has no neighbour, so its corrections are not known") from error


@functools.lru_cache(maxsize=CACHED)
def _correction_of(amounts: tuple[tuple[str, float], ...], oxide: str, sulfide: str) -> float:
    """Correction (eV) of a formula unit, given the bonding of oxygen and sulfur."""
    from pymatgen.core import Composition
    from pymatgen.entries.computed_entries import ComputedEntry

    composition = Composition(dict(amounts))
    scheme, hubbard_u = _scheme()
    with warnings.catch_warnings():
        # pymatgen warns if oxidation states cannot be guessed, and for noble gases, which have no electronegativity.
        warnings.simplefilter("ignore")
        most_electronegative = sorted(composition.elements, key=lambda element: element.X)[-1].symbol
        expected = hubbard_u.get(most_electronegative, {})
        hubbards = {symbol: expected[symbol] for symbol, _ in amounts if symbol in expected}
        parameters = {"run_type": "GGA+U" if hubbards else "GGA", "hubbards": hubbards}
        data: dict[str, Any] = {"oxide_type": oxide, "sulfide_type": sulfide}
        if not any(symbol in scheme.comp_correction for symbol, _ in amounts):
            data["oxidation_states"] = NEUTRAL  # guessing them is slow, and no anion here needs them
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
