"""Rewards built from other rewards: weighted sums, clipping, penalties for invalid and bonuses for new crystals."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Shaped

from crystalformer.rl.reward.base import KNOWN_SYSTEM, Reward, Scores, make_scores
from matterform.evaluation.composition import compositional_validity
from matterform.evaluation.matching import MatcherConfig, is_novel, is_unique
from matterform.evaluation.reference_set import make_reference_set, read_reference_set
from matterform.evaluation.validity import strict_validity

if TYPE_CHECKING:
    import pymatgen.core

MATCHER = MatcherConfig()
MAX_SMACT_ELEMENTS = 7  # SMACT tries all combinations of oxidation states: seconds per composition from 8 elements on

Test = Callable[["Sequence[pymatgen.core.Structure]"], Bool[np.ndarray, " b"]]  # True where a structure passes


def weighted_sum(parts: Sequence[tuple[float, Reward]]) -> Reward:
    """The sum of weight x reward; a crystal for which any reward fails gets the worst value of the sum.

    Details keep their names; a name that occurs in two rewards is prefixed with the name of the reward.

    Raises:
        ValueError: there are no rewards, a weight is not positive, or two rewards have the same name.
    """
    names = [reward.name for _, reward in parts]
    if not parts or len(set(names)) < len(names):
        raise ValueError(f"a sum needs rewards of different names; got {', '.join(names) or 'none'}")
    for weight, reward in parts:
        if not 0 < weight < np.inf:
            raise ValueError(f"the weight of the reward {reward.name} must be positive; got {weight:g}")
    worst = sum(weight * reward.worst for weight, reward in parts)

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        scores = [reward.score(structures) for _, reward in parts]
        values = sum(weight * scored.values for (weight, _), scored in zip(parts, scores, strict=True))
        found = zip(*(scored.problems for scored in scores), strict=True)
        problems = [next((problem for problem in row if problem), "") for row in found]
        relaxed = next((scored.relaxed for scored in scores if scored.relaxed is not None), None)
        return make_scores(np.asarray(values), problems, worst, _merged_details(names, scores), relaxed)

    return Reward(" + ".join(f"{weight:g} {reward.name}" for weight, reward in parts), score, worst)


def clipped(reward: Reward, low: float, high: float) -> Reward:
    """The reward, and its worst value, clipped to [low, high].

    Raises:
        ValueError: `low` is not below `high`.
    """
    if not low < high:
        raise ValueError(f"clips must be ordered; got low = {low:g}, high = {high:g}")
    worst = float(np.clip(reward.worst, low, high))

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        scores = reward.score(structures)
        return make_scores(np.clip(scores.values, low, high), scores.problems, worst, scores.details, scores.relaxed)

    return Reward(reward.name, score, worst)


def with_validity_penalty(reward: Reward, penalty: float) -> Reward:
    """The reward minus `penalty` if atoms are closer than their covalent radii allow or the density is not a solid's.

    Raises:
        ValueError: the penalty is negative or not finite.
    """
    return _with_penalty(reward, penalty, "valid", lambda structures, scores: strict_validity(structures).valid)


def with_composition_penalty(reward: Reward, penalty: float) -> Reward:
    """The reward minus `penalty` if no combination of oxidation states is neutral (SMACT; 90 % of real crystals pass).

    Crystals of more than 7 elements, which SMACT would take seconds for, get the penalty as well.

    Raises:
        ValueError: the penalty is negative or not finite.
    """

    def passes(structures: "Sequence[pymatgen.core.Structure]", scores: Scores) -> Bool[np.ndarray, " b"]:
        few = [index for index, structure in enumerate(structures) if len(structure.composition) <= MAX_SMACT_ELEMENTS]
        valid = np.zeros(len(structures), bool)
        valid[few] = compositional_validity([structures[index] for index in few])
        return valid

    return _with_penalty(reward, penalty, "valid_composition", passes)


def with_unknown_penalty(reward: Reward, penalty: float) -> Reward:
    """The reward minus `penalty` if the hull of the reward `ehull` has no entry with all elements of a crystal.

    In such a chemical system almost any bound crystal lies below the hull, and a policy learns to exploit that. So it
    does with pure elements in a hull of formation energies, where they are zero by convention.

    Raises:
        ValueError: the penalty is negative or not finite.
    """
    return _with_penalty(reward, penalty, KNOWN_SYSTEM, lambda structures, scores: scores.details[KNOWN_SYSTEM])


def with_uniqueness_bonus(reward: Reward, bonus: float, config: MatcherConfig = MATCHER) -> Reward:
    """The reward plus `bonus` for the first of each group of matching crystals that are scored together.

    Relaxed structures are compared where the reward relaxes.

    Raises:
        ValueError: the bonus is negative or not finite.
    """
    return _with_bonus(reward, bonus, "unique", lambda structures: is_unique(structures, config))


def with_novelty_bonus(
    reward: Reward,
    bonus: float,
    reference: "str | os.PathLike[str] | Iterable[pymatgen.core.Structure]",
    config: MatcherConfig = MATCHER,
) -> Reward:
    """The reward plus `bonus` for crystals that match none of `reference`, after relaxation where the reward relaxes.

    Args:
        reference: crystals, or a file of crystals in any format of `matterform.io.formats`. It is read once, now, and
            indexed by formula; entries of a CSV or CIF are parsed when a crystal of their formula is scored.

    Raises:
        ValueError: the bonus is negative or not finite, or the file cannot be read.
    """
    known = (
        read_reference_set(reference) if isinstance(reference, (str, os.PathLike)) else make_reference_set(reference)
    )

    def passes(structures: "Sequence[pymatgen.core.Structure]") -> Bool[np.ndarray, " b"]:
        formulas = {structure.composition.reduced_formula for structure in structures}
        return is_novel(structures, [other for formula in formulas for other in known.find(formula)], config)

    return _with_bonus(reward, bonus, "novel", passes)


def _with_penalty(
    reward: Reward,
    penalty: float,
    name: str,
    passes: "Callable[[Sequence[pymatgen.core.Structure], Scores], Shaped[np.ndarray, ' b']]",
) -> Reward:
    """Subtracts `penalty` where `passes` does not return 1; its result becomes the detail `name`.

    The worst value is lowered as well, so that a crystal without a value never ranks above one with a penalty.
    """
    _check_size("penalty", penalty)
    worst = reward.worst - penalty

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        scores = reward.score(structures)
        passed = passes(structures, scores)
        values = scores.values - np.where(passed == 1, 0.0, penalty)
        details = scores.details | {name: passed.astype(np.float64)}
        return make_scores(values, scores.problems, worst, details, scores.relaxed)

    return Reward(reward.name, score, worst)


def _with_bonus(reward: Reward, bonus: float, name: str, passes: Test) -> Reward:
    """Adds `bonus` where `passes` is True; it gets the crystals that have a value, relaxed if the reward relaxes."""
    _check_size("bonus", bonus)

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        scores = reward.score(structures)
        final = list(structures)
        for index, relaxed in enumerate(scores.relaxed or []):
            final[index] = final[index] if relaxed is None else relaxed
        evaluated = [index for index, problem in enumerate(scores.problems) if not problem]
        passed = np.full(len(final), np.nan)
        passed[evaluated] = passes([final[index] for index in evaluated])
        values = scores.values + bonus * np.nan_to_num(passed)
        return make_scores(values, scores.problems, reward.worst, scores.details | {name: passed}, scores.relaxed)

    return Reward(reward.name, score, reward.worst)


def _check_size(name: str, size: float) -> None:
    if not 0 <= size < np.inf:
        raise ValueError(f"{name} must not be negative; got {size:g}")


def _merged_details(names: Sequence[str], scores: Sequence[Scores]) -> dict[str, Float[np.ndarray, " b"]]:
    """The details of all rewards, and the value of each reward as the detail `reward_NAME`."""
    times = Counter(key for scored in scores for key in scored.details)
    merged = {f"reward_{name}": scored.values for name, scored in zip(names, scores, strict=True)}
    for name, scored in zip(names, scores, strict=True):
        merged |= {key if times[key] == 1 else f"{name}_{key}": values for key, values in scored.details.items()}
    return merged
