"""The training loop: runs steps, validates, writes metrics and checkpoints, and stops cleanly."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from matterform.progress import progress_bar
from matterform.training.batches import BatchPlan, Place, Take, load_batches, place_of, steps_before
from matterform.training.checkpoint import Checkpoints
from matterform.training.config import LoopConfig, OptimizerConfig
from matterform.training.mesh import replicate, to_global
from matterform.training.metrics import MetricsWriter, StepMetrics
from matterform.training.optimizers import with_rate_scale
from matterform.training.state import TrainState, inference_params
from matterform.training.step import Batch, TrainStep
from matterform.training.stopping import Outcome, stop_agreed, stop_on_signals
from matterform.training.validation import Validation, run_validation

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSetup:
    """The parts of a training loop."""

    config: LoopConfig
    step: TrainStep
    mesh: Mesh
    plan: BatchPlan
    take: Take
    validation: Validation | None = None
    checkpoints: Checkpoints | None = None
    best: Checkpoints | None = None  # receives the state with the lowest validation loss
    writer: MetricsWriter | None = None
    # Called in every process with the state and the number of finished epochs. The next step consumes the state, so
    # arrays to be kept must be copied.
    on_epoch_end: Callable[[TrainState, int], None] | None = None
    # Required for the schedule `plateau`, which depends on the validation loss or, without validation, on the mean
    # training loss of each epoch.
    optimizer: OptimizerConfig | None = None
    show_progress: bool = True


class FitResult(NamedTuple):
    """The state after the last step, why the loop ended, and the best validation."""

    state: TrainState
    outcome: Outcome
    best_loss: float | None
    best_step: int | None


@dataclasses.dataclass
class Progress:
    """Progress of a run beyond the training state; every checkpoint contains it as its extra object."""

    best_loss: float | None = None
    best_step: int | None = None
    stale: int = 0  # validations since the best one
    totals: dict[str, float] = dataclasses.field(default_factory=dict)  # sums of metrics since the last row
    count: int = 0
    epoch_loss: float = 0.0  # sum over the steps of an epoch, up to the last row
    epoch_count: int = 0
    plateau_loss: float | None = None  # lowest loss seen by the schedule `plateau`
    plateau_stale: int = 0  # losses since then, or since the rate was last lowered
    rate_scale: float = 1.0

    def note(self, loss: float, step: int) -> bool:
        """Counts a validation; returns whether it is the best so far."""
        improved = math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if improved:
            self.best_loss, self.best_step = loss, step
        self.stale = 0 if improved else self.stale + 1
        return improved

    def lower_rate(self, loss: float, config: OptimizerConfig) -> bool:
        """Counts a loss for the schedule `plateau`; returns whether the learning rate is to change.

        Not `optax.contrib.reduce_on_plateau`: that takes a loss at every step, in float32, and averages a fixed number
        of them, while ours comes from validations or from epochs, which may differ in length.
        """
        if math.isfinite(loss) and (self.plateau_loss is None or loss < self.plateau_loss):
            self.plateau_loss, self.plateau_stale = loss, 0
            return False
        self.plateau_stale += 1
        if self.plateau_stale < config.plateau_patience:
            return False
        self.plateau_stale = 0
        self.rate_scale *= config.plateau_factor
        return True

    def add_to_epoch(self, loss: float, count: int) -> None:
        """Adds the losses of the steps since the last row, whose sum is `loss`."""
        self.epoch_loss, self.epoch_count = self.epoch_loss + loss, self.epoch_count + count

    def end_epoch(self) -> float:
        """Returns the mean loss of the epoch, and resets it."""
        mean = self.epoch_loss / self.epoch_count
        self.epoch_loss, self.epoch_count = 0.0, 0
        return mean


def fit(setup: FitSetup, state: TrainState, resumed: Mapping[str, Any] | None = None) -> FitResult:
    """Trains from `state.step` on; `state` is consumed.

    To resume, pass what `Checkpoints.restore` returned: the state, and the extra object as `resumed`. The result is
    then the same as without the interruption. SIGTERM, SIGINT and the time limit end the loop with a checkpoint after
    the running step (with several processes: after the next row of metrics); a second signal acts as usual.

    Raises:
        FloatingPointError: a loss or gradient is not finite; no checkpoint has been written since.
    """
    loop = _Loop(setup, state, resumed)
    first, last = int(state.step), last_step(setup.config, setup.plan)
    outcome = _outcome(setup.config, loop.progress, first, last)
    if outcome is not None:
        return FitResult(state, outcome, loop.progress.best_loss, loop.progress.best_step)
    shares = {"process": jax.process_index(), "num_processes": jax.process_count()}
    batches = load_batches(setup.plan, setup.take, first, last, **shares)
    bar = _progress(first, last, setup.show_progress)
    with stop_on_signals() as stop_asked, bar as show, contextlib.closing(batches):
        for number, batch in enumerate(batches, first + 1):
            outcome = loop.advance(number, batch, last, stop_asked)
            show(number)
            if outcome is not None:
                break
    loop.recent.settle()
    assert outcome is not None  # the last step sets it
    logger.info("%s after step %d", outcome, int(loop.state.step))
    return FitResult(loop.state, outcome, loop.progress.best_loss, loop.progress.best_step)


class _Due(NamedTuple):
    """Actions due after a step."""

    place: Place  # of the next step
    row: bool
    validation: bool
    plateau: bool  # whether the schedule `plateau` evaluates the loss
    checkpoint: bool

    @property
    def epoch_end(self) -> bool:
        return self.place.batch == 0


class _Loop:
    """The state of a running loop."""

    def __init__(self, setup: FitSetup, state: TrainState, resumed: Mapping[str, Any] | None) -> None:
        self.setup, self.state = setup, state
        self.progress = Progress(**(resumed or {}))
        self.recent = StepMetrics(self.progress.totals, self.progress.count)
        minutes = setup.config.max_minutes
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        follows = setup.optimizer is not None and setup.optimizer.schedule == "plateau"
        self.plateau = setup.optimizer if follows else None
        self.saved_at = -math.inf
        self.held: tuple[TrainState, dict[str, Any]] | None = None  # the best state, if it has not been written yet

    def advance(self, number: int, batch: Batch, last: int | None, stop_asked: Callable[[], bool]) -> Outcome | None:
        """Runs the step `number` and the actions due after it; returns why the loop ends, or None."""
        self.state, metrics = self.setup.step(self.state, to_global(self.setup.mesh, batch))
        self.recent.add(number, metrics)
        due = self._due_after(number)
        improved = self._write_row(number, due) if due.row or due.validation or due.plateau else None
        if self.setup.on_epoch_end is not None and due.epoch_end:
            self.recent.settle()
            self.setup.on_epoch_end(self.state, due.place.epoch)
        outcome = _outcome(self.setup.config, self.progress, number, last)
        if outcome is None:
            late = time.monotonic() >= self.deadline
            outcome = stop_agreed("interrupted" if stop_asked() else "time_limit" if late else None, due.row)
        self._save(due, improved, outcome)
        return outcome

    def _due_after(self, number: int) -> _Due:
        config, place = self.setup.config, place_of(self.setup.plan, number)

        def due(every: int | None) -> bool:
            return place.batch == 0 if every is None else number % every == 0

        validation = self.setup.validation is not None and due(config.validate_every)
        watched = place.batch == 0 if self.setup.validation is None else validation
        return _Due(
            place, due(config.log_every), validation, self.plateau is not None and watched, due(config.checkpoint_every)
        )

    def _write_row(self, number: int, due: _Due) -> tuple[TrainState, dict[str, Any]] | None:
        """Validates if due, and writes the metrics; returns the state if it is the best so far."""
        self.recent.settle()
        if self.plateau is not None and self.setup.validation is None:
            self.progress.add_to_epoch(self.recent.totals["loss"], self.recent.count)
        epoch = (due.place.epoch * due.place.batches + due.place.batch) / due.place.batches
        row = {"epoch": epoch, **self.recent.take_means()}
        means: dict[str, float] = {}
        if self.setup.validation is not None and due.validation:
            means = run_validation(self.setup.validation, inference_params(self.state), self.setup.mesh)
            row |= {f"validation_{name}": value for name, value in means.items()}
        if self.plateau is not None:
            row["learning_rate"] = self.plateau.learning_rate * self.progress.rate_scale
            if due.plateau:
                self._follow_plateau(self.plateau, means["loss"] if means else self.progress.end_epoch())
        improved = due.validation and self.progress.note(means["loss"], number)
        best = (self.state, self._extra()) if improved and self.setup.best is not None else None
        _report(self.setup.writer, number, row)
        return best

    def _follow_plateau(self, config: OptimizerConfig, loss: float) -> None:
        if self.progress.lower_rate(loss, config):
            scale = replicate(self.setup.mesh, np.float32(self.progress.rate_scale))
            self.state = self.state._replace(opt_state=with_rate_scale(self.state.opt_state, scale))

    def _save(self, due: _Due, improved: tuple[TrainState, dict[str, Any]] | None, outcome: Outcome | None) -> None:
        """Writes the best state and the checkpoint if they are due and the last one is not too recent."""
        least = self.setup.config.checkpoint_seconds
        rested = time.monotonic() - self.saved_at >= least or jax.process_count() > 1
        self.held = improved or self.held
        if self.setup.best is not None and self.held is not None and (outcome is not None or rested):
            self.setup.best.save(*self.held)
            self.held = None
        elif improved is not None:  # the next step consumes it
            self.held = jax.tree.map(lambda leaf: leaf.copy(), improved[0]), improved[1]
        if self.setup.checkpoints is not None and (outcome is not None or (due.checkpoint and rested)):
            self.recent.settle()
            self.setup.checkpoints.save(self.state, self._extra())
            self.saved_at = time.monotonic()

    def _extra(self) -> dict[str, Any]:
        """The content of a checkpoint besides the state."""
        totals = dataclasses.replace(self.progress, totals=self.recent.totals, count=self.recent.count)
        return dataclasses.asdict(totals)


def last_step(config: LoopConfig, plan: BatchPlan) -> int | None:
    """Number of steps of the whole run; None if it is limited only by time."""
    limits = [config.max_steps, None if config.epochs is None else steps_before(plan, config.epochs)]
    return min((limit for limit in limits if limit is not None), default=None)


def metric_columns(names: Sequence[str], validation: bool = True, plateau: bool = False) -> tuple[str, ...]:
    """Columns of the rows that `fit` writes, where `names` are the metrics of the example loss besides the loss."""
    training = ("epoch", "loss", *names, "grad_norm", *(("learning_rate",) if plateau else ()))
    return (*training, *(f"validation_{name}" for name in ("loss", *names))) if validation else training


def _outcome(config: LoopConfig, progress: Progress, number: int, last: int | None) -> Outcome | None:
    if last is not None and number >= last:
        return "finished"
    if config.patience is not None and progress.stale >= config.patience:
        return "early_stop"
    return None


def _report(writer: MetricsWriter | None, number: int, row: Mapping[str, float]) -> None:
    logger.info("step %d: %s", number, ", ".join(f"{name} {value:.5g}" for name, value in row.items()))
    if not math.isfinite(row.get("validation_loss", 0.0)):
        logger.warning("step %d: the validation loss is %s", number, row["validation_loss"])
    if writer is not None:
        writer.write(number, row)


def _progress(first: int, last: int | None, wanted: bool) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """A progress bar over all steps, in the first process only."""
    if jax.process_index() != 0 or not wanted:
        return contextlib.nullcontext(lambda number: None)
    return progress_bar("training", total=last, completed=first)
