"""One optimiser step and one evaluation over the mesh, from a loss written for one example."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from matterform.training.mesh import DATA_AXIS, replicated, split_by_rows
from matterform.training.state import TrainState

Metrics = dict[str, Float[Array, ""]]
# `example_loss(params, key, example) -> (loss, metrics)` for ONE example; a key of None means deterministic.
ExampleLoss = Callable[[Any, PRNGKeyArray | None, Any], tuple[Float[Array, ""], Metrics]]
# `example_loss(params, key, example, memory)`, for a loss that also depends on values kept from earlier steps.
RememberingLoss = Callable[[Any, PRNGKeyArray | None, Any, Any], tuple[Float[Array, ""], Metrics]]


class Batch(NamedTuple):
    """A batch of examples, and their weights in every mean over the batch.

    A weight of 0 marks a row that only fills the batch. It is computed like all others, so it must contain a valid
    example: NaN times 0 is NaN.
    """

    examples: Any  # pytree of arrays with leading axis b
    weight: Float[np.ndarray | Array, " b"]


class Sums(NamedTuple):
    """Sums over examples, multiplied by their weights."""

    metrics: Metrics  # with `loss` and `weight`
    gradients: Any


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Evaluate = Callable[[Any, Batch], Metrics]


def make_train_step(
    example_loss: ExampleLoss | RememberingLoss,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    mesh: Mesh,
    *,
    accumulate: int = 1,
    ema_decay: float | None = None,
    remember: Callable[[Any, Metrics], Any] | None = None,
) -> TrainStep:
    """Returns the compiled `step(state, batch) -> (state, metrics)`; the given state is consumed.

    The loss of a batch is the weighted mean over its examples. Sums run over devices and over `accumulate`
    successive parts of each device's rows, and are divided once at the end; the key of an example comes from the
    step and the example's row in the whole batch. So neither the number of devices nor `accumulate` changes the
    result beyond rounding.

    The metrics are the weighted means of the loss and of the metrics of `example_loss`, `grad_norm` (before
    clipping) and `nonfinite`, 1.0 if the loss or the gradient is not finite. They stay on the devices.
    `ema_decay` is per step, `warmed_up`, and needs a state made with `ema=True`. `remember(memory, means)` gives the
    state's memory after a step from that before it and the batch's metrics; with it, `example_loss` takes the memory
    last.

    Raises:
        ValueError: `accumulate` is below 1.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1; got {accumulate}")
    summed = _make_summed(example_loss, mesh, accumulate, remember is not None)
    update = _make_update(optimizer, ema_decay, remember)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_rows(batch, mesh, accumulate)
        sums = summed(state.params, state.memory, jax.random.fold_in(key, state.step), batch)
        return update(state, sums)

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(replicated(mesh), split_by_rows(mesh)),
        out_shardings=replicated(mesh),
    )


class PartedStep(NamedTuple):
    """A step whose batch is computed in parts, because they differ in shape or do not fit in memory together.

    `add(params, sums, part)` adds a part to the sums (initially None); `finish(state, sums)` takes the step, and
    consumes the state. `temporary_bytes(params, part)` compiles `add` and returns the memory in bytes that it needs on
    a device in addition to its arguments.
    """

    add: Callable[[Any, Sums | None, Batch], Sums]
    finish: Callable[[TrainState, Sums], tuple[TrainState, Metrics]]
    temporary_bytes: Callable[[Any, Batch], int]


def make_parted_step(
    example_loss: ExampleLoss,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema_decay: float | None = None,
) -> PartedStep:
    """`make_train_step` in parts, for a loss without randomness (its key is None); the metrics are the same.

    Raises:
        ValueError: `ema_decay` is out of range; later, while tracing, the rows of a part cannot be split evenly.
    """

    def loss_without_key(params: Any, key: PRNGKeyArray | None, example: Any) -> tuple[Float[Array, ""], Metrics]:
        return example_loss(params, None, example)

    summed = _make_summed(loss_without_key, mesh, 1, False)
    everywhere, by_rows = replicated(mesh), split_by_rows(mesh)

    def gradient(params: Any, part: Batch) -> Sums:
        _check_rows(part, mesh, 1)
        return summed(params, None, jax.random.key(0), part)

    gradient = jax.jit(gradient, in_shardings=(everywhere, by_rows), out_shardings=everywhere)
    plus = jax.jit(lambda sums, more: jax.tree.map(jnp.add, sums, more), donate_argnums=0)

    def add(params: Any, sums: Sums | None, part: Batch) -> Sums:
        more = gradient(params, part)
        return more if sums is None else plus(sums, more)

    def temporary_bytes(params: Any, part: Batch) -> int:
        return gradient.lower(params, part).compile().memory_analysis().temp_size_in_bytes

    return PartedStep(add, jax.jit(_make_update(optimizer, ema_decay, None), donate_argnums=0), temporary_bytes)


def _make_summed(
    example_loss: ExampleLoss | RememberingLoss, mesh: Mesh, accumulate: int, remembers: bool
) -> Callable[[Any, Any, PRNGKeyArray, Batch], Sums]:
    """`summed(params, memory, step_key, batch)`: sums over the mesh of the metrics and of the gradient."""

    def device_sums(params: Any, memory: Any, step_key: PRNGKeyArray, batch: Batch) -> Sums:
        rows = batch.weight.shape[0]
        row = jax.lax.axis_index(DATA_AXIS) * rows + jnp.arange(rows)
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), (batch, row))

        def part_sums(part: tuple[Batch, Int[Array, " b"]]) -> Sums:
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, part[1])

            def loss_sum(params: Any) -> tuple[Float[Array, ""], Metrics]:
                sums = _weighted_sums(example_loss, params, keys, part[0], (memory,) if remembers else ())
                return sums["loss"], sums

            gradients, sums = jax.grad(loss_sum, has_aux=True)(params)
            return Sums(sums, gradients)

        return jax.lax.psum(_sum_over(part_sums, parts), DATA_AXIS)

    # check_vma=False: gradients inside are those of one device, summed only by the explicit psum above, and a model may
    # scan from constants as if there were no mesh.
    everywhere, by_rows = PartitionSpec(), PartitionSpec(DATA_AXIS)
    return jax.shard_map(
        device_sums,
        mesh=mesh,
        in_specs=(everywhere, everywhere, everywhere, by_rows),
        out_specs=everywhere,
        check_vma=False,
    )


