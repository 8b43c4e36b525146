"""Training of a diffusion model in a run folder that contains all its settings.

`logs/version_N/` holds hparams.yaml, data.json, metrics.csv, TensorBoard events, and checkpoints/best_model and
checkpoints/last_model, from either of which a model can be loaded or training continued.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Int64

from agedi.checkpoint import BEST, LAST, choose_checkpoint, split_checkpoint
from agedi.config import DiffusionConfig
from agedi.data.batches import make_take
from agedi.data.dataset import (
    Dataset,
    all_graphs,
    fingerprint,
    padded_lengths,
    phases,
    with_copies,
)
from agedi.diffusion import Diffusion, complete_config, network, new_model
from agedi.loss import ExampleLoss, make_example_loss, metric_names
from agedi.network.score import Params
from agedi.network.search import make_search
from agedi.noise.kernels import lattice_sums
from agedi.training.config import DataConfig, FitConfig, fit_config, loop_config
from agedi.training.loss_balance import make_balanced_loss, start_means, update_means
from agedi.training.loss_shares import parse_loss_balance
from agedi.training.neighbor_capacity import measure_capacity
from agedi.training.run import FILES, Run, claim_version, load_run, next_version
from agedi.training.sources import read_dataset
from matterform.training import trainer
from matterform.training.batches import BatchPlan, make_batch_plan, switch_plans, with_rows
from matterform.training.loop import FitResult
from matterform.training.run import check_data
from matterform.training.split import split_rows as split_numbers
from matterform.training.state import inference_params
from matterform.training.trainer import HeldOut, Task, check_start

# Settings that may change when a run is resumed: its length, and where it reports to.
FREE_TRAINING = (
    *("loop.epochs", "loop.max_steps", "loop.max_minutes", "run_dir", "log_dir", "name"),
    *("tensorboard", "wandb_project", "progress", "keep"),
)
FREE = ("run_dir", "data.train", *(f"training.{name}" for name in FREE_TRAINING))


class TrainResult(NamedTuple):
    """Result of training."""

    diffusion: Diffusion  # the best on the validation set, or else the last
    run_dir: pathlib.Path
    fit: FitResult


class Split(NamedTuple):
    """Rows of a data set to train on and to validate on."""

    train: Int64[np.ndarray, " n"]  # rows of structures that are not repeated
    validation: Int64[np.ndarray, " m"]


def train(
    diffusion: Diffusion,
    dataset: Dataset,
    config: FitConfig | None = None,
    *,
    source: DataConfig | None = None,
    **options: Any,
) -> TrainResult:
    """Trains a model, new or loaded, in a new run folder.

    Args:
        config: settings of training.
        source: files that the data come from, noted in hparams.yaml so that `resume` finds them again.
        options: fields of `FitConfig` that replace those of `config`.

    Raises:
        ValueError: an option is invalid, or the data do not fit the model.
        FloatingPointError: the loss is not finite.
    """
    training = fit_config(options, config)
    config_of_model = complete_config(diffusion.config, dataset, training.reference_energies)
    split = split_rows(dataset, training)
    params = first_params(diffusion, config_of_model, training.seed)
    run = Run(
        run_dir=training.run_dir or next_version(training.runs),
        training=training,
        data=source or DataConfig(),
        diffusion=config_of_model,
        n_training_data=len(split.train),
        n_validation_data=len(split.validation),
        n_parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    )
    check_start(run, False, (), settings=training, files=FILES)
    return _train(run, dataset, split, params, False)


def resume(
    run_dir: str | pathlib.Path, dataset: Dataset | None = None, config: FitConfig | None = None, **options: Any
) -> TrainResult:
    """Continues a run in its folder, to the same weights as without the interruption.

    Args:
        run_dir: the run folder, or its checkpoints/best_model to continue from that checkpoint.
        dataset: the same data as before; by default read again from the files of the run.
        config: settings of training; by default those of the run.
        options: fields of `FitConfig` that replace those of `config`: the length of the training, and where it
            reports to.

    Raises:
        FileNotFoundError: the run folder does not exist.
        ValueError: the folder is not a run, a setting would change that may not, or the data differ.
    """
    folder, named = split_checkpoint(run_dir)
    before = load_run(folder)
    run = dataclasses.replace(before, run_dir=folder, training=fit_config(options, config or before.training))
    check_start(run, True, FREE, settings=run.training, files=FILES)
    kind = choose_checkpoint(folder, LAST if named is None else named).name
    if dataset is None:
        dataset = read_dataset(run.data, run.diffusion)
    params = new_model(run.diffusion, run.training.seed).params  # for their shapes
    return _train(run, dataset, split_rows(dataset, run.training), params, "best" if kind == BEST else True)


def split_rows(dataset: Dataset, training: FitConfig) -> Split:
    """Which structures to train on and which to hold out; the same whenever a run is resumed.

    Structures for the force field only are never held out.

    Raises:
        ValueError: train_fraction leaves no structure to train on.
    """
    diffused, others = np.flatnonzero(dataset.diffuse), np.flatnonzero(~dataset.diffuse)
    numbers = split_numbers(len(diffused), training.validation_fraction, training.seed, "structures")
    kept = None if training.train_fraction is None else round(training.train_fraction * len(diffused))
    chosen = diffused[numbers.train[:kept]]
    if not len(chosen):
        raise ValueError(f"train_fraction {training.train_fraction} of {len(diffused)} structures is none")
    return Split(np.sort(np.concatenate([chosen, others])), np.sort(diffused[numbers.held_out]))


def first_params(diffusion: Diffusion, config: DiffusionConfig, seed: int) -> Params:
    """The model's parameters; initial ones where the data changed their shape."""
    if jax.tree.map(np.shape, network(config).params) == jax.tree.map(np.shape, diffusion.params):
        return diffusion.params
    fresh = new_model(config, seed).params
    if jax.tree.structure(fresh) != jax.tree.structure(diffusion.params):
        return fresh
    return jax.tree.map(lambda new, old: old if new.shape == old.shape else new, fresh, diffusion.params)


