"""Reference crystals indexed by formula; a crystal is parsed only when its formula is looked up."""

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

CifOrStructure = Union[str, "pymatgen.core.Structure"]  # CIF text, or a parsed structure


class ReferenceSet(NamedTuple):
    """Crystals by reduced formula: `find("NaCl")` returns all crystals with that composition."""

    find: "Callable[[str], tuple[pymatgen.core.Structure, ...]]"
    count: int  # number of all crystals


def read_reference_set(path: str | os.PathLike[str]) -> ReferenceSet:
    """Reads the crystals of a file in any format of `matterform.io.formats`.

    CIFs, including those in a CSV, are grouped by the formula that they state, and parsed when it is looked up.
    Unreadable crystals are left out, with a warning.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the suffix is unknown, a structure column is missing, or the file has no entry.
    """
    return make_reference_set(_entries(path))


def make_reference_set(crystals: Iterable[CifOrStructure | None]) -> ReferenceSet:
    """Makes a reference set of structures or CIF texts; None is an unreadable crystal, which is only counted."""
    by_formula: dict[str, list[CifOrStructure]] = {}
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

    return ReferenceSet(find, sum(map(len, by_formula.values())))


def _entries(path: str | os.PathLike[str]) -> Iterator[CifOrStructure | None]:
    try:
        texts = iterate_texts(path)
    except ValueError:  # not a file of texts; the next line raises if it has no known format
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