def _make_update(
    optimizer: optax.GradientTransformation,
    ema_decay: float | None,
    remember: Callable[[Any, Metrics], Any] | None,
) -> Callable[[TrainState, Sums], tuple[TrainState, Metrics]]:
    """A function that computes the next state and the metrics from the sums over the batch."""
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must lie in [0, 1); got {ema_decay}")

    def update(state: TrainState, sums: Sums) -> tuple[TrainState, Metrics]:
        if (state.ema is None) != (ema_decay is None):
            raise ValueError("ema_decay and the state's moving average go together: give both or neither")
        means = _divide_by_weight(sums.metrics)
        gradients = jax.tree.map(lambda g: g / sums.metrics["weight"].astype(g.dtype), sums.gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None if ema_decay is None else _moved_average(state.ema, params, 1 - warmed_up(ema_decay, state.step))
        grad_norm = optax.global_norm(gradients)
        nonfinite = ~(jnp.isfinite(means["loss"]) & jnp.isfinite(grad_norm))
        metrics = {**means, "grad_norm": grad_norm, "nonfinite": nonfinite.astype(jnp.float32)}
        memory = state.memory if remember is None else remember(state.memory, means)
        return TrainState(state.step + 1, params, opt_state, ema, memory), metrics

    return update


def make_eval_step(example_loss: ExampleLoss, mesh: Mesh) -> Evaluate:
    """Returns the compiled `evaluate(params, batch)`, without randomness: sums of weighted metrics and of `weight`.

    `mean_metrics` computes means from the sums of several batches.

    Raises:
        ValueError: while tracing, if the rows of a batch cannot be split evenly over the devices.
    """

    def device_sums(params: Any, batch: Batch) -> Metrics:
        return jax.lax.psum(_weighted_sums(example_loss, params, None, batch), DATA_AXIS)

    everywhere, by_rows = PartitionSpec(), PartitionSpec(DATA_AXIS)
    summed = jax.shard_map(
        device_sums, mesh=mesh, in_specs=(everywhere, by_rows), out_specs=everywhere, check_vma=False
    )

    def evaluate(params: Any, batch: Batch) -> Metrics:
        _check_rows(batch, mesh, 1)
        return summed(params, batch)

    return jax.jit(evaluate, in_shardings=(replicated(mesh), split_by_rows(mesh)), out_shardings=replicated(mesh))


def mean_metrics(sums: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Weighted means over all batches, from their sums; computed on the host in double precision.

    Raises:
        ValueError: the total weight is zero.
    """
    totals: dict[str, float] = {}
    for batch_sums in sums:
        for name, value in jax.device_get(dict(batch_sums)).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    if not totals.get("weight"):
        raise ValueError("no mean of nothing: expected at least one batch with weight; found none")
    return _divide_by_weight(totals)


def warmed_up(ema_decay: float, steps: Int[Array, ""]) -> Float[Array, ""]:
    """The decay of a moving average after t `steps`: at most (1 + t) / (10 + t), as in TensorFlow.

    In a short run, the average then covers about the last tenth of the steps rather than the random start.
    """
    return jnp.minimum(ema_decay, (1 + steps) / (10 + steps))


def _moved_average(average: Any, params: Any, share: Float[Array, ""]) -> Any:
    """Moves the average towards `params`; if a parameter never changes, neither does its average."""
    return jax.tree.map(lambda old, new: old + share * (new - old), average, params)


def _divide_by_weight(sums: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value / sums["weight"] for name, value in sums.items() if name != "weight"}


def _weighted_sums(
    example_loss: Callable[..., tuple[Float[Array, ""], Metrics]],
    params: Any,
    keys: Any,
    batch: Batch,
    memory: tuple[Any, ...] = (),
) -> Metrics:
    """Sums of weight times each metric over the rows of `batch`, and of the weight itself."""
    in_axes = (None, None if keys is None else 0, 0, *(None for _ in memory))
    losses, metrics = jax.vmap(example_loss, in_axes=in_axes)(params, keys, batch.examples, *memory)
    sums = {name: jnp.sum(value * batch.weight) for name, value in {**metrics, "loss": losses}.items()}
    return {**sums, "weight": jnp.sum(batch.weight)}


def _sum_over(function: Callable[[Any], Any], parts: Any) -> Any:
    """Sum of `function(part)` over the leading axis of `parts`, one part in memory at a time."""
    if len(jax.tree.leaves(parts)[0]) == 1:  # avoids a second copy of the gradient
        return function(jax.tree.map(lambda x: x[0], parts))
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, function(part)), None), zeros, parts)
    return total


def _check_rows(batch: Batch, mesh: Mesh, accumulate: int) -> None:
    """Raises ValueError, while tracing, for a batch that cannot be split evenly."""
    rows, parts = batch.weight.shape[0], mesh.size * accumulate
    if rows % parts:
        raise ValueError(
            f"batch_size must be a multiple of devices x accumulate = {mesh.size} x {accumulate} = {parts}; got {rows}"
        )
