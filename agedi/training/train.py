"""Training of a diffusion model; a run's folder describes itself.

`logs/version_N/` holds hparams.yaml, data.json, metrics.csv, TensorBoard events, and checkpoints/best_model and
checkpoints/last_model, from either of which a model can be loaded and training can go on.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Int64

from agedi.checkpoint import BEST, LAST, choose_checkpoint, split_checkpoint
from agedi.config import DiffusionConfig, DiffusionOptions
from agedi.data.batches import make_take
from agedi.data.config import DatasetConfig
from agedi.data.dataset import (
    Dataset,
    all_graphs,
    create_dataset,
    fingerprint,
    padded_lengths,
    phases,
    with_copies,
)
from agedi.diffusion import Diffusion, complete_config, create_diffusion, network, new_model
from agedi.loss import ExampleLoss, RegressorLoss, make_example_loss, metric_names
from agedi.network.score import Params
from agedi.network.search import make_search
from agedi.noise.kernels import lattice_sums
from agedi.training.config import (
    DataConfig,
    FitConfig,
    TrainConfig,
    fit_config,
    given_names,
    loop_config,
    optimizer_config,
    parse_loss_balance,
    train_config,
)
from agedi.training.loss_balance import make_balanced_loss, start_means, update_means
from agedi.training.neighbor_capacity import measure_capacity
from agedi.training.run import FILES, Run, claim_version, load_run, next_version
from matterform.config import load_values
from matterform.io.files import existing
from matterform.training.batches import BatchPlan, make_batch_plan, switch_plans, with_rows
from matterform.training.loop import FitResult, Validation, fit, metric_columns
from matterform.training.mesh import make_mesh
from matterform.training.optimizers import make_optimizer
from matterform.training.run import check_data, check_run, claim_run, open_run
from matterform.training.state import inference_params, init_state
from matterform.training.step import make_eval_step, make_train_step

if TYPE_CHECKING:
    import ase

logger = logging.getLogger(__name__)

SPLIT_KEY = 1  # folded into the seed where a validation set is split off
# A resumed run may train longer and report elsewhere; the rest must stay.
FREE_TRAINING = ("epochs", "max_time", "max_minutes", "logger", "log_dir", "wandb_project", "name", "progress_bar")
FREE = ("run_dir", "data.train", *(f"training.{name}" for name in FREE_TRAINING))


class TrainResult(NamedTuple):
    """What training leaves."""

    diffusion: Diffusion  # the best on the validation set, or else the last
    run_dir: pathlib.Path
    fit: FitResult


class Split(NamedTuple):
    """Rows of a data set."""

    train: Int64[np.ndarray, " n"]  # of originals
    validation: Int64[np.ndarray, " m"]


def train(diffusion: Diffusion, dataset: Dataset, *, source: DataConfig | None = None, **options: Any) -> TrainResult:
    """Trains a model, new or loaded, in a new run folder.

    Args:
        source: where the data come from, noted in hparams.yaml so that `resume` finds them again.
        options: fields of `FitConfig`. Of a model that has no reference energies, they say whether to fit them.

    Raises:
        ValueError: the data do not fit the model.
        FloatingPointError: the loss is not finite.
    """
    training = fit_config(options)
    config = complete_config(diffusion.config, dataset, training.reference_energies)
    split = split_rows(dataset, training)
    params = first_params(diffusion, config, training.seed)
    run = Run(
        run_dir=next_version(training.log_dir if training.name is None else training.log_dir / training.name),
        training=training,
        data=source or DataConfig(),
        diffusion=config,
        n_training_data=len(split.train),
        n_validation_data=len(split.validation),
        n_parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    )
    return _train(run, dataset, split, params, False)


def resume(checkpoint: str | pathlib.Path, dataset: Dataset | None = None, **options: Any) -> TrainResult:
    """Goes on with a run in its folder, bit for bit as if it had not stopped.

    Args:
        checkpoint: the run's folder, or its checkpoints/best_model to go back to that one.
        dataset: the same data as before; by default read again from where they came from.
        options: fields of `FitConfig` to change: the length of the training, and where it reports to.

    Raises:
        ValueError: there is nothing to resume, or something else would have to change.
    """
    run_dir, named = split_checkpoint(checkpoint)
    before = load_run(run_dir)
    run = dataclasses.replace(before, run_dir=run_dir, training=fit_config(options, before.training))
    check_run(run, True, FREE, FILES)
    kind = choose_checkpoint(run_dir, LAST if named is None else named).name
    if dataset is None:
        dataset = read_dataset(run.data, run.diffusion)
    params = new_model(run.diffusion, run.training.seed).params  # for their shapes
    return _train(run, dataset, split_rows(dataset, run.training), params, "best" if kind == BEST else True)


def train_from_atoms(
    data: "Sequence[ase.Atoms]",
    *,
    regressor_data: "Sequence[ase.Atoms] | None" = None,
    properties: "Sequence[Mapping[str, Any]] | None" = None,
    **options: Any,
) -> TrainResult:
    """Makes a data set and a model of ASE's Atoms and trains it.

    Args:
        regressor_data: structures that only the force field learns from.
        properties: values by name for each structure, instead of those it carries.
        options: fields of `TrainConfig`; with `checkpoint`, goes on with that run.
    """
    return train_from_options(train_config(options), given_names(options), data, regressor_data, properties)


def train_from_config(config: str | pathlib.Path | Mapping[str, Any], **overrides: Any) -> TrainResult:
    """Trains as a YAML file or a mapping says; its keys are the fields of `TrainConfig`, `train` among them."""
    values = dict(config) if isinstance(config, Mapping) else load_values(existing(config))
    values |= overrides
    return train_from_options(train_config(values), given_names(values))


def train_from_options(
    config: TrainConfig,
    given: Collection[str],
    data: "Sequence[ase.Atoms] | None" = None,
    regressor_data: "Sequence[ase.Atoms] | None" = None,
    properties: "Sequence[Mapping[str, Any]] | None" = None,
) -> TrainResult:
    """Trains as `config` says, or goes on with the run that it names.

    Args:
        given: names of the fields that are not just defaults.
        data: structures, instead of those of a file.
    """
    if config.checkpoint is not None:
        run = load_run(split_checkpoint(config.checkpoint)[0])
        if ignored := sorted((_names_of(DatasetConfig, DiffusionOptions, DataConfig) - {"train"}) & set(given)):
            logger.warning("%s goes on with its own %s", run.run_dir, ", ".join(ignored))
        source = dataclasses.replace(run.data, train=config.data.train or run.data.train)
        dataset = read_dataset(source, run.diffusion, data, regressor_data, properties)
        changes = {name: value for name, value in vars(config.training).items() if name in given}
        return resume(config.checkpoint, dataset, **changes)
    diffusion = create_diffusion(
        **{name: value for name, value in vars(config.diffusion).items() if name not in ("n_classes", "model")},
        confinement=config.data.dataset.confinement,
        extensive=config.data.dataset.extensive,
        reference_energies=config.training.reference_energies,
        seed=config.training.seed,
    )
    dataset = read_dataset(config.data, diffusion.config, data, regressor_data, properties)
    _check_species(dataset, config.diffusion.n_classes)
    return train(diffusion, dataset, source=config.data, **vars(config.training))


def _names_of(*configs: type) -> set[str]:
    return {field.name for config in configs for field in dataclasses.fields(config)}


def _check_species(dataset: Dataset, limit: int | None) -> None:
    species = {number for graph in dataset.graphs for number in graph.x.tolist()}
    if limit is not None and len(species) > limit:
        raise ValueError(f"n_classes is {limit}, but the data hold {len(species)} species; leave it out or raise it")


def read_dataset(
    source: DataConfig,
    config: DiffusionConfig,
    data: "Sequence[ase.Atoms] | None" = None,
    regressor_data: "Sequence[ase.Atoms] | None" = None,
    properties: "Sequence[Mapping[str, Any]] | None" = None,
) -> Dataset:
    """The data set for a model, of structures that are given or read from where `source` says.

    Raises:
        ValueError: there is no file of structures, or the structures do not fit the model.
    """
    if data is None:
        if source.train is None:
            raise ValueError("train (or data_path) must name a file of structures; found none")
        data = read_atoms(source.train)
    if regressor_data is None and source.regressor_data_path is not None:
        regressor_data = read_atoms(source.regressor_data_path)
    return create_dataset(
        list(data),
        source.dataset,
        cutoff=config.model.cutoff,
        conditioning=tuple(condition.name for condition in config.conditions) or "none",
        conditioning_type=tuple(condition.kind for condition in config.conditions) or "scalar",
        properties=properties,
        force_field=config.force_field is not None,
        regressor_data=regressor_data,
    )


def read_atoms(path: pathlib.Path) -> "list[ase.Atoms]":
    """The structures of a file as ASE's Atoms; those that cannot be read are counted in a warning."""
    from matterform.io.formats import read_structures, to_atoms

    structures, refused = read_structures(path)
    if not structures:
        raise ValueError(f"{path} holds no structure that can be read: {next(iter(refused.values()))}")
    if refused:
        index, reason = next(iter(refused.items()))
        logger.warning("%s: %d entries cannot be read; the first is %d: %s", path, len(refused), index, reason)
    return [to_atoms(structure) for structure in structures]


