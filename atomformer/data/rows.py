"""Rows: structures as dicts of named columns, in which files are read and data sets written; and their checks.

Known columns; all but the first two may be absent, which means that the value is missing:

| column | shape | meaning |
|---|---|---|
| `input_ids` | (n,) int32 | tokens of the atoms, which are their atomic numbers, 1 to 118 |
| `coords` | (n, 3) float64 | Cartesian, Å |
| `forces` | (n, 3) float64 | eV/Å |
| `formation_energy`, `total_energy` | float | eV |
| `token_type_ids` | (n,) int32 | 0 to 2 |
| `cell`, `pbc` | (3, 3) float64, (3,) bool | lattice vectors as rows, Å; the periodic directions. Both or neither |
| `fixed` | (n,) bool | atoms that do not move |
| `relaxed_coords` | (n, 3) float64 | coordinates after relaxation, Å |

Any other column is a property under its own name: a float, a float64 vector, or text (which parquet files keep and data
sets leave out).
"""

import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import ase

Row = dict[str, Any]

NUM_ELEMENTS = 118
NUM_TOKEN_TYPES = 3
CLOSEST_ANG = 1e-3  # atoms closer than this count as being at the same place
# Trailing shape and type of the columns with one entry per atom.
PER_ATOM = {
    "input_ids": ((), np.int32),
    "coords": ((3,), np.float64),
    "forces": ((3,), np.float64),
    "token_type_ids": ((), np.int32),
    "fixed": ((), np.bool_),
    "relaxed_coords": ((3,), np.float64),
}
ENERGIES = ("formation_energy", "total_energy")
# Results of ASE calculators that are properties of the whole structure, besides the energy.
ASE_RESULTS = ("free_energy", "stress", "dipole", "magmom")


def check_row(row: Mapping[str, Any]) -> Row:
    """The row with the types and shapes documented in this module; missing values (None, NaN) are left out.

    If the column `has_formation_energy` is False, the formation energy is missing; that column itself is not kept.
    Properties that are matrices become vectors; those that are neither numbers nor text are left out.

    Raises:
        ValueError: the row is not a valid structure; the message names the column and, if possible, the atom.
    """
    row = {name: value for name, value in row.items() if value is not None}
    if missing := [name for name in ("input_ids", "coords") if name not in row]:
        raise ValueError(f"the row has no column {missing[0]!r}, only {', '.join(row) or 'empty ones'}")
    if not row.pop("has_formation_energy", True):
        row.pop("formation_energy", None)
    n = _numeric("input_ids", row["input_ids"]).size
    if n == 0:
        raise ValueError("input_ids: the structure has no atoms")
    checked: Row = {name: _per_atom(name, row.pop(name), n) for name in PER_ATOM if name in row}
    for name in ("forces", "relaxed_coords"):
        if name in checked and np.isnan(checked[name]).all():
            del checked[name]
    _check_tokens(checked["input_ids"], checked.get("token_type_ids"))
    for name, unit in (("coords", "Å"), ("relaxed_coords", "Å"), ("forces", "eV/Å")):
        if name in checked:
            _check_finite(name, checked[name], unit)
    for name in ("coords", "relaxed_coords"):
        if name in checked:
            _check_apart(name, checked[name])
    checked |= _checked_cell(row.pop("cell", None), row.pop("pbc", None))
    if "cell" in checked and checked["pbc"].any():
        for name in ("coords", "relaxed_coords"):
            if name in checked:
                _check_images_apart(name, checked[name], checked["cell"], checked["pbc"])
    for name, value in row.items():
        value = _energy(name, value) if name in ENERGIES else _property(name, value)
        if value is not None:
            checked[name] = value
    return checked


