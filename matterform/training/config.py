"""Settings of the optimiser and of the training loop; importing this module loads no JAX."""

import dataclasses
from typing import Any, Literal

from matterform.config import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam or AdamW, with gradient clipping and a schedule.

    With t the number of steps already taken, the learning rate is
    `constant`: learning_rate; `inverse_time`: learning_rate / (1 + decay t);
    `cosine`: from learning_rate at t = 0 to final_fraction of it at t = total_steps, then constant;
    `plateau`: learning_rate, times plateau_factor whenever the loss has not fallen for plateau_patience epochs;
    All are multiplied by (t + 1) / warmup_steps while t < warmup_steps.
    """

    optimizer: Literal["adam", "adamw"] = "adam"  # adam, or adamw (Adam with weight decay)
    learning_rate: float = setting(1e-4, "lr")  # learning rate before the schedule and warm-up
    weight_decay: float = 0.0  # weight decay per unit of the learning rate (adamw only)
    b1: float = 0.9  # decay per step of the running mean of the gradient
    b2: float = 0.999  # decay per step of the running mean of the squared gradient
    adam_eps: float = setting(1e-8, "eps")  # number added to the denominator of the Adam update
    # largest norm of the whole gradient, to which it is scaled down; none: not clipped
    clip_norm: float | None = setting(None, "gradient_clip_val", "clip_grad")
    # largest absolute value of each gradient entry, clipped before clip_norm; none: not clipped
    clip_value: float | None = None
    schedule: Literal["constant", "cosine", "inverse_time", "plateau"] = "constant"  # schedule of the learning rate
    warmup_steps: int = 0  # number of first steps over which the learning rate rises linearly
    warmup_fraction: float = 0.0  # number of warm-up steps as a fraction of total_steps, instead of warmup_steps
    total_steps: int | None = None  # length in steps of the cosine schedule and of warmup_fraction; none: the whole run
    final_fraction: float = 0.0  # last learning rate of the cosine schedule, as a fraction of the first
    decay: float = 0.0  # decay rate per step of the inverse_time schedule
    plateau_factor: float = 0.95  # factor of the learning rate at each plateau of the plateau schedule
    plateau_patience: int = 100  # validations (or epochs, without validation) without a lower loss that make a plateau

    def __post_init__(self) -> None:
        _check_member("optimizer", self.optimizer, ("adam", "adamw"))
        _check_member("schedule", self.schedule, ("constant", "cosine", "inverse_time", "plateau"))
        _check("learning_rate", self.learning_rate, self.learning_rate > 0, "positive")
        _check("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        _check("b1", self.b1, 0 <= self.b1 < 1, "in [0, 1)")
        _check("b2", self.b2, 0 <= self.b2 < 1, "in [0, 1)")
        _check("adam_eps", self.adam_eps, self.adam_eps > 0, "positive")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """When training stops, and how often metrics and checkpoints are written; periods are steps, None is an epoch."""

    epochs: int | None = None  # number of passes over the training data; none: until max_steps or max_minutes
    max_steps: int | None = None  # largest number of steps; none: no limit
    max_minutes: float | None = None  # longest wall-clock time of this process, minutes; none: no limit
    log_every: int | None = None  # steps between rows of metrics; none: one epoch
    validate_every: int | None = None  # steps between validations; none: one epoch
    checkpoint_every: int | None = None  # steps between checkpoints; none: one epoch
    checkpoint_seconds: float = 0.0  # shortest time between checkpoints, seconds
    patience: int | None = None  # validations without a lower loss before training stops early; none: never

    def __post_init__(self) -> None:
        if self.epochs is None and self.max_steps is None and self.max_minutes is None:
            raise ValueError("epochs or max_steps must be given, or max_minutes; found none of them")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes must be positive, or none; got {self.max_minutes}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("max_minutes", "checkpoint_seconds") and value is not None and value < 1:
                raise ValueError(f"{field.name} must be at least 1, or none; got {value}")


def _check(field: str, value: Any, right: bool, expected: str) -> None:
    if not right:
        raise ValueError(f"{field} must be {expected}; got {value}")


def _check_member(field: str, value: str, members: tuple[str, ...]) -> None:
    _check(field, repr(value), value in members, f"one of {', '.join(members)}")
