"""Rewards of crystals: larger is better. A crystal without a value gets the worst value of its reward and a reason.

`energy` rewards stability, `property` predicted properties, `pairwise` is computed in JAX, `custom` calls a user's
function; `combine` adds rewards and modifies them, `load` builds the reward that a `RewardConfig` describes.
"""

import collections
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from matterform.elements import element_table

if TYPE_CHECKING:
    import pymatgen.core

KNOWN_SYSTEM = "known_system"  # detail: 1 if the hull has an entry with all elements of a structure, else 0
MAX_REASONS, MAX_ELEMENTS, MAX_LENGTH = 6, 5, 80  # reasons in a summary, elements and characters in each of them


class Scores(NamedTuple):
    """Rewards of a batch of structures, one entry per structure."""

    values: Float[np.ndarray, " b"]  # finite, at least the reward's `worst`; equal to it where there is a problem
    problems: list[str]  # reason why there is no value; empty if there is one
    details: dict[str, Float[np.ndarray, " b"]]  # quantities behind the values, by name; NaN where unknown
    relaxed: "list[pymatgen.core.Structure | None] | None" = None  # relaxed structures, if the reward relaxes


class Reward(NamedTuple):
    """A named function that scores structures in any cell, and the value of structures that cannot be scored."""

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
    """Scores whose values are `worst` where there is a problem, and at least `worst` elsewhere.

    A value that is not finite is a problem of its own.
    """
    values = np.asarray(values, np.float64)
    problems = list(problems)
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        problems[index] = problems[index] or "its reward is not finite"
    failed = np.array([bool(problem) for problem in problems], bool)
    values = np.where(failed, worst, np.maximum(np.where(failed, worst, values), worst))
    return Scores(values, problems, dict(details or {}), relaxed)


def describe_problems(problems: Sequence[str]) -> str:
    """One line for the log: the number of failures, grouped by reason.

    Reasons that differ only in numbers, or in a list of elements at their end, form one group; the group's most
    frequent elements are named.
    """
    reasons = [_generalize(problem) for problem in problems if problem]
    elements = {text: collections.Counter[str]() for text, _ in reasons}
    for text, symbols in reasons:
        elements[text].update(symbols)
    counts = collections.Counter(text for text, _ in reasons).most_common()
    groups = [f"{count} x {text}{_most_frequent(elements[text])}" for text, count in counts[:MAX_REASONS]]
    if rest := sum(count for _, count in counts[MAX_REASONS:]):
        groups.append(f"{rest} x something else")
    return f"{len(reasons)} of {len(problems)} failed" + (": " if groups else "") + "; ".join(groups)


def _generalize(problem: str) -> tuple[str, list[str]]:
    """The text of a reason before its first number, and the elements listed at the end of that text."""
    during = re.match(r"after [0-9]+ steps: ", problem)  # of a relaxation
    text, *numbers = re.split(r"[-+]?[0-9]", problem[during.end() if during else 0 :], maxsplit=1)
    text = re.sub(r"\([^)]*$", "", text).strip(" :,;=")  # without an unfinished parenthesis
    if numbers:
        text = re.sub(r": [a-z]+$", "", text)  # without the noun of the number, as in "isolated atom: site"
    text = f"in relaxation: {text}" if during else text
    listed = re.fullmatch(r"(.*?\S) ([A-Z][a-z]?(?:, [A-Z][a-z]?)*)", text)
    symbols = listed[2].split(", ") if listed else []
    if listed and set(symbols) <= set(element_table().symbol.tolist()):
        return listed[1][:MAX_LENGTH], symbols
    return (text or problem)[:MAX_LENGTH], []


def _most_frequent(elements: collections.Counter[str]) -> str:
    named = [symbol if count == 1 else f"{symbol} ({count})" for symbol, count in elements.most_common(MAX_ELEMENTS)]
    others = len(elements) - len(named)
    return "".join([" " if named else "", ", ".join(named), f" and {others} other elements" if others else ""])
