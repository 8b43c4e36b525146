"""Constraints on sampled crystals: Wyckoff letters, allowed elements, and sites that share an element."""

import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from crystalformer.config import TransformerConfig
from crystalformer.symmetry.wyckoff import LETTERS, letter_index, symmetry_tables
from matterform.elements import atomic_number, element_table

FREE = -1


class Constraints(NamedTuple):
    """Constraints by site, shared by all crystals of a call."""

    letters: Int[Any, " n"]  # the letter, 0 for "no such site", FREE for any
    elements: Bool[Any, "n elements"]  # allowed atomic numbers
    ties: Int[Any, " n"]  # an earlier site whose element this one shares, or FREE


def make_constraints(
    config: TransformerConfig,
    *,
    letters: Sequence[str] = (),
    elements: Sequence[str] = (),
    site_elements: Sequence[Sequence[str]] = (),
    ties: Sequence[Sequence[int]] = (),
    no_radioactive: bool = False,
    no_noble_gas: bool = False,
) -> Constraints:
    """Makes constraints from letters and element symbols.

    Args:
        letters: Wyckoff letters of all sites, in this order ("a", "b", ...); empty for any.
        elements: symbols allowed on every site; empty for all.
        site_elements: symbols allowed on the first site, the second, ...; an empty list adds no constraint.
        ties: pairs of sites (numbered from 0) that share their element.

    Raises:
        ValueError: a letter or symbol is unknown, there are too many sites, or a site has no allowed element.
    """
    n = config.n_max
    for name, given in (("letters", letters), ("site_elements", site_elements)):
        if len(given) >= n:
            raise ValueError(f"{name}: a crystal has at most {n - 1} sites here; got {len(given)}")
    forced = np.full(n, FREE, np.int32)
    if letters:
        forced[:] = 0
        forced[: len(letters)] = [_known_letter(letter, config) for letter in letters]
    table = element_table()
    allowed = np.tile(_symbols_mask(elements, config), (n, 1)) if elements else np.ones((n, config.atom_types), bool)
    for site, symbols in enumerate(site_elements):
        if symbols:
            allowed[site] &= _symbols_mask(symbols, config)
    for excluded, mask in ((no_radioactive, table.radioactive), (no_noble_gas, table.noble_gas)):
        if excluded:
            allowed &= ~mask[: config.atom_types]
    allowed[:, 0] = False  # padding follows from the letter
    if not allowed.any(1).all():
        site = int(np.argmin(allowed.any(1)))
        raise ValueError(
            f"no element is left for site {site}: its list, `elements` and the exclusions have none in common"
        )
    return Constraints(forced, allowed, _tie_array(ties, allowed, n))


def read_constraints(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads {"atom_mask": [["V", "Cr"], ["O"]], "constraints": [[2, 3]]} as arguments of `make_constraints`.

    Raises:
        ValueError: the file does not contain such an object.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    known = {"atom_mask": "site_elements", "constraints": "ties"}
    if not isinstance(content, dict) or not set(content) <= set(known):
        raise ValueError(f'{path} should hold an object with "atom_mask" and "constraints"; got {content!r:.80}')
    for name, rows in content.items():
        kind = str if name == "atom_mask" else int
        lists = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
        # Not isinstance, because True is an int.
        if not lists or not all(type(entry) is kind for row in rows for entry in row):
            raise ValueError(f'{path}: "{name}" should be a list of lists of {kind.__name__}; got {rows!r:.80}')
    return {known[name]: rows for name, rows in content.items()}


def check_constraints(constraints: Constraints, spacegroups: Int[np.ndarray, " b"], config: TransformerConfig) -> None:
    """Checks on the host that constraints fit the network, and their letters the space groups.

    Raises:
        ValueError: the sizes differ from those of the network, or a space group does not allow the letters.
    """
    if np.shape(constraints.elements) != (config.n_max, config.atom_types):
        raise ValueError(
            f"constraints are for (n_max, atom_types) = {np.shape(constraints.elements)}, but this network has "
            f"{(config.n_max, config.atom_types)}; make them with its config"
        )
    letters = [int(letter) for letter in constraints.letters if letter > 0]
    tables = symmetry_tables()
    for G in np.unique(spacegroups):
        for previous, letter in itertools.pairwise([0, *letters]):
            name, fixed = LETTERS[letter], tables.has_no_freedom[G - 1, letter]
            if letter > tables.num_letters[G - 1]:
                last = LETTERS[tables.num_letters[G - 1]]
                raise ValueError(f"letters: space group {G} has a to {last}, so {name} cannot be a site")
            if letter < previous:
                raise ValueError(f"letters must be in alphabetic order; found {name} after {LETTERS[previous]}")
            if letter == previous and fixed:
                raise ValueError(
                    f"letters: {name} of space group {G} is a fixed position, which one site only can take"
                )


def _known_letter(letter: str, config: TransformerConfig) -> int:
    index = letter_index(letter)
    if index >= config.wyck_types:
        raise ValueError(f"letters: this network has a to {LETTERS[config.wyck_types - 1]}, not {letter}")
    return index


def _symbols_mask(symbols: Sequence[str], config: TransformerConfig) -> Bool[np.ndarray, " elements"]:
    numbers = [atomic_number(symbol) for symbol in symbols]
    unknown = [symbol for symbol, number in zip(symbols, numbers, strict=True) if number >= config.atom_types]
    if unknown:
        raise ValueError(f"elements: this network has atomic numbers below {config.atom_types}, not {unknown[0]}")
    return np.isin(np.arange(config.atom_types), numbers)


def _tie_array(ties: Sequence[Sequence[int]], allowed: Bool[np.ndarray, "n elements"], n: int) -> Int[np.ndarray, " n"]:
    """For each site the first site that it is tied to; raises ValueError if tied sites have no element in common."""
    root = np.arange(n)
    for pair in ties:
        if len(pair) != 2 or not all(0 <= site < n - 1 for site in pair) or pair[0] == pair[1]:
            raise ValueError(f"constraints: expected pairs of two different sites in 0..{n - 2}; got {list(pair)}")
        first, second = sorted(root[list(pair)])
        root[root == second] = first
    for site in np.unique(root):
        tied = root == site
        common = allowed[tied].all(0)
        if not common.any():
            raise ValueError(
                f"constraints: the tied sites {np.flatnonzero(tied).tolist()} have no allowed element in common"
            )
        allowed[tied] = common
    return np.where(root == np.arange(n), FREE, root).astype(np.int32)
