"""Fine-tuning by PPO, and by likelihood of relaxed samples: one config, one run folder that describes itself.

A run folder holds config.yaml, reference.pkl (the weights it started from), metrics.csv and TensorBoard events (a row
an epoch), epochs.jsonl (histograms, failures), curves.png, samples/epoch_NNNNNN.csv, checkpoints/<step>/ (to resume)
and published/epoch_NNNNNN.pkl (to use). An interrupted epoch is done again when the run is resumed, and comes out the
same.
"""

import contextlib
import logging
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from crystalformer.checkpoint.pretrained import load_model, training_spacegroups
from crystalformer.checkpoint.publish import publish
from crystalformer.checkpoint.published import load_checkpoint, save_checkpoint
from crystalformer.config import LossConfig, TransformerConfig
from crystalformer.data.batches import make_take, plan_batches
from crystalformer.data.crystals import Crystals
from crystalformer.data.dataset import from_structures, load_crystals
from crystalformer.loss import make_example_loss
from crystalformer.rl.config import PATHS, PpoConfig
from crystalformer.rl.ppo.loss import advantages, make_ppo_loss
from crystalformer.rl.ppo.preflight import check_memory, fingerprints, refuse_if_all_failed, try_reward
from crystalformer.rl.ppo.record import Record, epoch_row
from crystalformer.rl.ppo.rollout import Policy, Rollout, Stopwatch, gather_crystals, roll_out, share_of, take_examples
from crystalformer.rl.reward.base import Reward
from crystalformer.rl.reward.load import open_reward
from crystalformer.symmetry.wyckoff import count_spacegroups, draw_spacegroups
from crystalformer.training import make_validation
from matterform.io.files import existing
from matterform.progress import progress_bar
from matterform.training.batches import PlannedBatch, Take, local_rows
from matterform.training.checkpoint import Checkpoints
from matterform.training.loop import Outcome, Validation, run_validation, stop_agreed, stop_on_signals
from matterform.training.mesh import make_local_mesh, make_mesh, replicate, to_global, together
from matterform.training.metrics import StepMetrics
from matterform.training.optimizers import make_optimizer
from matterform.training.run import check_run, claim_run, open_checkpoints, restore_run
from matterform.training.state import TrainState, init_state
from matterform.training.step import Batch, PartedStep, make_parted_step

logger = logging.getLogger(__name__)

# A resumed run may train longer, report elsewhere, compute otherwise, take smaller steps, and find the same files
# elsewhere; the rest must stay.
FREE = (
    *("run_dir", "epochs", "max_minutes", "keep", "publish_every", "save_every", "wandb_project", "validation"),
    *("part_size", "optimizer.learning_rate", "weights.model", "spacegroups_from"),
    *(f"reward.{name}" for name in ("reward_workers", "property_batch_size", *PATHS)),
    *(f"reward.potential.{name}" for name in ("workers", "threads", "device", "mlff_batch_size", "mlff_path")),
)
GROUPS, CRYSTALS = 1, 2  # folded into the seed, for what is drawn


class TuneResult(NamedTuple):
    """The number of epochs done, and why it ended."""

    epoch: int
    outcome: Outcome


class Progress(NamedTuple):
    """What is known beyond the training state; every checkpoint carries it."""

    epoch: int = 0  # epochs done
    running_mean: float | None = None  # of the rewards


class Tools(NamedTuple):
    """What every epoch works with."""

    config: PpoConfig
    start: Policy  # what the run started from, on this process's devices
    frequencies: Float[np.ndarray, "230"]
    reward: Reward
    ppo: PartedStep
    sft: PartedStep
    mesh: Mesh
    validation: Validation | None