def split_rows(dataset: Dataset, training: FitConfig) -> Split:
    """Which originals to train on and which to hold out: the same whenever a run is resumed.

    What only the force field learns from is never held out.
    """
    diffused, others = np.flatnonzero(dataset.diffuse), np.flatnonzero(~dataset.diffuse)
    total = len(diffused)
    held_out = round(training.validation_fraction * total)
    kept = total - held_out if training.train_fraction is None else round(training.train_fraction * total)
    if kept == 0:
        raise ValueError(
            f"validation_fraction {training.validation_fraction} leaves none of {total} structures to train on"
        )
    order = diffused[np.random.default_rng([training.seed, SPLIT_KEY]).permutation(total)]
    chosen = order[held_out : held_out + kept]
    return Split(np.sort(np.concatenate([chosen, others])), np.sort(order[:held_out]))


def first_params(diffusion: Diffusion, config: DiffusionConfig, seed: int) -> Params:
    """The model's parameters, or fresh ones where the data gave it another shape."""
    if jax.tree.map(np.shape, network(config).params) == jax.tree.map(np.shape, diffusion.params):
        return diffusion.params
    fresh = new_model(config, seed).params
    if jax.tree.structure(fresh) != jax.tree.structure(diffusion.params):
        return fresh
    return jax.tree.map(lambda new, old: old if new.shape == old.shape else new, fresh, diffusion.params)


