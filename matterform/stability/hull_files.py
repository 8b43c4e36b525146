"""Files of reference entries, read in bounded memory: computed entries as JSON, and tables of formation energies.

Computed entries are the dictionaries written by pymatgen, in a list or under "entries", as published by Alexandria and
the Materials Project; their energies are equal to `ComputedEntry.from_dict(entry).energy`.
"""

import bz2
import contextlib
import functools
import gzip
import io
import itertools
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matterform.io.files import damage_explained, existing
from matterform.io.json_stream import iterate_json_list
from matterform.io.tables import iterate_chunks
from matterform.stability.hull_entries import Entries, Entry, Fractions, fractions_of, pack_entries, save_entries

if TYPE_CHECKING:
    import pymatgen.core

FORMATION_COLUMN = "formation_energy_per_atom"
FORMULA_COLUMNS = ("pretty_formula", "formula")
PROGRESS_EVERY = 1000
FORMULA_SUM = re.compile(r"^_chemical_formula_sum\s+(?:'([^']*)'|\"([^\"]*)\"|(\S+))", re.MULTILINE)


def index_hull(
    source: str | os.PathLike[str], out: str | os.PathLike[str], progress: Callable[[int], None] = lambda done: None
) -> Entries:
    """Converts a file of entries to a folder that `open_hull` opens instantly; the folder is written atomically.

    Args:
        progress: called with the number of entries read so far.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or has other contents, or `out` is a non-empty folder.
    """
    if pathlib.Path(out).is_dir() and any(pathlib.Path(out).iterdir()):
        raise ValueError(f"{out} is a folder that already holds something; remove it or choose another name")
    entries = read_entries(source, progress)
    save_entries(entries, out, pathlib.Path(source).name)
    return entries


def read_entries(path: str | os.PathLike[str], progress: Callable[[int], None] = lambda done: None) -> Entries:
    """Reads all entries of a JSON file (or a folder of them) of total energies, or of a CSV of formation energies.

    Raises:
        ValueError: the file has no entries, is damaged or has another layout; the message gives the position.
    """
    path = existing(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if ".csv" in suffixes:
        kind, entries = "formation", iterate_formation_table(path)
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if ".json" in file.suffixes)
        kind, entries = "total", itertools.chain.from_iterable(map(iterate_computed_entries, files))
    elif ".json" in suffixes:
        kind, entries = "total", iterate_computed_entries(path)
    else:
        raise ValueError(f"{path}: expected a .csv or .json file (.gz, .bz2 or plain) or a folder of an indexed hull")
    packed = pack_entries(kind, _counted(entries, progress))
    if not packed.count:
        raise ValueError(f"{path} holds no entries")
    return packed


def _counted(entries: Iterator[Entry], progress: Callable[[int], None]) -> Iterator[Entry]:
    count = 0
    for count, entry in enumerate(entries, 1):
        yield entry
        if count % PROGRESS_EVERY == 0:
            progress(count)
    progress(count)


@contextlib.contextmanager
def _open_text(path: pathlib.Path) -> Iterator[io.TextIOBase]:
    """Opens a plain, gzip or bzip2 file as text; raises ValueError if it is damaged."""
    openers = {".gz": gzip.open, ".bz2": bz2.open}
    try:
        with damage_explained(path), openers.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8") as file:
            yield file  # pyright: ignore[reportReturnType]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged or no text ({error})") from error


def iterate_formation_table(path: pathlib.Path) -> Iterator[Entry]:
    """Yields the rows of a CSV with `formation_energy_per_atom` and a formula, or CIFs, as entries.

    Raises:
        ValueError: a column is missing, or a row cannot be read; the message gives the row, counted from 0.
    """
    for row, (formula, energy) in enumerate(iterate_formation_rows(path)):
        try:
            yield Entry(fractions_of_formula(formula), energy)
        except ValueError as error:
            raise ValueError(f"{path}, row {row}: {error}") from error


