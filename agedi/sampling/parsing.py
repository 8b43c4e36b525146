"""Formulas, atomic numbers, cells and walls as users give them, checked and turned into arrays."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from agedi.checks import SAME_CELL
from agedi.config import DiffusionConfig, position_noiser
from matterform.elements import MAX_ATOMIC_NUMBER, atomic_number


def parse_formula(formula: str) -> Int[np.ndarray, " n"]:
    """Atomic numbers in the order of the formula.

    Raises:
        ValueError: it is not a chemical formula, or contains no atoms.
    """
    from ase.formula import Formula

    try:
        counts = Formula(formula).count()
    except ValueError as error:
        raise ValueError(f"formula must be one such as Cu2O; got {formula!r}") from error
    if not counts or min(counts.values()) < 1:
        raise ValueError(f"formula must name at least one atom, as Cu2O; got {formula!r}")
    try:
        return np.array([atomic_number(symbol) for symbol, count in counts.items() for _ in range(count)])
    except ValueError as error:
        raise ValueError(f"formula {formula!r}: {error}") from error


def parse_numbers(numbers: Any) -> Int[np.ndarray, " n"]:
    """A list of atomic numbers as an array.

    Raises:
        ValueError: the list is empty, or contains anything but whole numbers from 1 to 118.
    """
    parsed = np.asarray(numbers)
    valid = parsed.ndim == 1 and parsed.size > 0 and np.issubdtype(parsed.dtype, np.integer)
    if not valid or parsed.min() < 1 or parsed.max() > MAX_ATOMIC_NUMBER:
        raise ValueError(
            f"atomic_numbers must be whole numbers from 1 to {MAX_ATOMIC_NUMBER}; got {list(np.ravel(parsed))}"
        )
    return parsed


def parse_cell(given: Any) -> Float[np.ndarray, "3 3"]:
    """A cell (rows are lattice vectors, Å) from three lengths, lengths and angles, nine numbers or a matrix.

    Raises:
        ValueError: the number of entries is wrong, some are not finite, or no cell has these angles.
    """
    from ase.cell import Cell

    values = np.asarray(given, float)
    if values.size not in (3, 6, 9) or values.ndim > 2 or not np.isfinite(values).all():
        raise ValueError(
            "cell must be three lengths, three lengths and three angles, or nine numbers, all finite; "
            f"got {values.ravel().tolist()}"
        )
    try:
        cell = Cell.new(values.reshape(3, 3) if values.size == 9 else values.ravel())
    except (ValueError, AssertionError) as error:
        raise ValueError(f"cell {values.ravel().tolist()} does not exist: check its angles") from error
    return np.asarray(cell.array)


def parse_pbc(given: Any) -> Bool[np.ndarray, "3"]:
    """Periodic directions from one truth value or three.

    Raises:
        ValueError: it is neither one truth value nor three.
    """
    values = np.asarray(given)
    if values.shape not in ((), (3,)) or not np.isin(values, (0, 1)).all():
        raise ValueError(f"pbc must be one or three truth values; got {given!r}")
    return np.broadcast_to(values.astype(bool), 3).copy()


def parse_confinement(
    config: DiffusionConfig, given: Any, cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"]
) -> tuple[float, float] | None:
    """z_min and z_max (Å), by default those of the training data; None if the model has no confinement.

    Raises:
        ValueError: the model has no confinement, or the walls are not z_min < z_max inside the cell.
    """
    if position_noiser(config) != "ConfinedCellPositions":
        if given is not None:
            raise ValueError("confinement contradicts the model, which does not confine (no ConfinedCellPositions)")
        return None
    if given is None:
        return config.confinement
    values = np.asarray(given, float)
    if values.shape != (2,) or not np.isfinite(values).all() or not values[0] < values[1]:
        raise ValueError(f"confinement must be z_min < z_max in angstrom; got {list(np.ravel(given))}")
    if pbc[2] and values[1] - values[0] > abs(cell[2, 2]) + SAME_CELL:
        raise ValueError(
            f"confinement {values.tolist()} is wider than the cell is high ({abs(cell[2, 2]):.3f} angstrom)"
        )
    return float(values[0]), float(values[1])
