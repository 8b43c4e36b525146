"""Labels of a structure as ASE stores them: properties, energy and forces."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import ase


def read_property(atoms: "ase.Atoms", name: str, kind: str, given: Mapping[str, Any]) -> np.ndarray:
    """A property of a structure: float32 (scalar, node) or int32 (integer), of shape () or (atoms,) for kind node.

    The property is looked up in `given`, `atoms.info`, the results of a calculator, `atoms.arrays` (kind node) and
    `atoms.get_<name>()`, in this order.

    Raises:
        ValueError: the property is missing, not finite, of the wrong shape, or not a whole number for kind integer.
    """
    found = _look_up(atoms, name, kind, given)
    try:
        values = np.asarray(found, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"has {name} = {found!r}, which is no number") from error
    shape = (len(atoms),) if kind == "node" else ()
    if kind != "node" and values.size == 1:
        values = values.reshape(())
    if values.shape != shape:
        expected = f"a number for each of {len(atoms)} atoms" if kind == "node" else "a single number"
        raise ValueError(f"has {name} of shape {values.shape}; conditioning_type {kind} needs {expected}")
    if not np.isfinite(values).all():
        raise ValueError(f"has {name} = {found!r}; remove the structure or correct it")
    if kind == "integer" and values != np.round(values):
        raise ValueError(f"has {name} = {found!r}; conditioning_type integer needs whole numbers")
    return values.astype(_dtype(kind))


def placeholder(kind: str, num_atoms: int) -> np.ndarray:
    """Zeros in the shape of a property, for structures that are not conditioned on it."""
    return np.zeros((num_atoms,) if kind == "node" else (), _dtype(kind))


def read_energy_and_forces(
    atoms: "ase.Atoms", rotation: Float[np.ndarray, "3 3"] | None
) -> tuple[float, Float[np.ndarray, "n 3"]]:
    """Energy (eV) and forces (eV/Å, before constraints are applied) of a calculator; NaN where unknown.

    Args:
        rotation: row vectors v of the structure become v @ rotation.

    Raises:
        ValueError: the energy or a force is infinite.
    """
    results = calculator_results(atoms)
    energy, forces = results.get("energy"), results.get("forces")
    energy = math.nan if energy is None else float(energy)
    forces = np.full((len(atoms), 3), np.nan) if forces is None else np.asarray(forces, float)
    if math.isinf(energy) or np.isinf(forces).any():
        raise ValueError(f"has an infinite energy or force (energy {energy}): remove the structure")
    return energy, (forces if rotation is None else forces @ rotation).astype(np.float32)


def calculator_results(atoms: "ase.Atoms") -> Mapping[str, Any]:
    """Stored results of the calculator for the structure as it is; empty if it has changed since."""
    if atoms.calc is None or atoms.calc.check_state(atoms):
        return {}
    return getattr(atoms.calc, "results", {})


def _look_up(atoms: "ase.Atoms", name: str, kind: str, given: Mapping[str, Any]) -> Any:
    arrays = atoms.arrays if kind == "node" else {}
    for source in (given, atoms.info, calculator_results(atoms), arrays):
        if name in source:
            return source[name]
    reason = f"neither atoms.info[{name!r}] nor atoms.get_{name}()"
    method = getattr(atoms, f"get_{name}", None)
    if method is not None:
        try:
            return method()
        except (RuntimeError, TypeError, ValueError) as error:  # no calculator, no cell, or arguments are missing
            reason = f"no atoms.info[{name!r}], and atoms.get_{name}() raises: {error}"
    raise ValueError(f"has no property {name!r}: {reason}")


def _dtype(kind: str) -> type[np.int32] | type[np.float32]:
    return np.int32 if kind == "integer" else np.float32
