"""Fine-tuning by PPO and, optionally, by the likelihood of relaxed samples (docs/formulas/reinforcement.md).

A run folder holds config.yaml, reference.pkl (the initial weights, which are the reference model), metrics.csv and
TensorBoard events (one row per epoch), epochs.jsonl (histograms, failures), curves.png, samples/epoch_NNNNNN.csv,
checkpoints/<step>/ (to resume) and published/epoch_NNNNNN.pkl (to use). A resumed run repeats an interrupted epoch,
with the same result.
"""

import contextlib
import logging
import math
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float

from crystalformer.checkpoint.pretrained import load_model, training_spacegroups
from crystalformer.checkpoint.publish import publish
from crystalformer.checkpoint.published import Checkpoint, load_checkpoint, save_checkpoint
from crystalformer.config import LossConfig, TransformerConfig
from crystalformer.data.dataset import load_crystals
from crystalformer.loss import make_example_loss
from crystalformer.rl.config import PATHS, PpoConfig
from crystalformer.rl.ppo.epoch import EpochInterrupted, PpoContext, PpoProgress, run_epoch
from crystalformer.rl.ppo.loss import make_ppo_loss
from crystalformer.rl.ppo.preflight import check_memory, fingerprints, try_reward
from crystalformer.rl.ppo.record import EpochWriter
from crystalformer.rl.ppo.rollout import Policy, Rollout, samples_per_process
from crystalformer.rl.reward.load import open_reward
from crystalformer.symmetry.wyckoff import count_spacegroups
from crystalformer.training import make_validation
from matterform.io.files import existing
from matterform.progress import progress_bar
from matterform.training.checkpoint import Checkpoints
from matterform.training.mesh import make_local_mesh, make_mesh, replicate, together
from matterform.training.metrics import check_wandb
from matterform.training.optimizers import make_optimizer
from matterform.training.run import check_run, claim_run, open_checkpoints, restore_run
from matterform.training.state import TrainState, init_state
from matterform.training.step import make_parted_step
from matterform.training.stopping import Outcome, stop_agreed, stop_on_signals

logger = logging.getLogger(__name__)

VALIDATION_BATCH = 64  # crystals per device

# Settings that may change when a run is resumed: its length, outputs, hardware, learning rate, and paths of its files.
FREE = (
    *("run_dir", "epochs", "max_minutes", "keep", "publish_every", "save_every", "wandb_project", "validation"),
    *("part_size", "optimizer.learning_rate", "weights.model", "spacegroups_from"),
    *(f"reward.{name}" for name in ("reward_workers", "property_batch_size", *PATHS)),
    *(f"reward.potential.{name}" for name in ("workers", "threads", "device", "mlff_batch_size", "mlff_path")),
)


class PpoResult(NamedTuple):
    """Number of finished epochs, and why the run ended."""

    epoch: int
    outcome: Outcome


def train_ppo(config: PpoConfig, resume: bool = False) -> PpoResult:
    """Fine-tunes until all epochs are done, the time limit is reached, or the run is interrupted.

    Args:
        resume: continue the run in `config.run_dir` from its last checkpoint.

    Raises:
        ValueError: the settings, files or reward are wrong, or the run folder holds another run; before the first epoch
            where possible.
        FloatingPointError: a loss or gradient is not finite; the checkpoint of the previous epoch remains.
    """
    check_wandb(config.wandb_project)
    check_run(config, resume, FREE)
    samples_per_process(config.batch_size)  # raises before anything is written
    checkpoint = load_checkpoint(existing(reference_file(config))) if resume else load_model(config.weights)
    optimizer = make_optimizer(config.optimizer, config.epochs * (config.ppo_epochs + config.sft_epochs))
    with contextlib.ExitStack() as stack:
        context = _open_context(stack, config, checkpoint, optimizer)
        trial = _run_preflight(context)
        state = init_state(checkpoint.params, optimizer, context.mesh)
        if not resume and jax.process_index() == 0:
            save_checkpoint(reference_file(config), checkpoint.params, epoch=0, config=checkpoint.config)
        claim_run(config, fingerprints(context.initial, context.frequencies, config.reward), resume, sources(config))
        checkpoints = open_checkpoints(stack, config.run_dir / "checkpoints", config.keep)
        progress = PpoProgress()
        if resume and checkpoints.latest_step() is not None:
            state, extra = restore_run(config.run_dir, checkpoints, state)
            progress = PpoProgress(**extra)
        with together("opening the run's files"):
            finished = progress.epoch if resume else None
            writer = EpochWriter(config.run_dir, tuple(trial.details), finished, config.wandb_project)
        stack.callback(writer.close)
        return _run_epochs(context, state, progress, checkpoints, writer)


