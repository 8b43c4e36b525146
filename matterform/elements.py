"""The periodic table as arrays indexed by atomic number; index 0 is padding.

The values are in assets/elements.csv, written by assets/make_elements.py, which lists the sources.
"""

import difflib
import functools
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from matterform.io.tables import read_rows

MAX_ATOMIC_NUMBER = 118
ELEMENTS_CSV = pathlib.Path(__file__).parent / "assets" / "elements.csv"

# Structure files write deuterium and tritium as elements of their own; chemically they are hydrogen.
ISOTOPES = {"D": 1, "T": 1}


class ElementTable(NamedTuple):
    """Columns of length 119. Row 0 (padding) is zero or False; NaN means unknown."""

    symbol: np.ndarray  # "X" for padding
    name: np.ndarray
    mass_u: Float[np.ndarray, "119"]  # standard atomic weight (u), or mass of the longest-lived isotope
    covalent_radius_ang: Float[np.ndarray, "119"]  # Å, Cordero et al. 2008; NaN beyond Cm
    electronegativity: Float[np.ndarray, "119"]  # Pauling; NaN for He, Ne, Ar and from Rf on
    period: Int[np.ndarray, "119"]
    group: Int[np.ndarray, "119"]  # 1-18; lanthanides and actinides count as group 3
    radioactive: Bool[np.ndarray, "119"]  # no stable isotope: Tc, Pm, Po and above
    noble_gas: Bool[np.ndarray, "119"]


@functools.cache
def element_table() -> ElementTable:
    """The periodic table, read on the first call; its arrays are shared and therefore read-only."""
    rows = read_rows(ELEMENTS_CSV, ElementTable._fields)
    dtypes = {"symbol": str, "name": str, "period": np.int32, "group": np.int32, "radioactive": bool, "noble_gas": bool}
    columns = {}
    for name in ElementTable._fields:
        dtype = dtypes.get(name, np.float32)
        values = [row[name] for row in rows]
        column = np.array(values, np.int32).astype(bool) if dtype is bool else np.array(values, dtype)
        column.flags.writeable = False
        columns[name] = column
    return ElementTable(**columns)


@functools.cache
def _numbers_by_symbol() -> dict[str, int]:
    symbols = element_table().symbol.tolist()
    return {symbol: number for number, symbol in enumerate(symbols) if number > 0} | ISOTOPES


def atomic_number(symbol: str) -> int:
    """Atomic number of a chemical symbol; D and T are hydrogen.

    Raises:
        ValueError: `symbol` is not an element (a name, wrong capitals, a charge such as Fe3+, ...).
    """
    numbers = _numbers_by_symbol()
    if symbol not in numbers:
        raise ValueError(f"unknown chemical symbol {symbol!r}; {_suggestion(symbol)}")
    return numbers[symbol]


def _suggestion(symbol: str) -> str:
    table = element_table()
    names = dict(zip(table.name.tolist(), table.symbol.tolist(), strict=True))
    if symbol.capitalize() in _numbers_by_symbol():
        return f"did you mean {symbol.capitalize()!r}?"
    if close := difflib.get_close_matches(symbol.capitalize(), list(names)[1:], n=1, cutoff=0.8):
        return f"did you mean {names[close[0]]!r}?"
    return "use a symbol such as 'Fe', without charge or count"
