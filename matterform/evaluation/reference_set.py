"""Known crystals by formula: read once, parsed only where a crystal of the same formula asks for them."""

import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Union

from matterform.io.cif import UnreadableStructure, parse_structure
from matterform.io.formats import iterate_crystals, iterate_texts

if TYPE_CHECKING:
    import pymatgen.core

logger = logging.getLogger(__name__)

FORMULA = re.compile(r"^_chemical_formula_sum\s+(?:'([^'\n]+)'|\"([^\"\n]+)\"|([A-Z][A-Za-z0-9.]*))\s*$", re.MULTILINE)

Entry = Union[str, "pymatgen.core.Structure"]  # a CIF, or what was in it


class Known(NamedTuple):
    """Crystals found by their reduced formula."""

    find: "Callable[[str], tuple[pymatgen.core.Structure, ...]]"
    count: int  # of all crystals


def read_known(path: str | os.PathLike[str]) -> Known:
    """The crystals of a file in any format of `matterform.io.formats`.

    CIFs, also in the table of a CSV, are sorted by the formula that they state and parsed when they are looked for.
    Crystals that cannot be read are left out, with a warning.
    """
    return index_known(_entries(path))


def index_known(crystals: Iterable[Entry | None]) -> Known:
    """Given crystals, as structures or CIF texts; None where there is one that cannot be read."""
    by_formula: dict[str, list[Entry]] = {}
    unreadable = 0
    for crystal in crystals:
        entry = crystal
        formula = _stated_formula(crystal) if isinstance(crystal, str) else None
        if formula is None:
            entry = _parsed(crystal) if isinstance(crystal, str) else crystal
            formula = entry.composition.reduced_formula if entry is not None else ""
        if entry is None:
            unreadable += 1
        else:
            by_formula.setdefault(formula, []).append(entry)
    if unreadable:
        logger.warning("%d known crystals cannot be read and are left out", unreadable)

    @functools.cache
    def find(formula: str) -> "tuple[pymatgen.core.Structure, ...]":
        found = [_parsed(entry) if isinstance(entry, str) else entry for entry in by_formula.get(formula, ())]
        if lost := sum(structure is None for structure in found):
            logger.warning("%d known crystals of %s cannot be read and are left out", lost, formula)
        return tuple(structure for structure in found if structure is not None)

    return Known(find, sum(map(len, by_formula.values())))


def _entries(path: str | os.PathLike[str]) -> Iterator[Entry | None]:
    try:
        texts = iterate_texts(path)
    except ValueError:  # not a file of texts; if it is nothing else either, the next line says so
        yield from (crystal.structure for crystal in iterate_crystals(path))
    else:
        yield from (record.text for record in texts)


def _stated_formula(cif: str) -> str | None:
    """The reduced formula that a CIF states; None if it states none that can be read."""
    from pymatgen.core import Composition

    if (found := FORMULA.search(cif)) is None:
        return None
    try:
        return Composition(next(filter(None, found.groups()))).reduced_formula
    except ValueError:
        return None


def _parsed(text: str) -> "pymatgen.core.Structure | None":
    try:
        return parse_structure(text)
    except UnreadableStructure:
        return None
