"""Fine-tuning on preference pairs: towards the chosen crystal of each pair, away from the rejected one.

A run folder holds the files of a training run (`crystalformer.training`) and reference.pkl (the initial weights, which
are the reference model), pairs.csv (rows of the pairs, with their reference log-probabilities) and refused.csv (rows
that give no pair).
"""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from crystalformer.checkpoint.pretrained import load_model
from crystalformer.checkpoint.published import Checkpoint, load_checkpoint, save_checkpoint
from crystalformer.rl.config import DpoConfig
from crystalformer.rl.dpo.examples import (
    fingerprint,
    load_pairs,
    make_pair_take,
    pair_sources,
    plan_pairs,
    possible_pairs,
    read_reference,
    reference_log_prob,
    split_pairs,
    write_pairs,
)
from crystalformer.rl.dpo.loss import METRICS, PreferencePair, make_pair_loss
from crystalformer.training import train_and_publish
from matterform.io.files import existing
from matterform.training.loop import FitResult
from matterform.training.run import check_data
from matterform.training.trainer import HeldOut, Task, check_start

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
    check_start(config, resume, FREE)
    start = load_checkpoint(existing(config.run_dir / "reference.pkl")) if resume else load_model(config.weights)
    data = load_pairs(config, start.config)
    if resume:
        reference = read_reference(config.run_dir, data)
    else:
        reference = reference_log_prob(start.params, start.config, data.pairs)
    prints = {"pairs": fingerprint(data.pairs, reference)}
    check_data(config.run_dir, prints, resume, pair_sources(config))
    task = make_task(config, start, possible_pairs(data, reference), prints)
    if jax.process_index() == 0 and not resume:  # before the claim: a folder that is claimed can be resumed
        save_checkpoint(config.run_dir / "reference.pkl", start.params, config=start.config)
        write_pairs(config.run_dir, data, reference)
    return train_and_publish(config, start.config, task, resume)


def make_task(config: DpoConfig, start: Checkpoint, pairs: PreferencePair, prints: Mapping[str, Any]) -> Task:
    """The loss, initial weights and batches of a run; `prints` are the fingerprints of its data."""
    train, validation = split_pairs(pairs, config)
    example_loss = make_pair_loss(start.config, config.preference, config.dropout)
    _log_ranked(train, validation)
    held_out, number_held_out = None, 0
    if validation is not None:
        held_out = HeldOut(example_loss, plan_pairs(validation, config), make_pair_take(validation))
        number_held_out = len(validation.logp_reference)
    return Task(
        example_loss=example_loss,
        params=start.params,
        key=jax.random.key(config.seed),
        plan=plan_pairs(train, config),
        take=make_pair_take(train),
        held_out=held_out,
        metrics=METRICS,
        fingerprints=prints,
        sources=pair_sources(config),
        sizes=f"{len(train.logp_reference)} pairs to train on, {number_held_out} held out",
    )


def _log_ranked(train: PreferencePair, validation: PreferencePair | None) -> None:
    for name, pairs in (("training", train), ("held-out", validation)):
        if pairs is not None:
            ranked = float(np.mean(pairs.logp_reference[:, 0] > pairs.logp_reference[:, 1]))
            logger.info("before training, the chosen crystal is more likely in %.3f of the %s pairs", ranked, name)
