"""Conversion of ASE Atoms, pymatgen Structures and rows to the input of the network."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from jaxtyping import Float, Int

from atomformer.config import AtomformerConfig
from atomformer.data.examples import pad_edges
from atomformer.data.periodic import image_edges
from atomformer.data.rows import Row, check_row
from atomformer.data.structure import Structure
from atomformer.data.vocabulary import PAD
from matterform.elements import element_table
from matterform.io.formats import to_atoms
from matterform.reduction import minkowski_cell

if TYPE_CHECKING:
    import ase
    import pymatgen.core

AnyStructure = Union["ase.Atoms", "pymatgen.core.Structure", Row]

# Columns of a row that the network reads.
INPUT_COLUMNS = ("input_ids", "coords", "cell", "pbc", "token_type_ids")
# Values in the rows of padding.
FILL = {"tokens": PAD, "positions": 0, "mask": 0, "token_types": 0}


def input_row(structure: Any, config: AtomformerConfig) -> Row:
    """The columns that the network reads, checked.

    Raises:
        ValueError: the argument is not a structure, two atoms are at the same place, or the model has no reference
            energy of an element.
    """
    import ase

    if isinstance(structure, Mapping):
        row = {name: structure[name] for name in INPUT_COLUMNS if name in structure}
    elif hasattr(structure, "lattice") or isinstance(structure, ase.Atoms):
        atoms = to_atoms(structure)
        row = {"input_ids": atoms.numbers, "coords": atoms.positions}
        if "token_type_ids" in atoms.arrays:
            row["token_type_ids"] = atoms.arrays["token_type_ids"]
        if atoms.cell.array.any() or atoms.pbc.any():
            row |= {"cell": atoms.cell.array, "pbc": atoms.pbc}
    else:
        raise ValueError(
            f"expected ASE Atoms, a pymatgen Structure or a row, found {type(structure).__name__}; "
            "give a list, also of a single structure"
        )
    row = check_row(row)
    reference_energy(row["input_ids"], config)
    return row


def reference_energy(numbers: Int[np.ndarray, " n"], config: AtomformerConfig) -> float:
    """The sum of the atoms' reference energies (eV), to be added to the network's energy; 0 if the model has none.

    Raises:
        ValueError: the model has no reference energy of an element.
    """
    if not config.energy.references or config.energy_head is None:
        return 0.0
    references = dict(config.energy.references)
    if missing := sorted({int(number) for number in numbers} - references.keys()):
        names = ", ".join(element_table().symbol[missing])
        raise ValueError(f"the model has no reference energies of {names}: it was not trained on these elements")
    return float(sum(references[int(number)] for number in numbers))


def prepare_structure(row: Row, config: AtomformerConfig) -> Structure:
    """The input of the network without padding: positions (Å) relative to their mean, wrapped if the model is periodic.

    Both steps are in double precision, so structures far from the origin lose no digits in single precision.
    """
    tokens, positions = row["input_ids"], row["coords"]
    cell = pbc = edges = None
    if config.periodic != "none":
        pbc = row.get("pbc", np.zeros(3, bool))
        cell = _reduced(row.get("cell", np.zeros((3, 3))).tobytes(), pbc.tobytes())
        positions = positions - (np.floor(positions @ np.linalg.inv(cell)) * pbc) @ cell
    if config.periodic == "images" and cell is not None and pbc is not None:
        edges = image_edges(positions, cell, pbc, config.cutoff)
    positions = (positions - positions.mean(axis=0)).astype(np.float32)
    cell = None if cell is None else cell.astype(np.float32)
    return Structure(tokens, positions, np.ones(len(tokens), bool), row.get("token_type_ids"), cell, pbc, edges)


@functools.lru_cache(maxsize=128)
def _reduced(cell: bytes, pbc: bytes) -> Float[np.ndarray, "3 3"]:
    """`minkowski_cell` (Å) of the bytes of arrays, cached because structures often share their cell."""
    return minkowski_cell(np.frombuffer(cell).reshape(3, 3), np.frombuffer(pbc, bool))


def pad_structures(structures: Sequence[Structure], length: int, capacity: int) -> Structure:
    """A batch of structures with the same fields, padded to `length` atoms and `capacity` edges."""

    def padded(parts: Sequence[np.ndarray], fill: int = 0) -> np.ndarray:
        stacked = np.full((len(parts), length, *parts[0].shape[1:]), fill, parts[0].dtype)
        for place, part in enumerate(parts):
            stacked[place, : len(part)] = part
        return stacked

    columns: dict[str, list[Any]] = {
        name: [getattr(structure, name) for structure in structures] for name in Structure._fields
    }
    present = {name: parts for name, parts in columns.items() if parts[0] is not None}
    batch: dict[str, Any] = {name: padded(present[name], fill) for name, fill in FILL.items() if name in present}
    batch |= {name: np.stack(present[name]) for name in ("cell", "pbc") if name in present}
    if "edges" in present:
        batch["edges"] = pad_edges(present["edges"], capacity)
    return Structure(**batch)
