"""Training of AtomFormer, from random or published weights.

A run folder contains config.yaml, metrics.csv, TensorBoard events, checkpoints/<step>/ (to resume), best/<step>/ and
model/ (config.json and model.safetensors): the best model on the validation set, or the last without validation.
"""

import dataclasses
import logging
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Int64, PRNGKeyArray

from atomformer.checkpoint.published import Pretrained, from_pretrained, save_pretrained
from atomformer.config import ENERGY_HEADS, FORCE_HEADS, SIZES, AtomformerConfig, EnergyScale, TrainConfig
from atomformer.data.dataset import Dataset, atom_counts, fingerprint
from atomformer.data.examples import make_take, stack_labels
from atomformer.data.references import fit_energy_scale, isolated_energies
from atomformer.data.split import Split, load_split
from atomformer.loss import average_counts, make_example_loss, metric_names, required_heads, requirements
from atomformer.network.parameters import Params, init_params
from atomformer.network.transformer import make_apply
from atomformer.prediction.metrics import ATOM3D
from matterform.training import trainer
from matterform.training.batches import BatchPlan, bucket_lengths, make_batch_plan
from matterform.training.loop import FitResult
from matterform.training.optimizers import make_optimizer
from matterform.training.run import check_data
from matterform.training.state import inference_params
from matterform.training.step import ExampleLoss
from matterform.training.trainer import HeldOut, Task, check_start

logger = logging.getLogger(__name__)

# Settings that may change when a run is resumed: its length, outputs, and paths of its data and initial weights.
FREE = ("run_dir", "loop", "keep", "wandb_project", "train", "validation", "model")
ENCODER_SIZES = ("vocab_size", "dim", "num_heads", "depth", "mlp_ratio", "k")


def train(config: TrainConfig, resume: bool = False) -> FitResult:
    """Trains until the loop ends, is interrupted or stops early; returns the result of the loop.

    Raises:
        ValueError: the run folder holds another run, there is nothing to resume, or the data do not fit the network.
        FloatingPointError: the loss is not finite.
    """
    check_start(config, resume, FREE)
    split = load_split(config)
    check_data(config.run_dir, fingerprints(split), resume, str(config.train))
    start = None if config.model is None else from_pretrained(config.model)
    model = resolve_model(config, split.train, None if start is None else start.config)
    trained = trainer.train(config, make_task(config, split, model, start), resume)
    if trained.fit.outcome != "interrupted":
        publish(config.run_dir / "model", Pretrained(inference_params(trained.best), model, make_apply(model)))
    return trained.fit


def make_task(config: TrainConfig, split: Split, model: AtomformerConfig, start: Pretrained | None) -> Task:
    """The losses, initial weights and batches of a run.

    Raises:
        ValueError: the data set lacks what the loss needs.
    """
    columns = label_columns(config)
    required = requirements(config.loss, columns)
    take_stored = make_take(split.train, model, required)  # first, because it checks the data

    def example_loss(dataset: Dataset) -> ExampleLoss:
        return make_example_loss(model, config.loss, average_counts(dataset, config.loss, columns))

    held_out, number_held_out = None, 0
    if split.validation is not None:
        counts, number_held_out = atom_counts(split.validation), len(atom_counts(split.validation))
        take = make_take(split.validation, model, required)
        held_out = HeldOut(example_loss(split.validation), _plan(counts, config), take)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    return Task(
        example_loss=example_loss(split.train),
        params=first_params(init_key, model, start),
        key=step_key,
        plan=_plan(atom_counts(split.train)[split.rows], config),
        take=lambda indices, length: take_stored(split.rows[indices], length),
        held_out=held_out,
        metrics=metric_names(model, config.loss),
        fingerprints=fingerprints(split),
        sources=str(config.train),
        sizes=f"{len(split.rows)} structures to train on, {number_held_out} held out",
        make_optimizer=lambda _, run_steps: make_model_optimizer(config, run_steps),
    )


def fingerprints(split: Split) -> dict[str, Any]:
    """Fingerprints of the data, which must be the same when the run is resumed."""
    validation = None if split.validation is None else fingerprint(split.validation)
    return {"train": fingerprint(split.train), "rows": len(split.rows), "validation": validation}


def publish(folder: pathlib.Path, model: Pretrained) -> None:
    """Writes the model, replacing an earlier one of the same run.

    Raises:
        ValueError: as `save_pretrained`.
    """
    if jax.process_index() == 0:
        model = model._replace(params=jax.tree.map(np.asarray, model.params))
        fresh = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        save_pretrained(fresh, model)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


def label_columns(config: TrainConfig) -> tuple[str, ...]:
    """Names of the properties that the loss term `labels` trains."""
    return config.label_columns or ("labels",)


