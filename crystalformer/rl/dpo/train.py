"""Fine-tuning on preference pairs: towards the chosen crystal of each pair, away from the rejected one.

A run folder holds the files of a training run (`crystalformer.training`) and reference.pkl (the initial weights, which
are the reference model), pairs.csv (rows of the pairs, with their reference log-probabilities) and refused.csv (rows
that give no pair).
"""

import logging

import jax
import numpy as np

from crystalformer.checkpoint.pretrained import load_model
from crystalformer.checkpoint.publish import make_publisher, publish_results
from crystalformer.checkpoint.published import load_checkpoint, save_checkpoint
from crystalformer.rl.config import DpoConfig
from crystalformer.rl.dpo.examples import (
    fingerprint,
    load_pairs,
    make_pair_take,
    plan_pairs,
    possible_pairs,
    read_reference,
    reference_log_prob,
    split_pairs,
    write_pairs,
)
from crystalformer.rl.dpo.loss import METRICS, PreferencePair, make_pair_loss
from matterform.io.files import existing
from matterform.training.loop import FitResult, Validation, fit, last_step, metric_columns
from matterform.training.mesh import make_mesh
from matterform.training.optimizers import make_optimizer
from matterform.training.run import check_data, check_run, claim_run, open_run
from matterform.training.state import init_state
from matterform.training.step import make_eval_step, make_train_step

logger = logging.getLogger(__name__)

# Settings that may change when a run is resumed: its length, outputs, and paths of its data and initial weights.
FREE = ("run_dir", "loop", "workers", "keep", "publish_every", "wandb_project", "chosen", "rejected", "scored")
FREE += ("weights.model",)


def train_dpo(config: DpoConfig, resume: bool = False) -> FitResult:
    """Trains on preference pairs until the loop finishes, stops early or is interrupted.

    Args:
        resume: continue the run in `config.run_dir` from its last checkpoint.

    Raises:
        ValueError: the run folder holds another run, there is none to resume, or the pairs do not fit the network.
        FloatingPointError: the loss is not finite.
    """
    check_run(config, resume, FREE)
    mesh = make_mesh()
    _check_batch_size(config, mesh.size)
    start = load_checkpoint(existing(config.run_dir / "reference.pkl")) if resume else load_model(config.weights)
    data = load_pairs(config, start.config)
    if resume:
        reference = read_reference(config.run_dir, data)
    else:
        reference = reference_log_prob(start.params, start.config, data.pairs)
    prints = {"pairs": fingerprint(data.pairs, reference)}
    check_data(config, prints, resume)
    train, validation = split_pairs(possible_pairs(data, reference), config)
    example_loss = make_pair_loss(start.config, config.preference, config.dropout)
    plan = plan_pairs(train, config)
    optimizer = make_optimizer(config.optimizer, last_step(config.loop, plan))
    state = init_state(start.params, optimizer, mesh)
    step_key = jax.random.key(config.seed)
    step = make_train_step(example_loss, optimizer, step_key, mesh, accumulate=config.accumulate)
    held_out = None
    if validation is not None:
        held_out = Validation(
            make_eval_step(example_loss, mesh), plan_pairs(validation, config), make_pair_take(validation)
        )
    if jax.process_index() == 0 and not resume:  # before the claim: a folder that is claimed can be resumed
        save_checkpoint(config.run_dir / "reference.pkl", start.params, config=start.config)
        write_pairs(config.run_dir, data, reference)
    claim_run(config, prints, resume)
    _log_pairs(train, validation, mesh.size)
    with open_run(config, metric_columns(METRICS, validation is not None), state, resume) as run:
        result = fit(
            config.loop,
            step,
            run.state,
            mesh,
            plan,
            make_pair_take(train),
            validation=held_out,
            checkpoints=run.checkpoints,
            best=run.best,
            writer=run.writer,
            resumed=run.resumed,
            on_epoch_end=make_publisher(config.run_dir, start.config, config.publish_every),
        )
        if result.outcome != "interrupted":
            publish_results(config.run_dir, start.config, result, run.best, plan.batches_per_epoch)
    return result


def _check_batch_size(config: DpoConfig, devices: int) -> None:
    """Raises ValueError for a batch size that cannot be split evenly, before anything is written."""
    parts = devices * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size must be a multiple of devices x accumulate = {devices} x {config.accumulate} = {parts}; "
            f"got {config.batch_size}"
        )


def _log_pairs(train: PreferencePair, validation: PreferencePair | None, num_devices: int) -> None:
    held_out = 0 if validation is None else len(validation.logp_reference)
    logger.info("%d pairs to train on, %d held out, %d devices", len(train.logp_reference), held_out, num_devices)
    for name, pairs in (("training", train), ("held-out", validation)):
        if pairs is not None:
            ranked = float(np.mean(pairs.logp_reference[:, 0] > pairs.logp_reference[:, 1]))
            logger.info("before training, the chosen crystal is more likely in %.3f of the %s pairs", ranked, name)