def fine_tune(config: PpoConfig, resume: bool = False) -> TuneResult:
    """Runs until the epochs or the time are over, or it is interrupted.

    Raises:
        ValueError: something is missing or wrong, said before the first epoch as far as it can be known then.
        FloatingPointError: a loss or gradient is not finite; the checkpoint of the epoch before is there.
    """
    check_run(config, resume, FREE)
    share_of(config.batch_size)  # before anything is written
    checkpoint = load_checkpoint(existing(reference_file(config))) if resume else load_model(config.weights)
    network, reference = checkpoint.config, checkpoint.params
    frequencies = spacegroup_frequencies(config, network)
    held_out = None if config.validation is None else load_crystals(config.validation, network)
    mesh = make_mesh()
    optimizer = make_optimizer(config.optimizer, config.epochs * (config.ppo_epochs + config.sft_epochs))
    likelihood_loss = make_example_loss(network, LossConfig())
    with contextlib.ExitStack() as stack:
        reward = stack.enter_context(open_reward(config.reward))
        start = Policy(replicate(make_local_mesh(), reference), network)
        tools = Tools(
            config,
            start,
            frequencies,
            reward,
            make_parted_step(make_ppo_loss(network, config.objective), optimizer, mesh),
            make_parted_step(likelihood_loss, optimizer, mesh),
            mesh,
            None if held_out is None else make_validation(likelihood_loss, held_out, 64 * mesh.size, config.seed, mesh),
        )
        trial = try_reward(reward, start, frequencies, config.seed, config.part_size)
        if config.sft_epochs and trial.local.relaxed is None:
            raise ValueError("sft_epochs needs relaxed samples; give --relax-steps, or sft_epochs 0")
        with together("the check of the memory"):
            check_memory(tools.ppo, start, trial, config.part_size, mesh)
        state = init_state(reference, optimizer, mesh)
        if not resume and jax.process_index() == 0:
            save_checkpoint(reference_file(config), reference, epoch=0, config=network)
        claim_run(config, fingerprints(start, frequencies, config.reward), resume)
        checkpoints = open_checkpoints(stack, config.run_dir / "checkpoints", config.keep)
        progress = Progress()
        if resume and checkpoints.latest_step() is not None:
            state, extra = restore_run(config.run_dir, checkpoints, state)
            progress = Progress(**extra)
        with together("opening the run's files"):
            record = Record(
                config.run_dir, tuple(trial.details), progress.epoch if resume else None, config.wandb_project
            )
        stack.callback(record.close)
        return _run_epochs(tools, state, progress, checkpoints, record)


def reference_file(config: PpoConfig) -> pathlib.Path:
    """Where a run keeps the weights it started from."""
    return config.run_dir / "reference.pkl"


def spacegroup_frequencies(config: PpoConfig, network: TransformerConfig) -> Float[np.ndarray, "230"]:
    """How often each space group is to be drawn; entry 0 is group 1."""
    if config.spacegroup:
        groups = np.asarray(config.spacegroup)
    elif config.spacegroups_from is not None:
        groups = load_crystals(config.spacegroups_from, network).G
    else:
        return training_spacegroups().astype(np.float64)
    return count_spacegroups(groups).astype(np.float64)


def _run_epochs(
    tools: Tools, state: TrainState, progress: Progress, checkpoints: Checkpoints, record: Record
) -> TuneResult:
    config = tools.config
    deadline = math.inf if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    outcome: Outcome = "finished"
    with stop_on_signals() as stop_asked, progress_bar("epochs", config.epochs, progress.epoch) as show:
        while progress.epoch < config.epochs:
            try:
                state, progress, row, rollout = run_epoch(tools, state, progress, stop_asked)
            except Interrupted:
                outcome = "interrupted"
                break
            except ChildProcessError:
                if not stop_asked():
                    raise
                outcome = "interrupted"  # the signal went to the workers as well
                break
            # The checkpoint comes last: whatever was not written before it is done again.
            with together("writing the run's files"):
                record.write(progress.epoch, row, rollout)
                if progress.epoch % config.save_every == 0 or progress.epoch in (1, config.epochs):
                    record.save_samples(progress.epoch, rollout)
                if progress.epoch % config.publish_every == 0 and progress.epoch < config.epochs:
                    publish(config.run_dir, tools.start.config, state, progress.epoch)
                    record.draw()
            checkpoints.save(state, progress._asdict())
            show(progress.epoch)
            late = time.monotonic() >= deadline and progress.epoch < config.epochs
            wish: Outcome | None = "interrupted" if stop_asked() else "time_limit" if late else None
            if stop := stop_agreed(wish, at_meeting=True):
                outcome = stop
                break
    if outcome != "interrupted":
        publish(config.run_dir, tools.start.config, state, progress.epoch)
    record.draw()
    logger.info("%s after epoch %d", outcome, progress.epoch)
    return TuneResult(progress.epoch, outcome)


class Interrupted(Exception):
    """A signal came in the middle of an epoch, which is given up."""


