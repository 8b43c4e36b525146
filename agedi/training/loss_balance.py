"""Balance of the diffusion loss and the force field loss: each is divided by its running mean and given a share.

Formula: docs/formulas/agedi.md.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from agedi.data.example import GraphExample
from agedi.loss import ExampleLoss

MOMENTUM = 0.99  # of the running means
FLOOR = 1e-12  # smallest running mean that a loss is divided by
PARTS = ("diffusion", "regressor")
SEPARATORS = r"(?<=[\d%\s])[:/-]"

Metrics = dict[str, Float[Array, ""]]


class LossBalance(NamedTuple):
    """Shares of the two losses in the total; they sum to 1."""

    diffusion: float
    regressor: float


class RunningMeans(NamedTuple):
    """Running means of the two losses; zero before the first step."""

    started: Float[Array, ""]  # 1 after the first step
    diffusion: Float[Array, ""]
    regressor: Float[Array, ""]


def parse_loss_balance(given: Any) -> LossBalance | None:
    """Shares of the losses from "80:20", "80/20", "0.8-0.2", "50%:50%", a pair, a mapping, or the regressor's share.

    Raises:
        ValueError: they are not two numbers of at least 0, or both are 0.
    """
    if given is None:
        return None
    try:
        diffusion, regressor = map(float, _two_numbers(given))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"loss_balance must be shares of diffusion and regressor, as 80:20, or the regressor's share, as 0.2; "
            f"got {given!r}"
        ) from error
    if not (diffusion >= 0 and regressor >= 0 and diffusion + regressor > 0):
        hint = "; in YAML, write 80:20 in quotes" if isinstance(given, int | float) else ""
        raise ValueError(f"shares in loss_balance must be at least 0 and not both 0; got {given!r}{hint}")
    return LossBalance(diffusion / (diffusion + regressor), regressor / (diffusion + regressor))


def _two_numbers(given: Any) -> Sequence[Any]:
    if isinstance(given, Mapping):
        if set(given) != set(PARTS):
            raise ValueError("other keys")
        return [given[part] for part in PARTS]
    if isinstance(given, str):
        parts = [part.strip().removesuffix("%") for part in re.split(SEPARATORS, given)]
        given = parts if len(parts) > 1 else float(parts[0]) / (100 if "%" in given else 1)
    if isinstance(given, int | float):
        return [1 - given, given]
    return given


def start_means() -> RunningMeans:
    """Running means before the first step."""
    return RunningMeans(*(jnp.zeros(()) for _ in RunningMeans._fields))


def update_means(means: RunningMeans, metrics: Metrics) -> RunningMeans:
    """Running means after a step, with momentum 0.99; the first step sets them to its own losses."""
    share = jnp.where(means.started > 0, 1 - MOMENTUM, 1.0)
    moved = {part: getattr(means, part) + share * (jnp.abs(metrics[part]) - getattr(means, part)) for part in PARTS}
    return RunningMeans(started=jnp.ones(()), **moved)


def make_balanced_loss(
    example_loss: ExampleLoss, balance: LossBalance
) -> Callable[[Any, PRNGKeyArray | None, GraphExample, RunningMeans], tuple[Float[Array, ""], Metrics]]:
    """Returns the balanced loss: the sum of each part times its share over its running mean.

    It goes with `make_train_step(..., remember=update_means)`, which keeps the running means.
    """

    def balanced(
        params: Any, key: PRNGKeyArray | None, example: GraphExample, means: RunningMeans
    ) -> tuple[Float[Array, ""], Metrics]:
        _, metrics = example_loss(params, key, example)

        def scaled(part: str) -> Float[Array, ""]:
            own = jnp.abs(jax.lax.stop_gradient(metrics[part]))
            return metrics[part] / jnp.maximum(jnp.where(means.started > 0, getattr(means, part), own), FLOOR)

        loss = sum((getattr(balance, part) * scaled(part) for part in PARTS), start=jnp.zeros(()))
        return loss, metrics

    return balanced