def _train(
    run: Run, dataset: Dataset, split: Split, params: Params, resume_from: Literal["best"] | bool
) -> TrainResult:
    check_data(run.run_dir, _fingerprints(dataset, split), bool(resume_from), _sources(run))
    task = make_task(run, dataset, split, params)
    if not resume_from:
        run = claim_version(run)
    trained = trainer.train(
        *(run, task, resume_from),
        settings=dataclasses.replace(run.training, loop=loop_config(run.training, task.plan.batches_per_epoch)),
        files=FILES,
        tensorboard=run.training.tensorboard,
        show_progress=run.training.progress,
    )
    model = network(run.diffusion)._replace(params=inference_params(trained.best))
    return TrainResult(Diffusion(run.diffusion, model), run.run_dir, trained.fit)


def make_task(run: Run, dataset: Dataset, split: Split, params: Params) -> Task:
    """The losses, initial weights and batches of a run.

    Raises:
        ValueError: loss_balance cannot be read.
    """
    training, take = run.training, make_take(dataset)
    loss_of = make_losses(run.diffusion, dataset, training)
    example_loss, balance = loss_of(split.train), parse_loss_balance(training.loss_balance)
    held_out = None
    if len(split.validation):
        plan = batches_of(split.validation, padded_lengths(dataset), training)
        held_out = HeldOut(loss_of(split.validation), plan, take)
    return Task(
        example_loss=example_loss if balance is None else make_balanced_loss(example_loss, balance),
        params=params,
        key=jax.random.key(training.seed),
        plan=training_plan(dataset, split.train, training),
        take=take,
        held_out=held_out,
        metrics=metric_names(run.diffusion),
        fingerprints=_fingerprints(dataset, split),
        sources=_sources(run),
        sizes=f"{run.n_training_data} structures to train on, {run.n_validation_data} held out",
        remember=None if balance is None else update_means,
        memory=None if balance is None else start_means(),
    )


def _fingerprints(dataset: Dataset, split: Split) -> dict[str, Any]:
    return {"data": fingerprint(dataset), "train": len(split.train), "validation": len(split.validation)}


def _sources(run: Run) -> str:
    return "what was given" if run.data.train is None else str(run.data.train)


def training_plan(dataset: Dataset, originals: Int64[np.ndarray, " n"], training: FitConfig) -> BatchPlan:
    """The batches of some originals, and from later epochs on of their repeated cells too."""
    padded = padded_lengths(dataset)
    return switch_plans(
        {
            first: batches_of(with_copies(dataset, originals, repeats), padded, training)
            for first, repeats in phases(dataset).items()
        }
    )


def batches_of(rows: Int64[np.ndarray, " n"], padded: Int64[np.ndarray, " m"], training: FitConfig) -> BatchPlan:
    """The batches of some rows of a data set; `padded` is the padded length of every row of the data set."""
    own = padded[rows]
    plan = make_batch_plan(own, training.batch_size, np.unique(own).tolist(), training.seed)
    return with_rows(plan, rows)


def make_losses(
    config: DiffusionConfig, dataset: Dataset, training: FitConfig
) -> Callable[[Int64[np.ndarray, " n"]], ExampleLoss]:
    """Returns `loss_of(rows)`: the loss of an example among these rows, with neighbor slots measured on all rows."""
    graphs = all_graphs(dataset)
    cells, pbcs = np.stack([graph.cell for graph in graphs]), np.stack([graph.pbc for graph in graphs])
    sums = lattice_sums(cells, pbcs)
    neighbors = measure_capacity(config, graphs, padded_lengths(dataset), sums, training.seed)
    search = make_search(config.model.cutoff, neighbors.capacity, neighbors.images)

    def loss_of(rows: Int64[np.ndarray, " n"]) -> ExampleLoss:
        diffused = float(np.mean(dataset.diffuse[rows]))
        return make_example_loss(config, network(config), search, sums, training.regressor_loss, diffused)

    return loss_of
