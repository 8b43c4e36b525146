"""Training of CrystalFormer.

A run folder contains config.yaml, metrics.csv, TensorBoard events, checkpoints/<step>/ (to resume), best/<step>/ and
published/epoch_NNNNNN.pkl (weights to use).
"""

import dataclasses
import pathlib
import zlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from crystalformer.checkpoint.pretrained import load_model
from crystalformer.checkpoint.publish import make_publisher, publish_results
from crystalformer.config import TrainConfig, TransformerConfig
from crystalformer.data.batches import make_take, plan_batches
from crystalformer.data.crystals import Crystals
from crystalformer.data.dataset import load_crystals
from crystalformer.loss import make_example_loss
from crystalformer.network.parameters import init_params
from matterform.config import to_dict
from matterform.training import trainer
from matterform.training.batches import BatchPlan, Take
from matterform.training.loop import FitResult
from matterform.training.split import split_rows
from matterform.training.step import ExampleLoss, make_eval_step
from matterform.training.trainer import HeldOut, RunConfig, Task, check_start
from matterform.training.validation import Validation

PARTS = ("loss_w", "loss_xyz", "loss_a", "loss_l")
# Settings that may change when a run is resumed: its length, outputs, number of workers, and paths of its data.
FREE = ("run_dir", "loop", "workers", "keep", "publish_every", "wandb_project", "train", "validation")


class Split(NamedTuple):
    """Training crystals and held-out crystals (None without validation)."""

    train: Crystals
    validation: Crystals | None


def train(config: TrainConfig, resume: bool = False) -> FitResult:
    """Trains until the loop ends, is interrupted or stops early; returns its result.

    Raises:
        ValueError: the run folder holds another run, there is nothing to resume, or the data do not fit the network.
        FloatingPointError: the loss is not finite.
    """
    check_start(config, resume, FREE)
    split = load_split(config)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    example_loss = make_example_loss(config.transformer, config.loss)
    plan, take = _batches(split.train, config)
    held_out = None if split.validation is None else HeldOut(example_loss, *_batches(split.validation, config))
    task = Task(
        example_loss=example_loss,
        params=_first_params(config, init_key, resume),
        key=step_key,
        plan=plan,
        take=take,
        held_out=held_out,
        metrics=PARTS,
        fingerprints=fingerprints(split),
        sources=str(config.train),
        sizes=f"{len(split.train.G)} crystals to train on, {_count(split.validation)} held out",
    )
    return train_and_publish(config, config.transformer, task, resume)


@runtime_checkable
class PublishingConfig(RunConfig, Protocol):
    """Settings of a run that publishes weights in its folder."""

    @property
    def run_dir(self) -> pathlib.Path: ...
    @property
    def publish_every(self) -> int: ...


def train_and_publish(config: PublishingConfig, network: TransformerConfig, task: Task, resume: bool) -> FitResult:
    """Trains; publishes weights every `config.publish_every` epochs and, unless interrupted, at the end."""
    publisher = make_publisher(config.run_dir, network, config.publish_every)
    trained = trainer.train(config, dataclasses.replace(task, on_epoch_end=publisher), resume)
    if trained.fit.outcome != "interrupted":
        publish_results(config.run_dir, network, trained.fit.state, trained.best, task.plan.batches_per_epoch)
    return trained.fit


def load_split(config: TrainConfig) -> Split:
    """Reads the training and validation crystals of a run; the same settings always give the same split.

    Raises:
        ValueError: the data do not fit the network, or no crystal is left to train on.
    """
    crystals = load_crystals(config.train, config.transformer, config.workers)
    if config.validation is not None:
        return Split(crystals, load_crystals(config.validation, config.transformer, config.workers))
    rows = split_rows(len(crystals.G), config.validation_fraction, config.seed, "crystals")
    if not len(rows.held_out):
        return Split(crystals, None)
    return Split(*(jax.tree.map(lambda x, part=part: x[part], crystals) for part in rows))


def fingerprints(split: Split) -> dict[str, dict[str, int] | None]:
    """Fingerprints of the data, which must be the same when the run is resumed."""
    return {name: None if part is None else fingerprint(part) for name, part in split._asdict().items()}


def fingerprint(crystals: Crystals) -> dict[str, int]:
    """Number of crystals, and a checksum of their groups, elements and letters in order."""
    checksum = 0
    for field in (crystals.G, crystals.A, crystals.W):
        checksum = zlib.crc32(np.asarray(field, np.int32).tobytes(), checksum)
    return {"crystals": len(crystals.G), "crc32": checksum}


def _batches(crystals: Crystals, config: TrainConfig) -> tuple[BatchPlan, Take]:
    return plan_batches(crystals, config.batch_size, config.seed), make_take(crystals)


def _count(crystals: Crystals | None) -> int:
    return 0 if crystals is None else len(crystals.G)


def _first_params(config: TrainConfig, key: PRNGKeyArray, resume: bool) -> Any:
    """Initial weights, random or loaded; only their shapes matter if the run is resumed."""
    if config.model is None or resume:
        return init_params(key, config.transformer)
    return load_model(config.model, **to_dict(config.transformer)).params


def make_validation(
    example_loss: ExampleLoss, crystals: Crystals, batch_size: int, seed: int, mesh: Mesh
) -> Validation:
    """Held-out crystals, with the compiled evaluation."""
    return Validation(make_eval_step(example_loss, mesh), plan_batches(crystals, batch_size, seed), make_take(crystals))