def _train(
    run: Run, dataset: Dataset, split: Split, params: Params, resume_from: Literal["best"] | bool
) -> TrainResult:
    training, config = run.training, run.diffusion
    data = {"data": fingerprint(dataset), "train": len(split.train), "validation": len(split.validation)}
    check_data(run, data, bool(resume_from))
    mesh, optimizer = make_mesh(), make_optimizer(optimizer_config(training))
    plan, take = training_plan(dataset, split.train, training), make_take(dataset)
    loss_of = make_losses(config, dataset, training)
    example_loss = loss_of(split.train)
    balance = parse_loss_balance(training.loss_balance)
    memory = None if balance is None else start_means()
    state = init_state(params, optimizer, mesh, ema=training.ema_decay is not None, memory=memory)
    step = make_train_step(
        example_loss if balance is None else make_balanced_loss(example_loss, balance),
        optimizer,
        jax.random.key(training.seed),
        mesh,
        accumulate=training.accumulate,
        ema_decay=training.ema_decay,
        remember=None if balance is None else update_means,
    )
    validation = None
    if len(split.validation):
        evaluate = make_eval_step(loss_of(split.validation), mesh)
        validation = Validation(evaluate, batches_of(split.validation, padded_lengths(dataset), training), take)
    if not resume_from:
        run = claim_version(run)
    claim_run(run, data, bool(resume_from), FILES)
    columns = metric_columns(metric_names(config), validation is not None, plateau=True)
    tensorboard = training.logger == "tensorboard"
    with open_run(run, columns, state, resume_from, FILES, tensorboard=tensorboard) as opened:
        _log_sizes(run, mesh.size)
        result = fit(
            loop_config(training, plan.batches_per_epoch),
            step,
            opened.state,
            mesh,
            plan,
            take,
            validation=validation,
            checkpoints=opened.checkpoints,
            best=opened.best,
            writer=opened.writer,
            resumed=opened.resumed,
            optimizer=optimizer_config(training),
            show_progress=training.progress_bar,
        )
        best = result.state if opened.best.latest_step() is None else opened.best.restore(result.state)[0]
    model = network(config)._replace(params=inference_params(best))
    return TrainResult(Diffusion(config, model), run.run_dir, result)


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
    """The batches of some rows of a data set, of which each row is padded to a length in `padded`."""
    own = padded[rows]
    plan = make_batch_plan(own, training.batch_size, np.unique(own).tolist(), training.seed)
    return with_rows(plan, rows)


def make_losses(
    config: DiffusionConfig, dataset: Dataset, training: FitConfig
) -> Callable[[Int64[np.ndarray, " n"]], ExampleLoss]:
    """`loss_of(rows)`, the loss of one example among rows of the data set, with slots for its neighbors."""
    graphs = all_graphs(dataset)
    cells, pbcs = np.stack([graph.cell for graph in graphs]), np.stack([graph.pbc for graph in graphs])
    sums = lattice_sums(cells, pbcs)
    neighbors = measure_capacity(config, graphs, padded_lengths(dataset), sums, training.seed)
    regressor = RegressorLoss(
        weight=training.regressor_loss_weight, force_loss=training.force_loss, huber_delta=training.huber_delta
    )
    search = make_search(config.model.cutoff, neighbors.capacity, neighbors.images)

    def loss_of(rows: Int64[np.ndarray, " n"]) -> ExampleLoss:
        diffused = float(np.mean(dataset.diffuse[rows]))
        return make_example_loss(config, network(config), search, sums, regressor, diffused)

    return loss_of


def _log_sizes(run: Run, num_devices: int) -> None:
    logger.info(
        "%s: %d structures to train on, %d held out, %d parameters, %d devices",
        *(run.run_dir, run.n_training_data, run.n_validation_data, run.n_parameters, num_devices),
    )
