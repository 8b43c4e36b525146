"""Balance of the diffusion and force field losses: each is divided by its running mean and multiplied by its share.

Formula: docs/formulas/agedi.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from agedi.data.example import GraphExample
from agedi.loss import ExampleLoss
from agedi.training.loss_shares import PARTS, LossBalance

MOMENTUM = 0.99  # momentum of the running means, per step
FLOOR = 1e-12  # smallest running mean that a loss is divided by

Metrics = dict[str, Float[Array, ""]]


class RunningMeans(NamedTuple):
    """Running means of the two losses; zero before the first step."""

    started: Float[Array, ""]  # 1 after the first step
    diffusion: Float[Array, ""]
    regressor: Float[Array, ""]


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
    """Returns the balanced loss: the sum over both parts of share x loss / running mean.

    Use it with `make_train_step(..., remember=update_means)`, which updates the running means.
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
