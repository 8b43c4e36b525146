"""Optimisers and learning-rate schedules from a config."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

# Learning rate as a function of the number of steps already taken.
Schedule = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam or AdamW, with gradient clipping and a schedule.

    With t the number of steps already taken, the learning rate is
    `constant`: learning_rate; `inverse_time`: learning_rate / (1 + decay t);
    `cosine`: from learning_rate at t = 0 to final_fraction of it at t = total_steps, and so on after;
    `plateau`: learning_rate, times plateau_factor whenever the loss has not fallen for plateau_patience epochs;
    each times (t + 1) / warmup_steps while t < warmup_steps.
    """

    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-4
    weight_decay: float = 0.0  # decoupled (adamw only)
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = None  # largest norm of the whole gradient
    clip_value: float | None = None  # largest absolute value of each entry, applied before clip_norm
    schedule: Literal["constant", "cosine", "inverse_time", "plateau"] = "constant"
    warmup_steps: int = 0
    warmup_fraction: float = 0.0  # of total_steps, in place of warmup_steps
    total_steps: int | None = None  # of the cosine and of warmup_fraction; None is the whole run
    final_fraction: float = 0.0  # cosine only
    decay: float = 0.0  # inverse_time only, per step
    plateau_factor: float = 0.95  # plateau only, as the next one
    plateau_patience: int = 100  # validations, or epochs where there are none

    def __post_init__(self) -> None:
        _check_member("optimizer", self.optimizer, ("adam", "adamw"))
        _check_member("schedule", self.schedule, ("constant", "cosine", "inverse_time", "plateau"))
        _check("learning_rate", self.learning_rate, self.learning_rate > 0, "positive")
        _check("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        _check("b1", self.b1, 0 <= self.b1 < 1, "in [0, 1)")
        _check("b2", self.b2, 0 <= self.b2 < 1, "in [0, 1)")
        _check("eps", self.eps, self.eps > 0, "positive")
        _check("clip_norm", self.clip_norm, self.clip_norm is None or self.clip_norm > 0, "positive, or none")
        _check("clip_value", self.clip_value, self.clip_value is None or self.clip_value > 0, "positive, or none")
        _check("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "at least 0")
        _check("warmup_fraction", self.warmup_fraction, 0 <= self.warmup_fraction < 1, "in [0, 1)")
        _check("final_fraction", self.final_fraction, 0 <= self.final_fraction <= 1, "in [0, 1]")
        _check("decay", self.decay, self.decay >= 0, "at least 0")
        _check("plateau_factor", self.plateau_factor, 0 < self.plateau_factor < 1, "in (0, 1)")
        _check("plateau_patience", self.plateau_patience, self.plateau_patience >= 1, "at least 1")
        if self.warmup_steps and self.warmup_fraction:
            raise ValueError(f"give warmup_steps or warmup_fraction; got {self.warmup_steps}, {self.warmup_fraction}")
        if self.optimizer == "adam" and self.weight_decay:
            raise ValueError(f"weight_decay needs optimizer='adamw'; got {self.weight_decay} with 'adam'")
        _check(
            "total_steps", self.total_steps, self.total_steps is None or self.total_steps >= 1, "at least 1, or none"
        )


def make_schedule(config: OptimizerConfig) -> Schedule:
    """The learning rate after a number of steps; see `OptimizerConfig` for the formulas."""
    rate = _make_rate(config)
    if config.warmup_steps == 0:
        return rate
    return lambda count: rate(count) * jnp.minimum(1.0, (count + 1) / config.warmup_steps)


def make_optimizer(config: OptimizerConfig, run_steps: int | None = None) -> optax.GradientTransformation:
    """Clipping, then Adam or AdamW at the scheduled rate; `run_steps` are the total steps where the config has none."""
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
        adam = optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay)
    else:
        adam = optax.adam(schedule, config.b1, config.b2, config.eps)
    transforms.append(adam)
    if config.schedule == "plateau":
        transforms.append(scale_by_rate())
    return optax.chain(*transforms)


class RateScale(NamedTuple):
    """A factor of the learning rate that no step changes, only the loop; part of the optimiser's state."""

    scale: Float[Array, ""]


def scale_by_rate() -> optax.GradientTransformation:
    """Multiplies updates by the state's scale, 1 until `with_rate_scale` sets another."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda change: state.scale.astype(change.dtype) * change, updates), state

    return optax.GradientTransformation(lambda params: RateScale(jnp.ones(())), update)


def with_rate_scale(opt_state: Any, scale: Any) -> Any:
    """The optimiser's state with another factor of the learning rate, wherever it stands in it."""

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


def _check(field: str, value: Any, right: bool, expected: str) -> None:
    if not right:
        raise ValueError(f"{field} must be {expected}; got {value}")


def _check_member(field: str, value: str, members: tuple[str, ...]) -> None:
    _check(field, repr(value), value in members, f"one of {', '.join(members)}")
