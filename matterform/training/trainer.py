"""A whole training run of any model, from the first check to the best weights."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from matterform.training.batches import BatchPlan, Take
from matterform.training.config import LoopConfig, OptimizerConfig
from matterform.training.loop import FitResult, FitSetup, fit, last_step, metric_columns
from matterform.training.mesh import make_mesh
from matterform.training.metrics import check_wandb
from matterform.training.optimizers import make_optimizer
from matterform.training.run import RUN_FILES, OpenRun, RunFiles, check_run, claim_run, open_run
from matterform.training.state import TrainState, init_state
from matterform.training.step import ExampleLoss, Metrics, RememberingLoss, make_eval_step, make_train_step
from matterform.training.validation import Validation

logger = logging.getLogger(__name__)


@runtime_checkable
class RunConfig(Protocol):
    """Settings of a run, under the names that all families use."""

    @property
    def loop(self) -> LoopConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def ema_decay(self) -> float | None: ...
    @property
    def keep(self) -> int: ...
    @property
    def wandb_project(self) -> str | None: ...


class RunSettings(NamedTuple):
    """The same settings, for a run whose config is not a `RunConfig`."""

    loop: LoopConfig
    optimizer: OptimizerConfig
    batch_size: int
    accumulate: int = 1
    ema_decay: float | None = None
    keep: int = 1
    wandb_project: str | None = None


class HeldOut(NamedTuple):
    """Validation data, with the loss of one example."""

    example_loss: ExampleLoss
    plan: BatchPlan
    take: Take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A training task: loss, initial weights and data.

    `remember` and `memory` are those of `make_train_step`, `on_epoch_end` that of `FitSetup`.
    """

    example_loss: ExampleLoss | RememberingLoss
    params: Any
    key: PRNGKeyArray  # random key of the steps
    plan: BatchPlan
    take: Take
    held_out: HeldOut | None = None
    metrics: tuple[str, ...]  # names of the metrics that `example_loss` returns
    fingerprints: Mapping[str, Any]  # of the data; a resumed run must have the same
    sources: str  # where the data come from, for messages
    sizes: str  # amount of data, for the log
    make_optimizer: Callable[[OptimizerConfig, int | None], optax.GradientTransformation] = make_optimizer
    remember: Callable[[Any, Metrics], Any] | None = None
    memory: Any = None
    on_epoch_end: Callable[[TrainState, int], None] | None = None


class Trained(NamedTuple):
    """How training ended, and the state with the lowest validation loss (without validation, the last state)."""

    fit: FitResult
    best: TrainState


def check_start(
    config: Any,
    resume: bool,
    free: Collection[str],
    *,
    settings: RunConfig | None = None,
    files: RunFiles = RUN_FILES,
) -> None:
    """Checks that the run can start or resume, before any data are read.

    Raises:
        ValueError: the folder contains another run, there is no run to resume, a setting that is not `free` differs, or
            the batch size cannot be divided among the devices.
        ImportError: a project of Weights & Biases is given, but the package is not installed.
    """
    chosen: RunConfig = config if settings is None else settings
    check_wandb(chosen.wandb_project)
    check_run(config, resume, free, files)
    parts = jax.device_count() * chosen.accumulate
    if chosen.batch_size % parts:
        raise ValueError(
            f"batch_size must be a multiple of devices x accumulate = {jax.device_count()} x {chosen.accumulate} = "
            f"{parts}; got {chosen.batch_size}"
        )


def train(
    config: Any,
    task: Task,
    resume: bool | Literal["best"],
    *,
    settings: RunConfig | None = None,
    files: RunFiles = RUN_FILES,
    tensorboard: bool = True,
    show_progress: bool = True,
) -> Trained:
    """Trains in the folder `config.run_dir` until the loop ends, is interrupted or stops early.

    Args:
        config: written to the run folder, `config.run_dir`.
        resume: continue from the last checkpoint, or from the best one.
        settings: settings of the run, if `config` is not a `RunConfig` itself.

    Raises:
        ValueError: a resumed run has other data than before.
        FloatingPointError: the loss is not finite.
    """
    chosen: RunConfig = config if settings is None else settings
    mesh = make_mesh()
    optimizer = task.make_optimizer(chosen.optimizer, last_step(chosen.loop, task.plan))
    state = init_state(task.params, optimizer, mesh, ema=chosen.ema_decay is not None, memory=task.memory)
    setup = FitSetup(
        config=chosen.loop,
        step=make_train_step(
            *(task.example_loss, optimizer, task.key, mesh),
            accumulate=chosen.accumulate,
            ema_decay=chosen.ema_decay,
            remember=task.remember,
        ),
        mesh=mesh,
        plan=task.plan,
        take=task.take,
        validation=_make_validation(task.held_out, mesh),
        on_epoch_end=task.on_epoch_end,
        optimizer=chosen.optimizer,
        show_progress=show_progress,
    )
    claim_run(config, task.fingerprints, bool(resume), task.sources, files)
    columns = metric_columns(task.metrics, task.held_out is not None, chosen.optimizer.schedule == "plateau")
    reports = {"tensorboard": tensorboard, "wandb_project": chosen.wandb_project}
    with open_run(config.run_dir, columns, state, resume, keep=chosen.keep, files=files, **reports) as run:
        _log_sizes(config.run_dir, task, run.state, mesh)
        return _fit_in(run, setup)


def _fit_in(run: OpenRun, setup: FitSetup) -> Trained:
    setup = dataclasses.replace(setup, checkpoints=run.checkpoints, best=run.best, writer=run.writer)
    result = fit(setup, run.state, run.resumed)
    best = result.state if run.best.latest_step() is None else run.best.restore(result.state)[0]
    return Trained(result, best)


def _make_validation(held_out: HeldOut | None, mesh: Mesh) -> Validation | None:
    if held_out is None:
        return None
    return Validation(make_eval_step(held_out.example_loss, mesh), held_out.plan, held_out.take)


def _log_sizes(run_dir: pathlib.Path, task: Task, state: TrainState, mesh: Mesh) -> None:
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    logger.info("%s: %s, %d parameters, %d devices", run_dir, task.sizes, num_parameters, mesh.size)
