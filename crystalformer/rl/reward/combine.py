"""Rewards made of rewards: weighted sums, clips, penalties for what is not valid, bonuses for what is new."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Shaped

from crystalformer.rl.reward.base import KNOWN_SYSTEM, Reward, Scores, make_scores
from matterform.evaluation.composition import compositional_validity
from matterform.evaluation.matching import MatcherConfig, is_novel, is_unique
from matterform.evaluation.reference_set import index_known, read_known
from matterform.evaluation.validity import strict_validity

if TYPE_CHECKING:
    import pymatgen.core

MATCHER = MatcherConfig()
MAX_BALANCED = 7  # elements of a composition whose oxidation states are tried

Judge = Callable[["Sequence[pymatgen.core.Structure]"], Bool[np.ndarray, " b"]]


def weighted_sum(parts: Sequence[tuple[float, Reward]]) -> Reward:
    """The sum of weight x reward; a crystal at which any of them fails gets the worst of the sum.

    Details keep their names, but for those that two rewards have in common, which are put behind the reward's name.

    Raises:
        ValueError: no parts, a weight that is not positive, or two rewards of one name.
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
    """The reward within [low, high], its worst as well."""
    if not low < high:
        raise ValueError(f"clips must be ordered; got low = {low:g}, high = {high:g}")
    worst = float(np.clip(reward.worst, low, high))

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        scores = reward.score(structures)
        return make_scores(np.clip(scores.values, low, high), scores.problems, worst, scores.details, scores.relaxed)

    return Reward(reward.name, score, worst)


def with_validity_penalty(reward: Reward, penalty: float) -> Reward:
    """Less by `penalty` where atoms are too close for their covalent radii or the density is not that of a solid."""
    return _with_penalty(reward, penalty, "valid", lambda structures, scores: strict_validity(structures).valid)


def with_composition_penalty(reward: Reward, penalty: float) -> Reward:
    """Less by `penalty` where oxidation states cannot balance (SMACT; real crystals pass at 90 %).

    The penalty falls also on more than 7 elements: SMACT tries all combinations, and takes seconds from 8 on.
    """

    def judge(structures: "Sequence[pymatgen.core.Structure]", scores: Scores) -> Bool[np.ndarray, " b"]:
        few = [index for index, structure in enumerate(structures) if len(structure.composition) <= MAX_BALANCED]
        valid = np.zeros(len(structures), bool)
        valid[few] = compositional_validity([structures[index] for index in few])
        return valid

    return _with_penalty(reward, penalty, "valid_composition", judge)


def with_unknown_penalty(reward: Reward, penalty: float) -> Reward:
    """Less by `penalty` where the hull of the reward `ehull` has no reference of all elements of a crystal.

    In such chemical systems whatever is bound lies below the hull, which is what a policy soon finds out. It does so of
    elements too, which are at zero by convention in a hull of formation energies.
    """
    return _with_penalty(reward, penalty, KNOWN_SYSTEM, lambda structures, scores: scores.details[KNOWN_SYSTEM])


def with_uniqueness_bonus(reward: Reward, bonus: float, config: MatcherConfig = MATCHER) -> Reward:
    """More by `bonus` for the first of its kind among the crystals scored together, relaxed where the reward did so."""
    return _with_bonus(reward, bonus, "unique", lambda structures: is_unique(structures, config))


def with_novelty_bonus(
    reward: Reward,
    bonus: float,
    reference: "str | os.PathLike[str] | Iterable[pymatgen.core.Structure]",
    config: MatcherConfig = MATCHER,
) -> Reward:
    """More by `bonus` for crystals that match none of `reference`, relaxed where the reward did so.

    Args:
        reference: crystals, or a file of them in any format of `matterform.io.formats`; read now, once, and sorted by
            formula. Those of a CSV or CIF are parsed only when a crystal of the formula that they state comes up.
    """
    known = read_known(reference) if isinstance(reference, (str, os.PathLike)) else index_known(reference)

    def judge(structures: "Sequence[pymatgen.core.Structure]") -> Bool[np.ndarray, " b"]:
        formulas = {structure.composition.reduced_formula for structure in structures}
        return is_novel(structures, [other for formula in formulas for other in known.find(formula)], config)

    return _with_bonus(reward, bonus, "novel", judge)


def _with_penalty(
    reward: Reward,
    penalty: float,
    name: str,
    judge: "Callable[[Sequence[pymatgen.core.Structure], Scores], Shaped[np.ndarray, ' b']]",
) -> Reward:
    """Where `judge` does not say 1; what it says is the detail `name`.

    The worst is lower by the penalty too, so that a crystal that failed stays below.
    """
    _check_size("penalty", penalty)
    worst = reward.worst - penalty

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        scores = reward.score(structures)
        good = judge(structures, scores)
        values = scores.values - np.where(good == 1, 0.0, penalty)
        details = scores.details | {name: good.astype(np.float64)}
        return make_scores(values, scores.problems, worst, details, scores.relaxed)

    return Reward(reward.name, score, worst)


def _with_bonus(reward: Reward, bonus: float, name: str, judge: Judge) -> Reward:
    """Where `judge` says yes; it sees only the crystals that the reward could evaluate, as they are after it."""
    _check_size("bonus", bonus)

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        scores = reward.score(structures)
        final = list(structures)
        for index, relaxed in enumerate(scores.relaxed or []):
            final[index] = final[index] if relaxed is None else relaxed
        evaluated = [index for index, problem in enumerate(scores.problems) if not problem]
        good = np.full(len(final), np.nan)
        good[evaluated] = judge([final[index] for index in evaluated])
        values = scores.values + bonus * np.nan_to_num(good)
        return make_scores(values, scores.problems, reward.worst, scores.details | {name: good}, scores.relaxed)

    return Reward(reward.name, score, reward.worst)


def _check_size(name: str, size: float) -> None:
    if not 0 <= size < np.inf:
        raise ValueError(f"{name} must not be negative; got {size:g}")


def _merged_details(names: Sequence[str], scores: Sequence[Scores]) -> dict[str, Float[np.ndarray, " b"]]:
    """The details of all, and the value of each as `reward_NAME`."""
    times = Counter(key for scored in scores for key in scored.details)
    merged = {f"reward_{name}": scored.values for name, scored in zip(names, scores, strict=True)}
    for name, scored in zip(names, scores, strict=True):
        merged |= {key if times[key] == 1 else f"{name}_{key}": values for key, values in scored.details.items()}
    return merged
