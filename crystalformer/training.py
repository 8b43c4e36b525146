"""Training of CrystalFormer: one config, one run folder that describes itself.

A run folder holds config.yaml, metrics.csv, TensorBoard events, checkpoints/<step>/ (to resume), best/<step>/ and
published/epoch_NNNNNN.pkl (to use).
"""

import logging
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from crystalformer.checkpoint.pretrained import load_model
from crystalformer.checkpoint.publish import make_publisher, publish_results
from crystalformer.config import TrainConfig
from crystalformer.data.batches import make_take, plan_batches
from crystalformer.data.crystals import Crystals
from crystalformer.data.dataset import load_crystals
from crystalformer.loss import make_example_loss
from crystalformer.network.parameters import init_params
from matterform.config import to_dict
from matterform.training.loop import FitResult, Validation, fit, last_step, metric_columns
from matterform.training.mesh import make_mesh
from matterform.training.optimizers import make_optimizer
from matterform.training.run import check_run, claim_run, open_run
from matterform.training.state import TrainState, init_state
from matterform.training.step import ExampleLoss, make_eval_step, make_train_step

logger = logging.getLogger(__name__)

PARTS = ("loss_w", "loss_xyz", "loss_a", "loss_l")
# A resumed run may train longer, report elsewhere, read faster, find its data elsewhere; the rest must stay.
FREE = ("run_dir", "loop", "workers", "keep", "publish_every", "wandb_project", "train", "validation")
VALIDATION_KEY = 1  # folded into the seed where a validation set is split off


class Split(NamedTuple):
    """Training crystals, and held-out ones (None without validation)."""

    train: Crystals
    validation: Crystals | None


def train(config: TrainConfig, resume: bool = False) -> FitResult:
    """Trains until the loop ends, is interrupted or stops early; returns its result.

    Raises:
        ValueError: if the run folder holds another run, nothing to resume, or the data do not fit the network.
        FloatingPointError: if the loss is not finite.
    """
    check_run(config, resume, FREE)
    split = load_split(config)
    mesh = make_mesh()
    example_loss = make_example_loss(config.transformer, config.loss)
    plan = plan_batches(split.train, config.batch_size, config.seed)
    optimizer = make_optimizer(config.optimizer, last_step(config.loop, plan))
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    params = _first_params(config, init_key, resume)
    state = init_state(params, optimizer, mesh, ema=config.ema_decay is not None)
    step = make_train_step(
        example_loss, optimizer, step_key, mesh, accumulate=config.accumulate, ema_decay=config.ema_decay
    )
    validation = None
    if split.validation is not None:
        evaluate = make_eval_step(example_loss, mesh)
        validation = Validation(
            evaluate, plan_batches(split.validation, config.batch_size, config.seed), make_take(split.validation)
        )
    claim_run(config, fingerprints(split), resume)
    columns = metric_columns(PARTS, validation is not None)
    with open_run(config, columns, state, resume) as run:
        _log_sizes(split, run.state, mesh.size)
        result = fit(
            config.loop,
            step,
            run.state,
            mesh,
            plan,
            make_take(split.train),
            validation=validation,
            checkpoints=run.checkpoints,
            best=run.best,
            writer=run.writer,
            resumed=run.resumed,
            on_epoch_end=make_publisher(config.run_dir, config.transformer, config.publish_every),
        )
        if result.outcome != "interrupted":
            publish_results(config.run_dir, config.transformer, result, run.best, plan.batches_per_epoch)
    return result


def load_split(config: TrainConfig) -> Split:
    """The training and validation crystals of a run; the same whenever it is resumed."""
    crystals = load_crystals(config.train, config.transformer, config.workers)
    if config.validation is not None:
        return Split(crystals, load_crystals(config.validation, config.transformer, config.workers))
    held_out = round(config.validation_fraction * len(crystals.G))
    if held_out == 0:
        return Split(crystals, None)
    if held_out == len(crystals.G):
        raise ValueError(
            f"validation_fraction {config.validation_fraction} leaves none of {held_out} crystals to train on"
        )
    order = np.random.default_rng([config.seed, VALIDATION_KEY]).permutation(len(crystals.G))
    return Split(
        *(jax.tree.map(lambda x, rows=rows: x[rows], crystals) for rows in (order[held_out:], order[:held_out]))
    )


def fingerprints(split: Split) -> dict[str, dict[str, int] | None]:
    """What a resumed run must find again."""
    return {name: None if part is None else fingerprint(part) for name, part in split._asdict().items()}


def fingerprint(crystals: Crystals) -> dict[str, int]:
    """Number of crystals, and a checksum of their groups, elements and letters in order."""
    checksum = 0
    for field in (crystals.G, crystals.A, crystals.W):
        checksum = zlib.crc32(np.asarray(field, np.int32).tobytes(), checksum)
    return {"crystals": len(crystals.G), "crc32": checksum}


def _log_sizes(split: Split, state: TrainState, num_devices: int) -> None:
    held_out = 0 if split.validation is None else len(split.validation.G)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    logger.info(
        "%d crystals to train on, %d held out, %d parameters, %d devices",
        *(len(split.train.G), held_out, num_parameters, num_devices),
    )


def _first_params(config: TrainConfig, key: PRNGKeyArray, resume: bool) -> Any:
    """Fresh or published weights; a resumed run has its own, and needs these only for their shapes."""
    if config.model is None or resume:
        return init_params(key, config.transformer)
    return load_model(config.model, **to_dict(config.transformer)).params


def make_validation(
    example_loss: ExampleLoss, crystals: Crystals, batch_size: int, seed: int, mesh: Mesh
) -> Validation:
    """Held-out crystals and their compiled evaluation."""
    return Validation(make_eval_step(example_loss, mesh), plan_batches(crystals, batch_size, seed), make_take(crystals))
