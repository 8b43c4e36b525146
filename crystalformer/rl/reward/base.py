"""What crystals are worth, larger is better: rewards from a potential, a hull and models of properties.

`combine` puts rewards together, `custom` takes a user's function, `native` computes inside jit, `options` opens what a
command line asks for. A crystal that cannot be evaluated gets the worst value of its reward, and the reason is kept.
"""

import collections
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from matterform.elements import element_table
from matterform.potentials.base import Potential, Properties, PropertyModel
from matterform.stability.above_hull import above_hull, check_references
from matterform.stability.hull import Hull
from matterform.stability.references import References

if TYPE_CHECKING:
    import pymatgen.core

CLIP_EV_PER_ATOM = 10.0  # of energies above the hull
SMALLEST, LARGEST = 1e-2, 1e2  # what components of forces (eV/Å) and stress (eV/Å³) count as
KNOWN_SYSTEM = "known_system"  # detail of `ehull_reward`: 1 where the hull has a reference of all the elements
MAX_KINDS, MAX_NAMED, MAX_WORDS = 6, 5, 80  # of reasons in a line, of elements named in each, of its characters
VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))  # xx, yy, zz, yz, xz, xy of a 3 x 3 matrix

Form = Literal["absolute", "squared"]


class Scores(NamedTuple):
    """One entry per structure."""

    values: Float[np.ndarray, " b"]  # finite and not below the reward's `worst`, which stands where there is a problem
    problems: list[str]  # why there is no value; empty where all is well
    details: dict[str, Float[np.ndarray, " b"]]  # numbers behind the values, by name; NaN where there is none
    relaxed: "list[pymatgen.core.Structure | None] | None" = None  # where the reward relaxed them


class Reward(NamedTuple):
    """A function of crystals as they come, in primitive or other cells."""

    name: str
    score: "Callable[[Sequence[pymatgen.core.Structure]], Scores]"
    worst: float


def make_scores(
    values: Float[np.ndarray, " b"],
    problems: Sequence[str],
    worst: float,
    details: Mapping[str, Float[np.ndarray, " b"]] | None = None,
    relaxed: "list[pymatgen.core.Structure | None] | None" = None,
) -> Scores:
    """Scores with `worst` in place of lower values and where there is a problem; not finite is one."""
    values = np.asarray(values, np.float64)
    problems = list(problems)
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        problems[index] = problems[index] or "its reward is not finite"
    failed = np.array([bool(problem) for problem in problems], bool)
    values = np.where(failed, worst, np.maximum(np.where(failed, worst, values), worst))
    return Scores(values, problems, dict(details or {}), relaxed)


def describe_problems(problems: Sequence[str]) -> str:
    """One line for the log: how many failed, and how many of them in which way.

    Reasons that differ in numbers or in a list of elements at their end are one; its most frequent elements are named.
    """
    kinds = [_kind_of(problem) for problem in problems if problem]
    elements = {words: collections.Counter[str]() for words, _ in kinds}
    for words, symbols in kinds:
        elements[words].update(symbols)
    counts = collections.Counter(words for words, _ in kinds).most_common()
    listed = [f"{count} x {words}{_most_frequent(elements[words])}" for words, count in counts[:MAX_KINDS]]
    if rest := sum(count for _, count in counts[MAX_KINDS:]):
        listed.append(f"{rest} x something else")
    return f"{len(kinds)} of {len(problems)} failed" + (": " if listed else "") + "; ".join(listed)


def ehull_reward(
    potential: Potential,
    hull: Hull,
    references: References | None = None,
    relax_steps: int = 0,
    clip: float = CLIP_EV_PER_ATOM,
) -> Reward:
    """Minus the energy above the hull in eV/atom, clipped to [-clip, clip]; of relaxed crystals with `relax_steps`.

    Args:
        references: energies of the elements in the potential, for a hull of formation energies and only for such a one.
    """
    check_references(hull, references, potential)

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        found = above_hull(structures, potential, hull, references=references, relax_steps=relax_steps)
        details = {
            "e_above_hull": found.e_above_hull,
            "energy_per_atom": found.energy_per_atom,
            KNOWN_SYSTEM: np.where(np.isnan(found.e_above_hull), np.nan, found.known_system),
        }
        values = np.clip(-found.e_above_hull, -clip, clip)
        if found.relaxed is None:
            return make_scores(values, found.problems, -clip, details)
        ends = zip(found.relaxed.structures, found.problems, strict=True)
        relaxed = [None if problem else structure for structure, problem in ends]
        return make_scores(values, found.problems, -clip, details, relaxed)

    return Reward("ehull", score, -clip)