def run_epoch(
    tools: Tools, state: TrainState, progress: Progress, stop_asked: Callable[[], bool]
) -> tuple[TrainState, Progress, dict[str, float], Rollout]:
    """Samples, scores, and takes the steps of one epoch; returns its metrics and samples as well.

    Raises:
        ValueError: no crystal has a reward.
        Interrupted: when asked to stop, between two phases; the state given is lost, but its checkpoint is there.
    """
    config, watch = tools.config, Stopwatch()
    groups = draw_spacegroups(tools.frequencies, config.batch_size, [config.seed, GROUPS, progress.epoch])
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), CRYSTALS), progress.epoch)
    policy = tools.start._replace(params=state.params)
    rollout = roll_out(policy, tools.start.params, tools.reward, key, groups, watch, config.part_size)
    _give_up_if(stop_asked)
    refuse_if_all_failed(tools.reward, rollout, f"crystals of epoch {progress.epoch + 1}")
    advantage, running_mean = advantages(rollout.rewards, rollout.crystals.G, progress.running_mean, config.objective)
    row = epoch_row(rollout, config.objective.beta)
    with watch.phase("update"):
        samples = Part(rollout.crystals, take_examples(rollout, advantage), tools.ppo)
        state, metrics = take_steps(tools, state, samples, config.ppo_epochs, stop_asked)
        row |= metrics
        if config.sft_epochs:
            good = _good_relaxed(tools, rollout)
            steps = config.sft_epochs if len(good.G) else 0
            state, metrics = take_steps(tools, state, Part(good, make_take(good), tools.sft), steps, stop_asked)
            row |= {f"sft_{name}": metrics[name] for name in ("loss", "grad_norm") if name in metrics}
            row["sft_crystals"] = len(good.G)
    done = Progress(progress.epoch + 1, running_mean)
    row |= {"optimizer_steps": int(state.step), "baseline": running_mean}
    with watch.phase("validation"):
        if tools.validation is not None:
            row["validation_loss"] = run_validation(tools.validation, state.params, tools.mesh)["loss"]
    row |= {f"seconds_{name}": seconds for name, seconds in watch.seconds.items()}
    return state, done, row, rollout


class Part(NamedTuple):
    """What some steps of an epoch learn from."""

    crystals: Crystals
    take: Take  # of what the loss needs of each
    step: PartedStep


def take_steps(
    tools: Tools, state: TrainState, part: Part, number: int, stop_asked: Callable[[], bool]
) -> tuple[TrainState, dict[str, float]]:
    """`number` optimiser steps, each on the mean over all crystals; returns the means of their metrics as well.

    Raises:
        FloatingPointError: a loss or gradient is not finite.
    """
    metrics = StepMetrics()
    size = min(tools.config.part_size * tools.mesh.size, _rounded_up(len(part.crystals.G), tools.mesh.size))
    pieces = plan_batches(part.crystals, size, tools.config.seed).epoch(0) if number else []
    for _ in range(number):
        state, step_metrics = _take_step(tools, state, part, pieces)
        metrics.add(int(state.step), step_metrics)
        metrics.settle()
        _give_up_if(stop_asked)
    return state, metrics.take_means() if number else {}


def _take_step(
    tools: Tools, state: TrainState, part: Part, pieces: Sequence[PlannedBatch]
) -> tuple[TrainState, dict[str, Any]]:
    """Computed piece by piece, each of crystals of like length."""
    sums = None
    for planned in pieces:
        rows = local_rows(planned, jax.process_index(), jax.process_count())
        piece = Batch(part.take(rows.indices, rows.length), rows.weight)
        sums = part.step.add(state.params, sums, to_global(tools.mesh, piece))
    assert sums is not None  # there is at least one crystal
    return part.step.finish(state, sums)


def _good_relaxed(tools: Tools, rollout: Rollout) -> Crystals:
    """The relaxed crystals whose reward is good enough, as far as the network can represent them; perhaps none."""
    relaxed = rollout.local.relaxed or []
    wanted = rollout.local.values >= tools.config.sft_min_reward
    structures = [s for s, good in zip(relaxed, wanted, strict=True) if good and s is not None]
    with together("reading relaxed crystals"):
        crystals, _ = from_structures(structures, n_max=tools.start.config.n_max)
    return gather_crystals(crystals, len(relaxed))


def _give_up_if(stop_asked: Callable[[], bool]) -> None:
    if jax.process_count() == 1 and stop_asked():  # several processes stop together, at the end of an epoch
        raise Interrupted


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
