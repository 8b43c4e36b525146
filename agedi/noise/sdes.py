"""Noise schedules and the two families of forward processes of positions.

The kernel of a process is x_t = mean(t) x_0 + std(t) w with w ~ N(0, 1). Samplers work with y = x / mean, which has the
noise level nu = std / mean and no drift for every process (Karras et al. 2022, section 2). See docs/formulas/agedi.md,
section 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from agedi.config import DiffusionConfig

Time = Float[Array, "*s"]
TimeFunction = Callable[[Time], Time]
SMALLEST_TIME = 1e-3  # diffusion time at which the network's level is -1


class Schedule(NamedTuple):
    """An increasing function f on [0, 1] from `minimum` = f(0)."""

    minimum: float
    increment: TimeFunction  # f(t) - f(0), without cancellation at small t
    derivative: TimeFunction
    integral: TimeFunction  # from 0 to t


class Sde(NamedTuple):
    """A forward process dx = drift(t) x dt + sqrt(diffusion(t)) dw on t in [0, 1], and its kernel."""

    mean: TimeFunction
    std: TimeFunction  # 0 at t = 0
    drift: TimeFunction  # factor of x
    diffusion: TimeFunction  # g squared
    mean_of_noise: TimeFunction  # mean(t) where std(t) / mean(t) is the argument


def make_schedule(name: str, minimum: float, maximum: float) -> Schedule:
    """A `linear`, `exponential` or `cosine` schedule from `minimum` to `maximum`.

    Raises:
        ValueError: `name` is none of these.
    """
    span = maximum - minimum
    if name == "linear":
        return Schedule(minimum, lambda t: span * t, lambda t: span + 0 * t, lambda t: minimum * t + span * t**2 / 2)
    if name == "exponential":
        rate = float(np.log(maximum / minimum))
        return Schedule(
            minimum,
            lambda t: minimum * jnp.expm1(rate * t),
            lambda t: minimum * rate * jnp.exp(rate * t),
            lambda t: minimum * jnp.expm1(rate * t) / rate,
        )
    if name == "cosine":
        return Schedule(
            minimum,
            lambda t: span * jnp.sin(jnp.pi * t / 2) ** 2,
            lambda t: span * jnp.pi / 2 * jnp.sin(jnp.pi * t),
            lambda t: minimum * t + span * (t / 2 - jnp.sin(jnp.pi * t) / (2 * jnp.pi)),
        )
    raise ValueError(f"schedule must be one of linear, exponential, cosine; got {name!r}")


def make_variance_exploding(schedule: Schedule) -> Sde:
    """Song et al. (2021), eq. 9: variance f(t)^2 - f(0)^2 for a schedule f of standard deviations (Å)."""

    def value(t: Time) -> Time:
        return schedule.minimum + schedule.increment(t)

    return Sde(
        mean=jnp.ones_like,
        std=lambda t: jnp.sqrt(schedule.increment(t) * (schedule.increment(t) + 2 * schedule.minimum)),
        drift=jnp.zeros_like,
        diffusion=lambda t: 2 * value(t) * schedule.derivative(t),
        mean_of_noise=jnp.ones_like,
    )


def make_variance_preserving(schedule: Schedule) -> Sde:
    """Song et al. (2021), eq. 11: dx = -f(t) x / 2 dt + sqrt(f(t)) dw for a schedule f of rates."""

    def value(t: Time) -> Time:
        return schedule.minimum + schedule.increment(t)

    return Sde(
        mean=lambda t: jnp.exp(-schedule.integral(t) / 2),
        std=lambda t: jnp.sqrt(-jnp.expm1(-schedule.integral(t))),
        drift=lambda t: -value(t) / 2,
        diffusion=value,
        mean_of_noise=lambda noise: 1 / jnp.sqrt(1 + noise**2),
    )


def make_sde(config: DiffusionConfig) -> Sde:
    """The forward process of positions in a config.

    Raises:
        ValueError: sigma_max is not set.
    """
    if config.sde == "vp":
        return make_variance_preserving(make_schedule(config.schedule or "cosine", config.beta_min, config.beta_max))
    if config.sigma_max is None:
        raise ValueError(
            "sigma_max is not set and no training data have set it: train the model, or give sigma_max in angstrom "
            "(half of the largest cell spacing makes the end of the noise uniform)"
        )
    return make_variance_exploding(make_schedule(config.schedule or "exponential", config.sigma_min, config.sigma_max))


def noise_level(sde: Sde, t: Time) -> Time:
    """The noise level nu = std / mean at diffusion time t (eq. 2 of docs/formulas/agedi.md)."""
    return sde.std(t) / sde.mean(t)


def make_level(sde: Sde) -> TimeFunction:
    """Returns the network's input for a noise level nu: its log, scaled to about [-1, 1] (eq. 4)."""
    # In jax, because the ends are float32 functions; they fold to constants when traced.
    low, high = (jnp.log(noise_level(sde, jnp.float32(t))) for t in (SMALLEST_TIME, 1.0))

    def level(noise: Time) -> Time:
        # The clip lies below every level that a sampler meets; it keeps the log finite at 0.
        return 2 * (jnp.log(jnp.maximum(noise, 1e-9)) - low) / (high - low) - 1

    return lambda noise: jnp.maximum(level(noise), -2.0)
