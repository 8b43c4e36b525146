"""Potentials from ASE calculators, which evaluate one structure at a time."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matterform.errors import Explained
from matterform.plugins import load_callable
from matterform.potentials.base import (
    BatchModel,
    Potential,
    Prediction,
    Predictions,
    Quantity,
    bare_atoms,
    collect_predictions,
    run_in_batches,
)

if TYPE_CHECKING:
    import ase.calculators.calculator
    import pymatgen.core

FORM = "module:Class, such as ase.calculators.emt:EMT"
# NotImplementedError (an unknown element) and ASE's CalculatorError are RuntimeErrors, LinAlgError is a ValueError.
EXPECTED = (ValueError, ArithmeticError, RuntimeError)


def load_ase(
    path: pathlib.Path | None = None, variant: str | None = None, device: str = "cpu", batch_size: int = 1
) -> Potential:
    """Loads the calculator `variant`, a module:Class whose constructor needs no arguments; see `load_callable`.

    `device` and `batch_size` are not used: a calculator chooses its device and evaluates one structure at a time. It is
    unknown whether its energies include the MP2020 corrections.

    Raises:
        ValueError: a path is given, the module or class does not exist, or its constructor fails.
    """
    if path is not None:
        raise ValueError(f"an ASE calculator is named by the variant, as module:Class, and takes no path; got {path}")
    variant = variant or ""
    make = load_callable(variant, "the ASE calculator", FORM)
    with Explained(f"making the ASE calculator {variant} without arguments"):
        calculator = make()
    return ase_potential(calculator, variant)


def ase_potential(
    calculator: "ase.calculators.calculator.BaseCalculator", name: str = "", corrected: bool | None = None
) -> Potential:
    """The potential of an ASE calculator; its energies (eV per structure) are used unchanged.

    Exceptions other than `EXPECTED` are errors of the calculator rather than of a structure; `Potential.predict` raises
    them as a ValueError that names the calculator.
    """
    name = name or type(calculator).__name__

    def predict(structures: Sequence["pymatgen.core.Structure"], quantity: Quantity) -> Predictions:
        known = getattr(calculator, "implemented_properties", ())
        if quantity not in known:
            raise ValueError(f"{type(calculator).__name__} has no {quantity}, only {', '.join(known)}")
        package = BatchModel(
            bare_atoms, lambda inputs: [_evaluate(calculator, atoms, quantity) for atoms in inputs], EXPECTED
        )
        with Explained(f"the ASE calculator {name}"):
            results = run_in_batches(structures, package, batch_size=1)
        return collect_predictions(*results)

    return Potential(f"ase {name}", predict, corrected)


def _evaluate(calculator: Any, atoms: Any, quantity: Quantity) -> Prediction:
    atoms.calc = calculator
    energy = float(atoms.get_potential_energy())
    if quantity == "energy":
        return Prediction(energy)
    forces = atoms.get_forces()
    return Prediction(energy, forces, atoms.get_stress(voigt=False) if quantity == "stress" else None)
