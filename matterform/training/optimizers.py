"""Optimisers and learning-rate schedules from a config."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from matterform.training.config import OptimizerConfig

# Learning rate as a function of the number of steps already taken.
Schedule = Callable[[Any], Any]


def make_schedule(config: OptimizerConfig) -> Schedule:
    """The learning rate as a function of the number of steps taken; see `OptimizerConfig` for the formulas.

    Raises:
        ValueError: the schedule needs a number of steps, and none is given.
    """
    rate = _make_rate(config)
    if config.warmup_steps == 0:
        return rate
    return lambda count: rate(count) * jnp.minimum(1.0, (count + 1) / config.warmup_steps)


def make_optimizer(config: OptimizerConfig, run_steps: int | None = None) -> optax.GradientTransformation:
    """Gradient clipping, then Adam or AdamW with the scheduled learning rate.

    Args:
        run_steps: number of steps of the run, used if the config has no total_steps.

    Raises:
        ValueError: the schedule needs a number of steps, and none is given.
    """
    if config.total_steps is None:
        config = dataclasses.replace(config, total_steps=run_steps)
    if config.warmup_fraction:
        if config.total_steps is None:
            raise ValueError("warmup_fraction needs total_steps, or a run whose length is known; got neither")
        warmup = round(config.warmup_fraction * config.total_steps)
        config = dataclasses.replace(config, warmup_steps=warmup, warmup_fraction=0.0)
    transforms = []
    if config.clip_value is not None:
        transforms.append(optax.clip(config.clip_value))
    if config.clip_norm is not None:
        transforms.append(optax.clip_by_global_norm(config.clip_norm))
    schedule = make_schedule(config)
    if config.optimizer == "adamw":
        adam = optax.adamw(schedule, config.b1, config.b2, config.adam_eps, weight_decay=config.weight_decay)
    else:
        adam = optax.adam(schedule, config.b1, config.b2, config.adam_eps)
    transforms.append(adam)
    if config.schedule == "plateau":
        transforms.append(scale_by_rate())
    return optax.chain(*transforms)


class RateScale(NamedTuple):
    """A factor of the learning rate, changed by the training loop only; part of the optimiser's state."""

    scale: Float[Array, ""]


def scale_by_rate() -> optax.GradientTransformation:
    """Multiplies updates by the scale in the state, which is 1 until `with_rate_scale` changes it."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda change: state.scale.astype(change.dtype) * change, updates), state

    return optax.GradientTransformation(lambda params: RateScale(jnp.ones(())), update)


def with_rate_scale(opt_state: Any, scale: Any) -> Any:
    """The optimiser's state with another factor of the learning rate."""

    def is_scale(node: Any) -> bool:
        return isinstance(node, RateScale)

    return jax.tree.map(lambda node: RateScale(scale) if is_scale(node) else node, opt_state, is_leaf=is_scale)


def _make_rate(config: OptimizerConfig) -> Schedule:
    if config.schedule == "cosine":
        if config.total_steps is None:
            raise ValueError("schedule='cosine' needs total_steps, or a run whose length is known; got neither")
        return optax.cosine_decay_schedule(config.learning_rate, config.total_steps, config.final_fraction)
    if config.schedule == "inverse_time":
        return lambda count: config.learning_rate / (1 + config.decay * count)
    return optax.constant_schedule(config.learning_rate)
