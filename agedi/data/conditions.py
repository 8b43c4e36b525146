"""Properties that a model is conditioned on: their names and kinds, and their statistics in a data set."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from agedi.config import ConditionConfig, split_names
from agedi.data.config import EXTENSIVE

KINDS = ("scalar", "integer", "node")

logger = logging.getLogger(__name__)


def condition_kinds(names: str | Sequence[str], kinds: str | Sequence[str]) -> dict[str, str]:
    """The kind of each property.

    Args:
        names: names of properties, one by one or joined by commas; "none" stands for no property.
        kinds: `scalar`, `integer` or `node` (one number per atom): one kind for all properties, or one for each.

    Raises:
        ValueError: a property is given twice, a kind is unknown, or the number of kinds does not match.
    """
    chosen = split_names(names)
    given = [kinds] if isinstance(kinds, str) else list(kinds)
    given = given * len(chosen) if len(given) == 1 else given
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"conditioning names a property twice: {', '.join(chosen)}")
    if chosen and len(given) != len(chosen):
        raise ValueError(f"conditioning_type must be one kind, or one for each of {', '.join(chosen)}; got {given}")
    if unknown := [kind for kind in given if kind not in KINDS]:
        raise ValueError(f"conditioning_type must be one of {', '.join(KINDS)}; got {unknown[0]!r}")
    return dict(zip(chosen, given, strict=False))


def make_conditions(
    names: str | Sequence[str], kinds: str | Sequence[str], extensive: Sequence[str] = EXTENSIVE
) -> tuple[ConditionConfig, ...]:
    """Conditions of a model from names and kinds of properties, as in `condition_kinds`.

    Raises:
        ValueError: as in `condition_kinds`.
    """
    return tuple(
        ConditionConfig(name=name, kind=kind, extensive=name in extensive)  # pyright: ignore[reportArgumentType]
        for name, kind in condition_kinds(names, kinds).items()
    )


def standardize(condition: ConditionConfig, values: np.ndarray) -> ConditionConfig:
    """The condition with mean and standard deviation of `values`, unless it has its own already.

    Raises:
        ValueError: a class of an integer condition lies outside the embedding table.
    """
    if condition.kind == "integer":
        if values.min() < 0 or values.max() >= condition.num_classes:
            raise ValueError(
                f"classes of {condition.name} must lie in 0 ... {condition.num_classes - 1}; "
                f"the data hold {values.min()} to {values.max()}"
            )
        return condition
    if (condition.mean, condition.std) != (0.0, 1.0):
        return condition
    std = float(np.std(values))
    if std == 0:
        logger.warning("%s is %g in every structure: nothing can be learned from it", condition.name, values[0])
    return dataclasses.replace(condition, mean=float(np.mean(values)), std=std or 1.0)
