"""Compositional validity: charge balance of oxidation states by SMACT (Davies et al., JOSS 4, 1361 (2019))."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

if TYPE_CHECKING:
    import pymatgen.core

# SMACT's first list, which published results use; its present default, from ICSD, is stricter.
OXIDATION_STATES = "smact14"


def compositional_validity(
    structures: Sequence["pymatgen.core.Structure"], oxidation_states: str = OXIDATION_STATES
) -> Bool[np.ndarray, " b"]:
    """Whether each crystal is an element, contains only metals, or is neutral for some oxidation states (see below).

    The oxidation states must also pass Pauling's electronegativity test. All atoms of an element have the same
    oxidation state, and counts are divided by their greatest common divisor.
    Crystals with partial occupancy are invalid. About 90 % of real crystals (MP-20) are valid.

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
