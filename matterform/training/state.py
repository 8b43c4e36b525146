"""The state that a training step changes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from matterform.training.mesh import replicate


class TrainState(NamedTuple):
    """Everything that a step changes; a checkpoint contains exactly this."""

    step: Int[Array, ""]  # optimiser steps taken
    params: Any
    opt_state: Any
    ema: Any  # exponential moving average of the parameters; None if not used
    memory: Any = None  # values kept by the loss from step to step, e.g. running means


def init_state(
    params: Any, optimizer: optax.GradientTransformation, mesh: Mesh, *, ema: bool = False, memory: Any = None
) -> TrainState:
    """The state before the first step, on every device; the moving average starts with the parameters."""
    opt_state = jax.jit(optimizer.init)(params)  # one program instead of one for every shape
    state = TrainState(jnp.zeros((), jnp.int32), params, opt_state, params if ema else None, memory)
    return replicate(mesh, state)


def inference_params(state: TrainState) -> Any:
    """The parameters for validation and publishing: the moving average if there is one."""
    return state.params if state.ema is None else state.ema
