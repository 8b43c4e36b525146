"""Crystals as text: the entries of CIF files and of CSV tables, and their translation to and from pymatgen."""

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from matterform.external import one_line
from matterform.io.files import damage_explained, existing, open_text
from matterform.io.tables import iterate_chunks

if TYPE_CHECKING:
    import pymatgen.core

STRUCTURE_COLUMNS = ("cif", "structure")


class UnreadableStructure(ValueError):
    """An entry that does not describe a structure; readers count it, with the reason."""


class TextRecord(NamedTuple):
    """One crystal as it stands in its file, not parsed yet."""

    index: int  # row or data block, counted from 0
    text: str  # CIF, or JSON of a pymatgen Structure; empty where the table has nothing
    columns: dict[str, Any]  # the other columns of a CSV row; "file" and "block" of a CIF


def iterate_csv(path: str | os.PathLike[str], column: str | None = None) -> Iterator[TextRecord]:
    """The rows of a CSV without parsing their crystals, which stand in `column` ("cif" or "structure" by default).

    Only an empty cell counts as missing: "NaN" is sodium nitride.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no structure column, not a table, or a truncated gzip file.
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
    """The data blocks of a CIF file, or of every CIF in a folder in the order of their names, not parsed.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a truncated gzip file.
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
    """Name and text of each data block. Plain splitting, so that a fault in one block spares the others."""
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
    """One crystal from CIF or from the JSON of a pymatgen Structure, in the cell that the text gives.

    Raises:
        UnreadableStructure: with the reason.
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
            warnings.simplefilter("ignore")  # a line for every crystal where 0.3333 became 1/3, which is wanted
            return CifParser.from_str(text).parse_structures(primitive=False, on_error="raise")[0]
    # What pymatgen raises on damaged CIFs (ten thousand were tried) and on JSON of something else.
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
        raise UnreadableStructure(reason_of(error)) from error


def to_cif(structure: "pymatgen.core.Structure", symprec: float | None = None) -> str:
    """CIF text with 8 decimals; P1 with every atom unless `symprec` (Å) asks to find the symmetry."""
    from pymatgen.io.cif import CifWriter

    return str(CifWriter(structure, symprec=symprec))


def reason_of(error: Exception) -> str:
    """One line for a table of refused entries."""
    return f"{type(error).__name__}: {one_line(error)}"