def iterate_formation_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, float]]:
    """Formula and formation energy (eV/atom) of every row of a CSV (plain, .gz or .bz2).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a row has no formula or no finite energy; the message gives the row.
    """
    path, row = existing(path), 0
    for chunk in iterate_chunks(path, [FORMATION_COLUMN], as_text=True):
        for formula, text in zip(_formulas(path, chunk, row), chunk[FORMATION_COLUMN], strict=True):
            yield formula, _finite(text, f"{path}, row {row}: {FORMATION_COLUMN}")
            row += 1


def _formulas(path: pathlib.Path, chunk: Any, first_row: int) -> Sequence[str]:
    for name in FORMULA_COLUMNS:
        if name in chunk:
            return list(chunk[name])
    if "cif" not in chunk:
        raise ValueError(
            f"{path} needs a column {', '.join(FORMULA_COLUMNS)} or cif; it has {', '.join(chunk.columns)}"
        )
    formulas = []
    for row, text in enumerate(chunk["cif"], first_row):
        match = FORMULA_SUM.search(text)
        if match is None:
            raise ValueError(f"{path}, row {row}: its CIF has no _chemical_formula_sum")
        formulas.append(next(group for group in match.groups() if group is not None))
    return formulas


@functools.lru_cache(maxsize=2**14)
def fractions_of_formula(formula: str) -> Fractions:
    """Atomic fractions of a formula such as Ca(OH)2 or 'Tm1 Mg1 Hg2'.

    Raises:
        ValueError: the text is not a formula.
    """
    from pymatgen.core import Composition

    try:
        return fractions_of(Composition(formula))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{formula!r} is not a formula ({error})") from error


def iterate_computed_entries(path: pathlib.Path) -> Iterator[Entry]:
    """Yields the entries of a JSON file one by one.

    Raises:
        ValueError: the file is damaged, truncated or has another layout, or an entry cannot be read; the message gives
            its number.
    """
    with _open_text(path) as file:
        for index, record in enumerate(iterate_json_list(file, path, "entries")):
            try:
                yield computed_entry(record)
            except (KeyError, TypeError, ValueError) as error:
                reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{path}, entry {index} is not a computed entry: {reason}") from error


def computed_entry(record: Any) -> Entry:
    """Composition and corrected energy from the dictionary of a ComputedEntry or ComputedStructureEntry.

    As in pymatgen, a list of adjustments takes precedence over the single number `correction` of older files.

    Raises:
        KeyError, TypeError, ValueError: energy or composition is missing, or the kind of an adjustment is unknown.
    """
    _check_dictionary(record, "entry")
    composition = _composition(record)
    adjustments = record.get("energy_adjustments") or []
    correction = sum(map(_adjustment, adjustments)) if adjustments else (record.get("correction") or 0.0)
    energy = _finite(record["energy"], "energy") + _finite(correction, "correction")
    return Entry(fractions_of(composition), energy / composition.num_atoms)


def _composition(record: Mapping[str, Any]) -> "pymatgen.core.Composition":
    from pymatgen.core import Composition

    if composition := record.get("composition"):
        if isinstance(composition, str):
            return Composition(composition)
        _check_dictionary(composition, "composition")
        return Composition({name: float(n) for name, n in composition.items() if not name.startswith("@")})
    amounts: dict[str, float] = {}
    for site in record["structure"]["sites"]:
        for species in site["species"]:
            amounts[species["element"]] = amounts.get(species["element"], 0.0) + float(species["occu"])
    return Composition(amounts)


def _adjustment(adjustment: Any) -> float:
    """The value (eV) of an energy adjustment, of any kind that pymatgen defines."""
    _check_dictionary(adjustment, "energy adjustment")
    for names in (("value",), ("adj_per_atom", "n_atoms"), ("adj_per_deg", "temp", "n_atoms")):
        if all(name in adjustment for name in names):
            return math.prod(float(adjustment[name]) for name in names)
    raise ValueError(f"an energy adjustment of an unknown kind, {adjustment.get('@class', list(adjustment))}")


def _check_dictionary(value: Any, name: str) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a dictionary, found {type(value).__name__}")


def _finite(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}, which is not a finite number")
    return number