def force_reward(potential: Potential, stress_weight: float = 1.0) -> Reward:
    """-log(mean |F| + stress_weight * mean |stress|): how near a crystal is to a minimum of its energy.

    The means are over Cartesian components, of all atoms (eV/Å) and of the six of the stress (eV/Å³), whose absolute
    values are clipped to [1e-2, 1e2] before.
    """
    worst = -float(np.log(LARGEST * (1 + stress_weight)))
    wanted = "stress" if stress_weight else "forces"

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        predictions = potential.predict(structures, wanted)
        nothing = np.full((1, 3), np.nan)
        force = np.array([_mean_size(nothing if forces is None else forces) for forces in predictions.forces])
        details = {"mean_force": force}
        total = force
        if stress_weight:
            details["mean_stress"] = np.array([_mean_size(stress[VOIGT]) for stress in predictions.stress])
            total = force + stress_weight * details["mean_stress"]
        return make_scores(-np.log(total), predictions.problems, worst, details)

    return Reward("force", score, worst)


def property_reward(
    model: PropertyModel, target: float, form: Form = "absolute", largest_error: float = 10.0
) -> Reward:
    """-|y - target| or -(y - target)^2, in the unit of the model.

    Args:
        largest_error: errors beyond it, and crystals without a value, count as this one.
    """
    worst = -largest_error if form == "absolute" else -(largest_error**2)

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        predicted = model.predict(structures)
        values = _single(model, predicted)
        error = np.abs(values - target)
        return make_scores(
            -error if form == "absolute" else -(error**2), predicted.problems, worst, {"property": values}
        )

    return Reward("property", score, worst)


def dielectric_reward(dielectric_model: PropertyModel, gap_model: PropertyModel) -> Reward:
    """Total dielectric constant x band gap (eV), the figure of merit of a dielectric; 0 is the worst.

    The constant is the mean eigenvalue of the predicted tensor: six components (xx, yy, zz first), nine, or already
    one number. Negative predictions count as 0.
    """

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        tensors, gaps = dielectric_model.predict(structures), gap_model.predict(structures)
        details = {"dielectric": _mean_eigenvalue(dielectric_model, tensors), "band_gap": _single(gap_model, gaps)}
        values = np.maximum(details["dielectric"], 0) * np.maximum(details["band_gap"], 0)
        problems = [first or second for first, second in zip(tensors.problems, gaps.problems, strict=True)]
        return make_scores(values, problems, 0.0, details)

    return Reward("dielectric", score, 0.0)


def _kind_of(problem: str) -> tuple[str, list[str]]:
    """What stands before the first number of a reason, and apart from it the elements listed there at the end."""
    during = re.match(r"after [0-9]+ steps: ", problem)  # of a relaxation
    words, *numbers = re.split(r"[-+]?[0-9]", problem[during.end() if during else 0 :], maxsplit=1)
    words = re.sub(r"\([^)]*$", "", words).strip(" :,;=")  # without an unfinished parenthesis
    if numbers:
        words = re.sub(r": [a-z]+$", "", words)  # without what the number is of, as in "isolated atom: site"
    words = f"in relaxation: {words}" if during else words
    listed = re.fullmatch(r"(.*?\S) ([A-Z][a-z]?(?:, [A-Z][a-z]?)*)", words)
    symbols = listed[2].split(", ") if listed else []
    if listed and set(symbols) <= set(element_table().symbol.tolist()):
        return listed[1][:MAX_WORDS], symbols
    return (words or problem)[:MAX_WORDS], []


def _most_frequent(elements: collections.Counter[str]) -> str:
    named = [symbol if count == 1 else f"{symbol} ({count})" for symbol, count in elements.most_common(MAX_NAMED)]
    others = len(elements) - len(named)
    return "".join([" " if named else "", ", ".join(named), f" and {others} other elements" if others else ""])


def _mean_size(components: Float[np.ndarray, "..."]) -> float:
    return float(np.mean(np.clip(np.abs(components), SMALLEST, LARGEST)))


def _single(model: PropertyModel, predicted: Properties) -> Float[np.ndarray, " b"]:
    """The one number that a model gives per structure."""
    width = int(np.prod(predicted.values.shape[1:]))
    if width != 1:
        raise ValueError(f"{model.name} predicts {width} numbers for a crystal; expected a model of a single one")
    return predicted.values.reshape(-1)


def _mean_eigenvalue(model: PropertyModel, predicted: Properties) -> Float[np.ndarray, " b"]:
    """A third of the trace."""
    values = predicted.values.reshape(len(predicted.values), int(np.prod(predicted.values.shape[1:])))
    diagonal = {1: (0,), 6: (0, 1, 2), 9: (0, 4, 8)}.get(values.shape[1])
    if diagonal is None:
        raise ValueError(
            f"{model.name} predicts {values.shape[1]} numbers for a crystal; expected 1, 6 or 9 of a tensor"
        )
    return values[:, diagonal].mean(1)
