"""Crystals as text: entries of CIF files and CSV tables, and their conversion to and from pymatgen."""

import functools
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from matterform.elements import MAX_ATOMIC_NUMBER
from matterform.errors import reason_of
from matterform.io.files import damage_explained, existing, open_text
from matterform.io.tables import iterate_chunks

if TYPE_CHECKING:
    import gemmi
    import pymatgen.core

STRUCTURE_COLUMNS = ("cif", "structure")
SITE_COLUMNS = (
    "label",
    "type_symbol",
    "symmetry_multiplicity",
    "Wyckoff_symbol",
    "fract_x",
    "fract_y",
    "fract_z",
    "occupancy",
)
THIRDS = (1 / 3, 2 / 3)


class UnreadableStructure(ValueError):
    """An entry that cannot be read as a structure; the message is the reason, which readers report."""


class TextRecord(NamedTuple):
    """The unparsed text of one crystal."""

    index: int  # row or data block, counted from 0
    text: str  # CIF, or JSON of a pymatgen Structure; empty for an empty cell
    columns: dict[str, Any]  # the other columns of a CSV row; "file" and "block" of a CIF


def iterate_csv(path: str | os.PathLike[str], column: str | None = None) -> Iterator[TextRecord]:
    """Yields the rows of a CSV with the unparsed crystals in `column` (by default "cif" or "structure").

    Only an empty cell counts as missing: "NaN" is sodium nitride.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the structure column is missing, or the file is not a table or is a truncated gzip file.
    """
    count = 0
    for chunk in iterate_chunks(path):
        name = _structure_column(path, list(chunk.columns), column)
        for row in chunk.to_dict("records"):
            text = row.pop(name)
            yield TextRecord(count, text if isinstance(text, str) else "", row)  # pyright: ignore[reportArgumentType]
            count += 1


def _structure_column(path: str | os.PathLike[str], columns: list[str], column: str | None) -> str:
    for name in STRUCTURE_COLUMNS if column is None else (column,):
        if name in columns:
            return name
    expected = " or ".join(repr(name) for name in STRUCTURE_COLUMNS) if column is None else repr(column)
    raise ValueError(f"{path} has no column {expected}; its columns are {', '.join(map(str, columns))}")


def iterate_cifs(path: str | os.PathLike[str]) -> Iterator[TextRecord]:
    """Yields the unparsed data blocks of a CIF file, or of all CIFs in a folder in the order of their names.

    Raises:
        FileNotFoundError: the file or folder does not exist.
        ValueError: a gzip file is truncated.
    """
    path = existing(path)
    files = sorted(path.glob("*.cif")) + sorted(path.glob("*.cif.gz")) if path.is_dir() else [path]
    count = 0
    for file in files:
        with damage_explained(file), open_text(file) as lines:
            for name, block in _split_blocks(lines):
                yield TextRecord(count, block, {"file": file.name, "block": name})
                count += 1