def row_from_atoms(atoms: "ase.Atoms", *, properties: Mapping[str, Any] | None = None) -> Row:
    """The checked row of ASE Atoms: stored results of the calculator, `info`, arrays with known names, and FixAtoms.

    The calculator's energy becomes `total_energy`. Nothing is computed. Other constraints and arrays are left out.

    Args:
        properties: more columns, which replace those found.

    Raises:
        ValueError: as `check_row`.
    """
    from ase.constraints import FixAtoms

    results = getattr(atoms.calc, "results", {})
    row: Row = dict(atoms.info)
    row |= {name: results[name] for name in ASE_RESULTS if name in results}
    row |= {name: array for name, array in atoms.arrays.items() if name in PER_ATOM}
    row |= {"input_ids": atoms.numbers, "coords": atoms.positions}
    if "energy" in results:
        row["total_energy"] = results["energy"]
    if "forces" in results:
        row["forces"] = results["forces"]
    if atoms.cell.array.any() or atoms.pbc.any():
        row |= {"cell": atoms.cell.array, "pbc": atoms.pbc}
    if held := [constraint for constraint in atoms.constraints if isinstance(constraint, FixAtoms)]:
        row["fixed"] = np.isin(np.arange(len(atoms)), np.concatenate([constraint.index for constraint in held]))
    return check_row(row | dict(properties or {}))


def row_to_atoms(row: Row) -> "ase.Atoms":
    """ASE Atoms of a checked row; `row_from_atoms` returns the same row."""
    import ase
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.constraints import FixAtoms

    atoms = ase.Atoms(row["input_ids"], row["coords"], cell=row.get("cell"), pbc=row.get("pbc"))
    names = {"total_energy": "energy", "forces": "forces"} | {name: name for name in ASE_RESULTS}
    results = {ase_name: row[name] for name, ase_name in names.items() if name in row}
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    if "fixed" in row:
        atoms.set_constraint(FixAtoms(mask=row["fixed"]))
    for name in ("token_type_ids", "relaxed_coords"):
        if name in row:
            atoms.set_array(name, row[name])
    atoms.info.update({name: row[name] for name in row.keys() - names.keys() - PER_ATOM.keys() - {"cell", "pbc"}})
    return atoms


def _numeric(name: str, value: Any) -> np.ndarray:
    """`value` as an array of numbers."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of unequal length
        raise ValueError(f"{name}: expected a full array of numbers, found lists of unequal length") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected numbers, found {array.ravel()[:1].tolist()!r}")
    return array


def _per_atom(name: str, value: Any, n: int) -> np.ndarray:
    trailing, dtype = PER_ATOM[name]
    array = _numeric(name, value)
    if array.shape != (n, *trailing):
        raise ValueError(f"{name}: expected shape {(n, *trailing)} for {n} atoms, found {array.shape}")
    with np.errstate(invalid="ignore"):
        converted = array.astype(dtype)
    # Tables may store integers as floats. But 1.5 is no integer, and 2 is no truth value.
    if dtype is not np.float64 and len(wrong := np.flatnonzero(converted != array)):
        kind = "a truth value" if dtype is np.bool_ else "an integer"
        raise ValueError(f"{name}: atom {wrong[0]} has {array[wrong[0]]}; expected {kind}")
    return converted


def _check_tokens(tokens: np.ndarray, types: np.ndarray | None) -> None:
    if len(outside := np.flatnonzero((tokens < 1) | (tokens > NUM_ELEMENTS))):
        raise ValueError(
            f"input_ids: atom {outside[0]} has token {tokens[outside[0]]}, which is no element; expected an atomic "
            f"number from 1 to {NUM_ELEMENTS}"
        )
    if types is not None and len(outside := np.flatnonzero((types < 0) | (types >= NUM_TOKEN_TYPES))):
        raise ValueError(
            f"token_type_ids: atom {outside[0]} has type {types[outside[0]]}; expected 0 to {NUM_TOKEN_TYPES - 1}"
        )


def _check_finite(name: str, vectors: np.ndarray, unit: str) -> None:
    if len(broken := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        raise ValueError(
            f"{name}: atom {broken[0]} has {vectors[broken[0]].tolist()}; expected finite numbers ({unit})"
        )


def _check_apart(name: str, positions: np.ndarray) -> None:
    from scipy.spatial import KDTree

    pairs = KDTree(positions).query_pairs(CLOSEST_ANG, output_type="ndarray")
    if len(pairs):
        first, second = pairs[0]
        distance = np.linalg.norm(positions[first] - positions[second])
        raise ValueError(
            f"{name}: atoms {first} and {second} are at the same place, {distance:.1g} Å apart; "
            f"expected at least {CLOSEST_ANG} Å"
        )


def _check_images_apart(name: str, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    """Checks that no atom is at the place of another's image, e.g. on both faces of a cell."""
    from ase.geometry import complete_cell
    from scipy.spatial import KDTree

    vectors = np.asarray(complete_cell(np.where(pbc[:, None], cell, 0.0)))
    fractional = positions @ np.linalg.inv(vectors)
    wrapped = np.where(pbc[None], fractional % 1.0 % 1.0, fractional)  # -1e-20 % 1.0 is 1.0
    wrapped = wrapped - np.where(pbc, 0.0, wrapped.min(axis=0))[None]
    largest = CLOSEST_ANG / np.linalg.svd(vectors, compute_uv=False).min()
    if largest >= 0.5:
        return  # the cell is so thin that every atom is close to images of all others
    pairs = KDTree(wrapped, boxsize=np.where(pbc, 1.0, 0.0)).query_pairs(largest, output_type="ndarray")
    steps = wrapped[pairs[:, 1]] - wrapped[pairs[:, 0]]
    distances = np.linalg.norm((steps - np.round(steps) * pbc[None]) @ vectors, axis=1)
    if len(near := np.flatnonzero(distances <= CLOSEST_ANG)):
        first, second = pairs[near[0]]
        raise ValueError(
            f"{name}: atom {first} and an image of atom {second} are at the same place, {distances[near[0]]:.1g} Å "
            f"apart; expected at least {CLOSEST_ANG} Å"
        )


