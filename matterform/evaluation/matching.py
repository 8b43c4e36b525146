"""Uniqueness and novelty by pymatgen's StructureMatcher.

Structures with equal formulas and equal numbers of sites in the primitive cell are compared pairwise, in about 1 ms per
pair; each cell is reduced once, in about 2 ms. A structure with an extreme cell (`geometry.is_comparable` is False)
counts as neither unique nor novel.
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
    """Tolerances of StructureMatcher and their defaults there; the other usual choice is 0.3 / 0.5 / 10."""

    ltol: float = 0.2  # tolerance of lattice lengths, as a fraction of them
    stol: float = 0.3  # tolerance of site positions, as a fraction of cbrt(volume / atoms)
    angle_tol_deg: float = 5.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive; got {getattr(self, field.name)}")


@dataclasses.dataclass(frozen=True)
class Reducible:
    """A structure with its reduced cell, which is computed at the first comparison."""

    structure: "pymatgen.core.Structure"

    @functools.cached_property
    def reduced(self) -> "pymatgen.core.Structure":
        """The Niggli-reduced primitive cell, which StructureMatcher compares."""
        from pymatgen.core import Structure

        return Structure.from_sites(list(self.structure)).get_reduced_structure().get_primitive_structure()


Match = Callable[[Reducible, Reducible], bool]


def is_unique(
    structures: Sequence["pymatgen.core.Structure"], config: MatcherConfig = MatcherConfig()
) -> Bool[np.ndarray, " b"]:
    """Whether each structure matches none of the unique structures before it."""
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
    """Whether each structure matches none in `reference`, which is iterated once; only equal formulas are kept."""
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
        if len(first.reduced) != len(second.reduced):  # the matcher would check this only after copying both
            return False
        return bool(matcher.fit(first.reduced, second.reduced, skip_structure_reduction=True))

    return match