def resolve_model(config: TrainConfig, dataset: Dataset, start: AtomformerConfig | None) -> AtomformerConfig:
    """The network of a run: its sizes, its heads, and the origins and units of energies and labels.

    Raises:
        ValueError: the data lack a label, or settings contradict each other.
    """
    model = config.network
    if start is not None:
        asked = SIZES[config.size] if config.size is not None else {}
        if differing := [name for name, value in asked.items() if getattr(start, name) != value]:
            found = ", ".join(f"{name}={getattr(start, name)}" for name in differing)
            raise ValueError(f"size {config.size} differs from {config.model}, which has {found}; leave it out")
        if start.periodic != model.periodic:
            logger.warning("%s has periodic=%s, this run %s", config.model, start.periodic, model.periodic)
        model = _replaced(model, {name: getattr(start, name) for name in ENCODER_SIZES}, str(config.model))
    elif config.size is not None:
        model = _replaced(model, SIZES[config.size], f"size {config.size}")
    heads = required_heads(config.loss, model.conservative)
    changes: dict[str, Any] = {"heads": heads}
    if (
        start is not None
        and model.energy == EnergyScale()
        and set(heads) & set(start.heads) & {*ENERGY_HEADS, *FORCE_HEADS}
    ):
        # The heads of the initial model were trained with its scale.
        model = dataclasses.replace(model, energy=start.energy)
    if config.loss.labels:
        changes |= _label_settings(config, dataset)
    energy = next((name for name in ENERGY_HEADS if getattr(config.loss, name)), None)
    if config.fit_references or config.isolated_atoms is not None:
        if energy is None:
            raise ValueError(f"references need one of the loss terms {', '.join(ENERGY_HEADS)}; give it a weight")
        isolated = None if config.isolated_atoms is None else isolated_energies(config.isolated_atoms)
        changes["energy"] = fit_energy_scale(dataset, energy, model.energy.per_atom, isolated)
    return _replaced(model, changes, "what the loss terms and the data ask for", free=("energy",))


def _replaced(
    model: AtomformerConfig, values: dict[str, Any], origin: str, free: tuple[str, ...] = ()
) -> AtomformerConfig:
    """The config with `values`, which must not contradict the user's settings (except `free` fields).

    Raises:
        ValueError: a field has another value than its default, and not the one that it would get.
    """
    default = AtomformerConfig()
    for name, value in values.items():
        given = getattr(model, name)
        if name not in free and given not in (getattr(default, name), value):
            raise ValueError(f"{name} is given as {given}, but {origin} makes it {value}; leave it out")
    return dataclasses.replace(model, **values)


def _label_settings(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    columns = label_columns(config)
    if missing := [name for name in columns if name not in dataset.structures]:
        known = ", ".join(sorted(dataset.structures))
        raise ValueError(f"{config.train} has no column {missing[0]!r} to learn; found {known}")
    labels = stack_labels(dataset, columns)
    if (unknown := np.isnan(labels).all(axis=0)).any():
        name = _label_names(dataset, columns)[int(np.argmax(unknown))]
        raise ValueError(f"{config.train}: no structure has a value of {name}; leave that column out")
    problem, num_labels = config.network.problem, labels.shape[1]
    if config.task is not None:
        task = ATOM3D[config.task]
        problem, num_labels = task.problem, task.num_labels
        if problem != "multiclass" and labels.shape[1] != num_labels:
            found = f"{', '.join(columns)} hold {labels.shape[1]}"
            raise ValueError(f"task {config.task} learns {num_labels} labels per structure; the label columns {found}")
    elif problem == "multiclass":
        num_labels = max(config.network.num_labels, int(np.nanmax(labels)) + 1)
    settings: dict[str, Any] = {"problem": problem, "num_labels": num_labels}
    settings["label_names"] = _label_names(dataset, columns)
    if problem == "multiclass":  # the number of columns is checked with the data
        settings["label_names"] = tuple(f"{columns[0]}[{i}]" for i in range(num_labels))
    if problem == "regression" and config.standardize:
        scale = np.nanstd(labels, axis=0)
        settings["label_mean"] = tuple(np.nanmean(labels, axis=0).tolist())
        settings["label_scale"] = tuple(np.where(scale > 0, scale, 1.0).tolist())
    return settings


def _label_names(dataset: Dataset, columns: tuple[str, ...]) -> tuple[str, ...]:
    names = []
    for column in columns:
        shape = dataset.structures[column].shape[1:]
        names += [f"{column}[{i}]" for i in range(shape[0])] if shape else [column]
    return tuple(names)


def first_params(key: PRNGKeyArray, model: AtomformerConfig, start: Pretrained | None) -> Params:
    """Random parameters, replaced by those of `start` for the encoder and for heads of the same name and shape."""
    params = init_params(key, model)
    if start is None:
        return params
    heads = dict(params["heads"])
    for name, leaves in start.params["heads"].items():
        if name in heads and jax.tree.map(np.shape, heads[name]) == jax.tree.map(np.shape, leaves):
            heads[name] = leaves
    return {"encoder": start.params["encoder"], "heads": heads}


def make_model_optimizer(config: TrainConfig, run_steps: int | None) -> optax.GradientTransformation:
    """The optimiser of the trained parameters: not the table of element features, nor those that the config freezes."""

    def labels(params: Params) -> Any:
        def label(path: Any, _: Any) -> str:
            names = [entry.key for entry in path]
            frozen = "metadata" in names or (config.freeze == "encoder" and names[0] == "encoder")
            return "frozen" if frozen else "trained"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition(
        {"trained": make_optimizer(config.optimizer, run_steps), "frozen": optax.set_to_zero()}, labels
    )


def _plan(counts: Int64[np.ndarray, " m"], config: TrainConfig) -> BatchPlan:
    return make_batch_plan(counts, config.batch_size, bucket_lengths(counts), config.seed)
