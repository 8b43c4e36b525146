"""One epoch of PPO: a rollout, its advantages, the optimiser steps, and validation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from crystalformer.data.batches import make_take, plan_batches
from crystalformer.data.convert import from_structures
from crystalformer.data.crystals import Crystals
from crystalformer.rl.config import PpoConfig
from crystalformer.rl.ppo.loss import advantages
from crystalformer.rl.ppo.preflight import check_not_all_failed
from crystalformer.rl.ppo.record import epoch_row
from crystalformer.rl.ppo.rollout import Policy, Rollout, Stopwatch, gather_crystals, make_example_take, roll_out
from crystalformer.rl.reward.base import Reward
from crystalformer.symmetry.wyckoff import draw_spacegroups
from matterform.training.batches import PlannedBatch, Take, local_rows
from matterform.training.mesh import to_global, together
from matterform.training.metrics import StepMetrics
from matterform.training.state import TrainState
from matterform.training.step import Batch, PartedStep
from matterform.training.validation import Validation, run_validation

SPACEGROUP_KEY, SAMPLE_KEY = 1, 2  # folded into the seed


class EpochInterrupted(Exception):
    """A signal arrived during an epoch, which is abandoned; its metrics and weights are lost."""


class PpoProgress(NamedTuple):
    """Progress of a run beyond the training state; saved with every checkpoint."""

    epoch: int = 0  # finished epochs
    running_mean: float | None = None  # of the rewards; None before the first epoch


class PpoContext(NamedTuple):
    """Constants of a run: settings, initial policy, reward, and compiled steps."""

    config: PpoConfig
    initial: Policy  # initial weights, which are the reference model, on the devices of this process
    frequencies: Float[np.ndarray, "230"]  # of space groups
    reward: Reward
    ppo_step: PartedStep
    sft_step: PartedStep
    mesh: Mesh
    validation: Validation | None


class EpochResult(NamedTuple):
    """State after an epoch, with the metrics and samples of the epoch."""

    state: TrainState
    progress: PpoProgress
    metrics: dict[str, float]
    rollout: Rollout


class UpdateData(NamedTuple):
    """Crystals to take optimiser steps on, and the step to take."""

    crystals: Crystals
    take: Take  # gathers the examples of the loss
    step: PartedStep


def run_epoch(
    context: PpoContext, state: TrainState, progress: PpoProgress, stop_requested: Callable[[], bool]
) -> EpochResult:
    """Samples and scores crystals, then takes the optimiser steps of the epoch; consumes `state`.

    Raises:
        ValueError: no crystal has a reward.
        FloatingPointError: a loss or gradient is not finite.
        EpochInterrupted: a stop was requested; the state is lost, but the last checkpoint remains.
    """
    config, watch = context.config, Stopwatch()
    rollout = _sample_epoch(context, state, progress.epoch, watch)
    _raise_if_interrupted(stop_requested)
    check_not_all_failed(context.reward, rollout, f"crystals of epoch {progress.epoch + 1}")
    advantage, running_mean = advantages(rollout.rewards, rollout.crystals.G, progress.running_mean, config.objective)
    metrics = epoch_row(rollout, config.objective.beta)
    with watch.phase("update"):
        samples = UpdateData(rollout.crystals, make_example_take(rollout, advantage), context.ppo_step)
        state, step_metrics = take_steps(context, state, samples, config.ppo_epochs, stop_requested)
        metrics |= step_metrics
        if config.sft_epochs:
            state, step_metrics = _take_supervised_steps(context, state, rollout, stop_requested)
            metrics |= step_metrics
    metrics |= {"optimizer_steps": int(state.step), "baseline": running_mean}
    with watch.phase("validation"):
        if context.validation is not None:
            metrics["validation_loss"] = run_validation(context.validation, state.params, context.mesh)["loss"]
    metrics |= {f"seconds_{name}": seconds for name, seconds in watch.seconds.items()}
    return EpochResult(state, PpoProgress(progress.epoch + 1, running_mean), metrics, rollout)


def take_steps(
    context: PpoContext, state: TrainState, data: UpdateData, number: int, stop_requested: Callable[[], bool]
) -> tuple[TrainState, dict[str, float]]:
    """Takes `number` optimiser steps, each on the mean loss over all crystals; returns the mean of their metrics.

    Raises:
        FloatingPointError: a loss or gradient is not finite.
        EpochInterrupted: a stop was requested.
    """
    metrics = StepMetrics()
    size = min(context.config.part_size * context.mesh.size, _round_up(len(data.crystals.G), context.mesh.size))
    parts = plan_batches(data.crystals, size, context.config.seed).epoch(0) if number else []
    for _ in range(number):
        state, step_metrics = _take_step(context.mesh, state, data, parts)
        metrics.add(int(state.step), step_metrics)
        metrics.settle()
        _raise_if_interrupted(stop_requested)
    return state, metrics.take_means() if number else {}


def _sample_epoch(context: PpoContext, state: TrainState, epoch: int, watch: Stopwatch) -> Rollout:
    config = context.config
    groups = draw_spacegroups(context.frequencies, config.batch_size, [config.seed, SPACEGROUP_KEY, epoch])
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), SAMPLE_KEY), epoch)
    policy = context.initial._replace(params=state.params)
    return roll_out(policy, context.initial.params, context.reward, key, groups, watch, config.part_size)


def _take_supervised_steps(
    context: PpoContext, state: TrainState, rollout: Rollout, stop_requested: Callable[[], bool]
) -> tuple[TrainState, dict[str, float]]:
    """Steps on the likelihood of relaxed samples with a good reward; no step if there are none."""
    good = _good_relaxed(context, rollout)
    number = context.config.sft_epochs if len(good.G) else 0
    data = UpdateData(good, make_take(good), context.sft_step)
    state, metrics = take_steps(context, state, data, number, stop_requested)
    row = {f"sft_{name}": metrics[name] for name in ("loss", "grad_norm") if name in metrics}
    return state, row | {"sft_crystals": len(good.G)}


def _take_step(
    mesh: Mesh, state: TrainState, data: UpdateData, parts: Sequence[PlannedBatch]
) -> tuple[TrainState, dict[str, Any]]:
    """One optimiser step, whose gradient is summed over parts of crystals of similar length."""
    sums = None
    for part in parts:
        rows = local_rows(part, jax.process_index(), jax.process_count())
        batch = Batch(data.take(rows.indices, rows.length), rows.weight)
        sums = data.step.add(state.params, sums, to_global(mesh, batch))
    assert sums is not None  # there is at least one crystal
    return data.step.finish(state, sums)


def _good_relaxed(context: PpoContext, rollout: Rollout) -> Crystals:
    """Relaxed crystals with a reward of at least `sft_min_reward` that the network can represent; may be empty."""
    relaxed = rollout.local.relaxed or []
    good = rollout.local.values >= context.config.sft_min_reward
    structures = [s for s, is_good in zip(relaxed, good, strict=True) if is_good and s is not None]
    with together("reading relaxed crystals"):
        crystals, _ = from_structures(structures, n_max=context.initial.config.n_max)
    return gather_crystals(crystals, len(relaxed))


def _raise_if_interrupted(stop_requested: Callable[[], bool]) -> None:
    if jax.process_count() == 1 and stop_requested():  # several processes stop together, at the end of an epoch
        raise EpochInterrupted


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