def sources(config: PpoConfig) -> str:
    """Where the data come from, for messages."""
    files = (getattr(config.reward, name) for name in PATHS)
    paths = (config.spacegroups_from, *files, config.reward.potential.mlff_path)
    return ", ".join(str(path) for path in paths if path is not None) or str(reference_file(config))


def reference_file(config: PpoConfig) -> pathlib.Path:
    """The file with the initial weights of a run."""
    return config.run_dir / "reference.pkl"


def spacegroup_frequencies(config: PpoConfig, network: TransformerConfig) -> Float[np.ndarray, "230"]:
    """Relative frequency of each space group among the samples; entry 0 is group 1.

    Raises:
        ValueError: `spacegroups_from` holds no crystal, or crystals that the network cannot represent.
    """
    if config.spacegroup:
        groups = np.asarray(config.spacegroup)
    elif config.spacegroups_from is not None:
        groups = load_crystals(config.spacegroups_from, network).G
    else:
        return training_spacegroups().astype(np.float64)
    return count_spacegroups(groups).astype(np.float64)


def _open_context(
    stack: contextlib.ExitStack, config: PpoConfig, checkpoint: Checkpoint, optimizer: optax.GradientTransformation
) -> PpoContext:
    """Reads the data, opens the reward for the duration of `stack`, and makes the steps; compiles nothing."""
    network = checkpoint.config
    frequencies = spacegroup_frequencies(config, network)
    held_out = None if config.validation is None else load_crystals(config.validation, network)
    mesh = make_mesh()
    likelihood_loss = make_example_loss(network, LossConfig())
    reward = stack.enter_context(open_reward(config.reward))
    validation = None
    if held_out is not None:
        validation = make_validation(likelihood_loss, held_out, VALIDATION_BATCH * mesh.size, config.seed, mesh)
    return PpoContext(
        config=config,
        initial=Policy(replicate(make_local_mesh(), checkpoint.params), network),
        frequencies=frequencies,
        reward=reward,
        ppo_step=make_parted_step(make_ppo_loss(network, config.objective), optimizer, mesh),
        sft_step=make_parted_step(likelihood_loss, optimizer, mesh),
        mesh=mesh,
        validation=validation,
    )


def _run_preflight(context: PpoContext) -> Rollout:
    """Tries the reward and the memory; returns the trial samples.

    Raises:
        ValueError: the reward fails, lacks relaxed structures for the supervised steps, or the memory does not suffice.
    """
    config = context.config
    trial = try_reward(context.reward, context.initial, context.frequencies, config.seed, config.part_size)
    if config.sft_epochs and trial.local.relaxed is None:
        raise ValueError("sft_epochs needs relaxed samples; give --relax-steps, or sft_epochs 0")
    with together("the check of the memory"):
        check_memory(context.ppo_step, context.initial, trial, config.part_size, context.mesh)
    return trial


def _run_epochs(
    context: PpoContext, state: TrainState, progress: PpoProgress, checkpoints: Checkpoints, writer: EpochWriter
) -> PpoResult:
    """Runs the remaining epochs; writes the files and the checkpoint of each, and publishes the final weights."""
    config, network = context.config, context.initial.config
    deadline = math.inf if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    outcome: Outcome = "finished"
    with stop_on_signals() as stop_requested, progress_bar("epochs", config.epochs, progress.epoch) as show:
        while progress.epoch < config.epochs:
            try:
                state, progress, row, rollout = run_epoch(context, state, progress, stop_requested)
            except EpochInterrupted:
                outcome = "interrupted"
                break
            except ChildProcessError:
                if not stop_requested():
                    raise
                outcome = "interrupted"  # the signal ended the worker processes as well
                break
            # The checkpoint comes last: a resumed run repeats whatever was not written before it.
            with together("writing the run's files"):
                writer.write(progress.epoch, row, rollout)
                if progress.epoch % config.save_every == 0 or progress.epoch in (1, config.epochs):
                    writer.save_samples(progress.epoch, rollout)
                if progress.epoch % config.publish_every == 0 and progress.epoch < config.epochs:
                    publish(config.run_dir, network, state, progress.epoch)
                    writer.draw()
            checkpoints.save(state, progress._asdict())
            show(progress.epoch)
            late = time.monotonic() >= deadline and progress.epoch < config.epochs
            requested: Outcome | None = "interrupted" if stop_requested() else "time_limit" if late else None
            if agreed := stop_agreed(requested, at_meeting=True):
                outcome = agreed
                break
    if outcome != "interrupted":
        publish(config.run_dir, network, state, progress.epoch)
    writer.draw()
    logger.info("%s after epoch %d", outcome, progress.epoch)
    return PpoResult(progress.epoch, outcome)
