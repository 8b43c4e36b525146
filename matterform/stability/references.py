"""Reference energies of the elements, fitted so that a potential's energies agree with known energies of formation."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from matterform.elements import atomic_number, element_table
from matterform.io.files import existing, write_atomically
from matterform.stability.hull_entries import fractions_of

if TYPE_CHECKING:
    import pymatgen.core

NUM_LARGEST = 10


class References(NamedTuple):
    """Reference energies of the elements (eV/atom), to convert a potential's total energies to formation energies."""

    energies: dict[str, float]
    potential: str = ""  # name of the potential; empty if unknown
    corrected: bool | None = None  # whether its energies included the corrections; None: unknown

    def formation_energies(
        self, compositions: "Sequence[pymatgen.core.Composition]", total_energies: Float[np.ndarray, " b"]
    ) -> "FormationEnergies":
        """Converts total corrected energies (eV per crystal) to formation energies (eV per crystal)."""
        values, problems = np.full(len(compositions), np.nan), [""] * len(compositions)
        by_number = {atomic_number(symbol): energy for symbol, energy in self.energies.items()}
        for index, (composition, total) in enumerate(zip(compositions, total_energies, strict=True)):
            try:
                system, fractions = fractions_of(composition)
            except ValueError as error:
                problems[index] = str(error)
                continue
            if missing := [number for number in system if number not in by_number]:
                problems[index] = f"no reference energy: {', '.join(element_table().symbol[missing])}"
                continue
            elements = fractions @ [by_number[number] for number in system]
            values[index] = total - composition.num_atoms * elements
        return FormationEnergies(values, problems)


class FormationEnergies(NamedTuple):
    """One value per crystal; NaN where `problems` gives a reason."""

    values: Float[np.ndarray, " b"]  # eV per crystal
    problems: list[str]


class Residual(NamedTuple):
    """Residual of a fit: formation energies from the references minus the given ones."""

    rms: float  # eV/atom
    mean_absolute: float  # eV/atom
    values: Float[np.ndarray, " b"]  # eV/atom
    largest: list[tuple[int, str, float]]  # index, formula and residual (eV/atom), largest first


def fit_references(
    compositions: "Sequence[pymatgen.core.Composition]",
    energies_per_atom: Float[np.ndarray, " b"],
    formation_energies_per_atom: Float[np.ndarray, " b"],
) -> tuple[References, Residual]:
    """Fits reference energies by least squares of energy differences (eV/atom) on atomic fractions.

    If elements always occur together, only a combination of their references is determined; the solution of least norm
    is returned.

    Raises:
        ValueError: there is nothing to fit, or an energy is not finite.
    """
    differences = np.asarray(energies_per_atom) - np.asarray(formation_energies_per_atom)
    if not len(compositions) or len(compositions) != len(differences):
        raise ValueError(f"expected crystals and as many energies; got {len(compositions)} and {len(differences)}")
    if not np.isfinite(differences).all():
        raise ValueError(f"{(~np.isfinite(differences)).sum()} energies are not finite; leave these crystals out")
    matrix = np.zeros((len(compositions), len(element_table().symbol)))
    for row, composition in zip(matrix, compositions, strict=True):
        system, fractions = fractions_of(composition)
        row[list(system)] = fractions
    present = np.flatnonzero(matrix.any(0))
    solution, *_ = np.linalg.lstsq(matrix[:, present], differences, rcond=None)
    residual = differences - matrix[:, present] @ solution
    symbols = element_table().symbol[present].tolist()
    return References(dict(zip(symbols, solution.tolist(), strict=True))), _residual(compositions, residual)


def _residual(compositions: "Sequence[pymatgen.core.Composition]", values: np.ndarray) -> Residual:
    order = np.argsort(-np.abs(values))[:NUM_LARGEST].tolist()
    return Residual(
        float(np.sqrt((values**2).mean())),
        float(np.abs(values).mean()),
        values,
        [(index, compositions[index].reduced_formula, float(values[index])) for index in order],
    )


def save_references(references: References, path: str | os.PathLike[str], notes: Mapping[str, object] = {}) -> None:
    """Writes references as JSON; `notes` (table, residual, ...) are added for information and not read back."""
    known = {"potential": references.potential, "energies_contain_corrections": references.corrected}
    values = {**known, **notes, "energies_ev_per_atom": references.energies}
    with write_atomically(path) as temporary:
        text = json.dumps(values, indent=1)
        temporary.write_text(text, encoding="utf-8")


def load_references(path: str | os.PathLike[str]) -> References:
    """Reads references written by `save_references`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has other contents.
    """
    path = existing(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        energies = values["energies_ev_per_atom"]
        energies = {str(symbol): float(energy) for symbol, energy in energies.items()}
        for symbol in energies:
            atomic_number(symbol)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no reference energies ({error}); `matterform references` writes them"
        ) from error
    if not np.isfinite(list(energies.values())).all():
        raise ValueError(f"{path} has reference energies that are not finite; fit them again")
    corrected = values.get("energies_contain_corrections")
    return References(energies, str(values.get("potential") or ""), None if corrected is None else bool(corrected))
