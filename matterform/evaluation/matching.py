"""Uniqueness and novelty: which structures are the same crystal, by pymatgen's StructureMatcher.

A comparison takes about a millisecond, and distinct crystals of one formula with equally many sites in the primitive
cell are all compared with each other; cells are reduced once each, which takes twice that.
A structure with an absurd cell (`geometry.is_comparable` is False) counts as neither unique nor novel.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from matterform.evaluation.geometry import is_comparable

if TYPE_CHECKING:
    import pymatgen.core


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


@dataclasses.dataclass(frozen=True)
class Reducible:
    """A structure whose cell is reduced when it is first compared, and only then."""

    structure: "pymatgen.core.Structure"

    @functools.cached_property
    def reduced(self) -> "pymatgen.core.Structure":
        """The primitive cell in Niggli's form, which is what StructureMatcher compares."""
        from pymatgen.core import Structure

        return Structure.from_sites(list(self.structure)).get_reduced_structure().get_primitive_structure()


Match = Callable[[Reducible, Reducible], bool]


def is_unique(
    structures: Sequence["pymatgen.core.Structure"], config: MatcherConfig = MatcherConfig()
) -> Bool[np.ndarray, " b"]:
    """Whether a structure matches none of the unique ones before it."""
    unique = np.zeros(len(structures), bool)
    seen: dict[str, list[Reducible]] = {}
    match = _make_match(config)
    for index, structure in enumerate(structures):
        if not is_comparable(structure):
            continue
        alike = seen.setdefault(structure.composition.reduced_formula, [])
        candidate = Reducible(structure)
        if not any(match(other, candidate) for other in alike):
            unique[index] = True
            alike.append(candidate)
    return unique


def is_novel(
    structures: Sequence["pymatgen.core.Structure"],
    reference: Iterable["pymatgen.core.Structure"],
    config: MatcherConfig = MatcherConfig(),
) -> Bool[np.ndarray, " b"]:
    """Whether a structure matches none of `reference`, read once; only structures of equal formula are kept of it."""
    formulas = [structure.composition.reduced_formula if is_comparable(structure) else "" for structure in structures]
    known: dict[str, list[Reducible]] = {formula: [] for formula in formulas if formula}
    for other in reference:
        if (formula := other.composition.reduced_formula) in known and is_comparable(other):
            known[formula].append(Reducible(other))
    match = _make_match(config)
    novel = [
        bool(formula) and not any(match(other, candidate) for other in known[formula])
        for formula, candidate in zip(formulas, map(Reducible, structures), strict=True)
    ]
    return np.array(novel, bool)


def _make_match(config: MatcherConfig) -> Match:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(ltol=config.ltol, stol=config.stol, angle_tol=config.angle_tol_deg)

    def match(first: Reducible, second: Reducible) -> bool:
        if len(first.reduced) != len(second.reduced):  # which the matcher would find after copying both
            return False
        return bool(matcher.fit(first.reduced, second.reduced, skip_structure_reduction=True))

    return match
