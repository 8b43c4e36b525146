"""Compositional validity: whether oxidation states can balance, by SMACT (Davies et al., JOSS 4, 1361 (2019))."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

if TYPE_CHECKING:
    import pymatgen.core

# SMACT's first list, with which published numbers were made; its present default, from ICSD, is stricter.
OXIDATION_STATES = "smact14"


def compositional_validity(
    structures: Sequence["pymatgen.core.Structure"], oxidation_states: str = OXIDATION_STATES
) -> Bool[np.ndarray, " b"]:
    """One element or only metals pass; else some charge-neutral choice of oxidation states must pass Pauling's test.

    Every element has one oxidation state in a crystal, and counts are divided by their greatest common divisor.
    Partial occupancy fails. Real crystals (MP-20) score about 90 %.

    Args:
        oxidation_states: the name of a list that SMACT ships, such as smact14 or icsd24.

    Raises:
        ImportError: SMACT is not installed.
    """
    smact_validity = _load_smact_validity()

    @functools.cache
    def is_valid(formula: str) -> bool:
        try:
            return bool(smact_validity(formula, oxidation_states_set=oxidation_states))
        except KeyError:  # an element that SMACT's tables lack
            return False

    return np.array([_is_countable(s) and is_valid(s.composition.reduced_formula) for s in structures], bool)


def _is_countable(structure: "pymatgen.core.Structure") -> bool:
    return len(structure) > 0 and structure.is_ordered


def _load_smact_validity():
    try:
        from smact.screening import smact_validity  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("compositional validity needs SMACT: pip install 'matterform[eval]'") from error
    return smact_validity