def _checked_cell(cell: Any, pbc: Any) -> Row:
    if cell is None and not np.any(pbc if pbc is not None else False):
        return {}
    if cell is None or pbc is None:
        raise ValueError(f"{'cell' if cell is None else 'pbc'} is missing: expected both cell and pbc, or neither")
    cell, pbc = _numeric("cell", cell).astype(np.float64), _numeric("pbc", pbc).astype(bool)
    if cell.shape != (3, 3) or pbc.shape != (3,):
        raise ValueError(f"cell and pbc: expected shapes (3, 3) and (3,), found {cell.shape} and {pbc.shape}")
    if not np.isfinite(cell).all():
        raise ValueError(f"cell: expected finite numbers (Å), found {cell.tolist()}")
    if np.linalg.matrix_rank(cell[pbc]) < pbc.sum():
        raise ValueError(f"cell: the periodic vectors span no {pbc.sum()}-dimensional lattice: {cell[pbc].tolist()}")
    return {"cell": cell, "pbc": pbc}


def _energy(name: str, value: Any) -> float | None:
    array = _numeric(name, value)
    if array.size != 1 or np.isinf(array).any():
        raise ValueError(f"{name}: expected one finite number (eV), or NaN where it is missing, found {value}")
    return None if np.isnan(array).any() else float(array.item())


def _property(name: str, value: Any) -> float | str | np.ndarray | None:
    """A property as a float, a vector or text; None if it is missing or something else."""
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Number | np.bool_):
        array = np.asarray(value)
    elif isinstance(value, np.ndarray | list | tuple):
        try:
            array = np.asarray(value)
        except ValueError:  # lists of unequal length
            return None
    else:
        return None
    if array.dtype.kind not in "biuf" or np.isnan(array).all():
        return None
    if np.isinf(array).any():
        raise ValueError(f"{name}: expected finite numbers, or NaN where they are missing, found {value}")
    return float(array) if array.ndim == 0 else array.astype(np.float64).ravel()