def _split_blocks(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and text of each data block, not parsed, so that a damaged block does not affect the others."""
    name, block, in_text_field = None, [], False
    for line in lines:
        if line.startswith(";"):
            in_text_field = not in_text_field
        elif not in_text_field and line[:5].lower() == "data_":
            if name is not None:
                yield name, "".join(block)
            name, block = line[5:].strip(), []
        block.append(line)
    if name is not None:
        yield name, "".join(block)


def parse_structure(text: str) -> "pymatgen.core.Structure":
    """Parses one crystal from CIF or from the JSON of a pymatgen Structure, in the cell that the text gives.

    Raises:
        UnreadableStructure: the text is empty, damaged or contains several crystals.
    """
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifParser

    if not text.strip():
        raise UnreadableStructure("there is no structure: the text is empty")
    if (blocks := len(list(_split_blocks(text.splitlines(keepends=True))))) > 1:
        raise UnreadableStructure(f"expected one crystal, found {blocks} data blocks")
    try:
        if text.lstrip().startswith("{"):
            return Structure.from_dict(json.loads(text))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen warns for each crystal in which 0.3333 becomes 1/3
            return CifParser.from_str(text).parse_structures(primitive=False, on_error="raise")[0]
    # Exceptions of pymatgen for damaged CIFs (found with ten thousand of them) and for other JSON.
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
        raise UnreadableStructure(reason_of(error)) from error


class Cell(NamedTuple):
    """All atoms of one periodic cell, as spglib's tuple (lattice, positions, numbers)."""

    lattice: Float[np.ndarray, "3 3"]  # rows are lattice vectors, Å
    frac: Float[np.ndarray, "n 3"]  # fractional coordinates
    numbers: Int[np.ndarray, " n"]  # atomic numbers


def parse_cell(text: str) -> Cell | None:
    """The cell of a plain CIF, parsed by gemmi a hundred times as fast as by `parse_structure`; None for other text.

    A plain CIF has one data block with a cell, sites of single elements, and symmetry that gemmi can interpret without
    contradiction. Use this function to convert many CIFs, and `parse_structure` (pymatgen, tolerant of rounded
    coordinates, odd symmetry names and JSON) wherever it returns None.

    Raises:
        UnreadableStructure: a site is partially occupied, or its element is unknown.
    """
    import gemmi

    try:
        document = gemmi.cif.read_string(text)
        if len(document) != 1:
            return None
        structure = gemmi.make_small_structure_from_block(document[0])
    except (ValueError, RuntimeError):
        return None
    if not structure.cell.is_crystal() or not structure.sites or structure.check_spacegroup():
        return None
    for site in structure.sites:
        if site.occ != 1:
            raise UnreadableStructure("partial occupancy")
        if not 1 <= site.element.atomic_number <= MAX_ATOMIC_NUMBER:
            raise UnreadableStructure(f"unknown element {site.type_symbol!r}")
    return _cell_from_gemmi(structure)


def _cell_from_gemmi(structure: "gemmi.SmallStructure") -> Cell | None:
    sites = structure.get_all_unit_cell_sites()
    frac = np.array([site.fract.tolist() for site in sites])
    lattice = np.array(structure.cell.orth.mat.tolist()).T
    if not (np.isfinite(frac).all() and np.isfinite(lattice).all()):
        return None
    # As in pymatgen, 0.33333 is read as 1/3; spglib's choice of origin can depend on that.
    for third in THIRDS:
        frac[np.abs(frac / third - 1) < 1e-4] = third
    return Cell(lattice, frac, np.array([site.element.atomic_number for site in sites]))


def to_cif(structure: "pymatgen.core.Structure", symprec: float | None = None, block_prefix: str = "") -> str:
    """CIF text with 8 decimals, in P1 unless a tolerance `symprec` (Å) for finding the symmetry is given.

    The data block is named `block_prefix` + reduced formula, because blocks of one file need different names.
    """
    from pymatgen.io.cif import CifWriter

    return str(CifWriter(structure, symprec=symprec)).replace("data_", f"data_{block_prefix}", 1)


class CifSite(NamedTuple):
    """One symmetry-inequivalent site of a crystal, as its CIF lists it."""

    symbol: str  # chemical symbol
    multiplicity: int  # number of equivalent atoms in the conventional cell
    letter: str  # Wyckoff letter
    xyz: Sequence[float]  # fractional coordinates of one of these atoms


def sites_to_cif(formula: str, spacegroup: int, cell: Sequence[float], sites: Iterable[CifSite]) -> str:
    """CIF text of a crystal given by its Wyckoff sites: space group, its operations in the standard setting, and sites.

    Args:
        formula: formula of the conventional cell, e.g. "Na4 Cl4".
        spacegroup: space group number, 1 to 230, in its standard setting (origin choice 2, hexagonal axes).
        cell: a, b, c (Å) and alpha, beta, gamma (degrees) of the conventional cell; written to 8 decimals.
        sites: written in this order, coordinates to 10 decimals.
    """
    name, hall, operations = _symmetry_text(spacegroup)
    sizes = zip(("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), cell, strict=True)
    lines = [
        f"data_{formula.replace(' ', '')}",
        f"_chemical_formula_sum '{formula}'",
        f"_space_group_IT_number {spacegroup}",
        f"_space_group_name_H-M_alt '{name}'",
        f"_space_group_name_Hall '{hall}'",
        *(f"_cell_{size} {value:.8f}" for size, value in sizes),
        "loop_",
        "_space_group_symop_id",
        "_space_group_symop_operation_xyz",
        *(f"{index} '{operation}'" for index, operation in enumerate(operations, start=1)),
        "loop_",
        *(f"_atom_site_{column}" for column in SITE_COLUMNS),
    ]
    for index, (symbol, multiplicity, letter, (x, y, z)) in enumerate(sites, start=1):
        lines.append(f"{symbol}{index} {symbol} {multiplicity} {letter} {x:.10f} {y:.10f} {z:.10f} 1.0")
    return "\n".join(lines) + "\n"


@functools.cache
def _symmetry_text(spacegroup: int) -> tuple[str, str, tuple[str, ...]]:
    """Hermann-Mauguin name with setting, Hall symbol, and the operations of a space group as text."""
    import gemmi

    group = gemmi.get_spacegroup_reference_setting(spacegroup)
    return group.xhm(), group.hall, tuple(operation.triplet() for operation in group.operations())
