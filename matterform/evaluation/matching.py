"""Uniqueness and novelty: which structures are the same crystal, by pymatgen's StructureMatcher.

A structure with an absurd cell (`geometry.is_comparable` is False) counts as neither unique nor novel.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from matterform.evaluation.geometry import is_comparable

if TYPE_CHECKING:
    import pymatgen.core

Match = Callable[["pymatgen.core.Structure", "pymatgen.core.Structure"], bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatcherConfig:
    """Tolerances of StructureMatcher, whose defaults these are; 0.3 / 0.5 / 10 is the other usual choice."""

    ltol: float = 0.2  # fraction of the lengths of the cell
    stol: float = 0.3  # fraction of cbrt(volume / atoms)
    angle_tol_deg: float = 5.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive; got {getattr(self, field.name)}")


def is_unique(
    structures: Sequence["pymatgen.core.Structure"], config: MatcherConfig = MatcherConfig()
) -> Bool[np.ndarray, " b"]:
    """Whether a structure matches none of the unique ones before it."""
    unique = np.zeros(len(structures), bool)
    seen: dict[str, list[pymatgen.core.Structure]] = {}
    match = _make_match(config)
    for index, structure in enumerate(structures):
        if not is_comparable(structure):
            continue
        alike = seen.setdefault(structure.composition.reduced_formula, [])
        if not any(match(other, structure) for other in alike):
            unique[index] = True
            alike.append(structure)
    return unique


def is_novel(
    structures: Sequence["pymatgen.core.Structure"],
    reference: Iterable["pymatgen.core.Structure"],
    config: MatcherConfig = MatcherConfig(),
) -> Bool[np.ndarray, " b"]:
    """Whether a structure matches none of `reference`, read once; only structures of equal formula are kept of it."""
    formulas = [structure.composition.reduced_formula if is_comparable(structure) else "" for structure in structures]
    known: dict[str, list[pymatgen.core.Structure]] = {formula: [] for formula in formulas if formula}
    for other in reference:
        if (formula := other.composition.reduced_formula) in known and is_comparable(other):
            known[formula].append(other)
    match = _make_match(config)
    novel = [
        bool(formula) and not any(match(other, structure) for other in known[formula])
        for formula, structure in zip(formulas, structures, strict=True)
    ]
    return np.array(novel, bool)


def _make_match(config: MatcherConfig) -> Match:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=config.ltol, stol=config.stol, angle_tol=config.angle_tol_deg).fit
