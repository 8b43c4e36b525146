"""The training loop: runs steps, validates, writes metrics and checkpoints, and stops cleanly."""

import contextlib
import dataclasses
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from matterform.progress import progress_bar
from matterform.training.batches import BatchPlan, Take, load_batches, place_of, steps_before
from matterform.training.checkpoint import Checkpoints
from matterform.training.config import LoopConfig, OptimizerConfig
from matterform.training.mesh import replicate, to_global
from matterform.training.metrics import MetricsWriter, StepMetrics
from matterform.training.optimizers import with_rate_scale
from matterform.training.state import TrainState, inference_params
from matterform.training.step import Evaluate, TrainStep, mean_metrics

logger = logging.getLogger(__name__)

Outcome = Literal["finished", "early_stop", "time_limit", "interrupted"]
STOPS: tuple[Outcome | None, ...] = (None, "time_limit", "interrupted")  # what can come between two steps


class Validation(NamedTuple):
    """A data set to validate on, with the compiled evaluation."""

    evaluate: Evaluate
    plan: BatchPlan
    take: Take


@dataclasses.dataclass
class Progress:
    """What the loop knows beyond the training state; every checkpoint carries it as its extra object."""

    best_loss: float | None = None
    best_step: int | None = None
    stale: int = 0  # validations since the best one
    totals: dict[str, float] = dataclasses.field(default_factory=dict)  # sums of metrics since the last row
    count: int = 0
    epoch_loss: float = 0.0  # sum over the steps of an epoch, up to the last row
    epoch_count: int = 0
    plateau_loss: float | None = None  # the lowest that the learning rate's schedule has seen
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
        """Counts a loss for the schedule `plateau`; returns whether the learning rate is to change."""
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
        """The mean loss of the epoch, which starts anew."""
        mean = self.epoch_loss / self.epoch_count
        self.epoch_loss, self.epoch_count = 0.0, 0
        return mean


class FitResult(NamedTuple):
    """The state after the last step, why the loop ended, and the best validation."""

    state: TrainState
    outcome: Outcome
    best_loss: float | None
    best_step: int | None


def fit(
    config: LoopConfig,
    step: TrainStep,
    state: TrainState,
    mesh: Mesh,
    plan: BatchPlan,
    take: Take,
    *,
    validation: Validation | None = None,
    checkpoints: Checkpoints | None = None,
    best: Checkpoints | None = None,
    writer: MetricsWriter | None = None,
    resumed: Mapping[str, Any] | None = None,
    on_epoch_end: Callable[[TrainState, int], None] | None = None,
    optimizer: OptimizerConfig | None = None,
    show_progress: bool = True,
) -> FitResult:
    """Trains from `state.step` on; constructs nothing, and consumes `state`.

    To resume, give what `Checkpoints.restore` returned: the state, and the extra object as `resumed`. The batches,
    keys and means then go on as if nothing had happened. SIGTERM and SIGINT end the loop after the running step
    (with several processes: where a row of metrics is due) with a checkpoint; a second signal acts as usual. So does
    the time limit, from where the run can go on as after a signal.

    Args:
        best: gets the state of the lowest validation loss.
        on_epoch_end: called with the state and the number of finished epochs in every process; the state is
            consumed by the next step, so copy what is to be kept.
        optimizer: needed for the schedule `plateau`, which follows the validation loss, or without a validation set the
            mean training loss of each epoch.

    Raises:
        FloatingPointError: a loss or gradient is not finite; no checkpoint has been written since.
    """
    progress = Progress(**(resumed or {}))
    recent = StepMetrics(progress.totals, progress.count)
    first, last = int(state.step), last_step(config, plan)
    deadline = math.inf if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    plateau = optimizer if optimizer is not None and optimizer.schedule == "plateau" else None

    def extra() -> dict[str, Any]:
        return dataclasses.asdict(dataclasses.replace(progress, totals=recent.totals, count=recent.count))

    outcome = _outcome(config, progress, first, last)
    if outcome is not None:
        return FitResult(state, outcome, progress.best_loss, progress.best_step)
    batches = load_batches(plan, take, first, last, process=jax.process_index(), num_processes=jax.process_count())
    bar = _progress(first, last, show_progress)
    saved_at, held = -math.inf, None  # the best state where it is not written yet
    with stop_on_signals() as stop_asked, bar as show, contextlib.closing(batches):
        for number, batch in enumerate(batches, first + 1):
            state, metrics = step(state, to_global(mesh, batch))
            recent.add(number, metrics)
            epochs, position, length = place_of(plan, number)
            improved = None
            epoch_ended = position == 0
            validated = validation is not None and _due(config.validate_every, number, epoch_ended)
            watched = plateau is not None and (epoch_ended if validation is None else validated)
            row_due = _due(config.log_every, number, epoch_ended)
            if validated or watched or row_due:
                recent.settle()
                if plateau is not None and validation is None:
                    progress.add_to_epoch(recent.totals["loss"], recent.count)
                row = {"epoch": (epochs * length + position) / length, **recent.take_means()}
                means = {}
                if validation is not None and validated:
                    means = run_validation(validation, inference_params(state), mesh)
                    row |= {f"validation_{name}": value for name, value in means.items()}
                if plateau is not None:
                    row["learning_rate"] = plateau.learning_rate * progress.rate_scale
                    if watched and progress.lower_rate(means["loss"] if means else progress.end_epoch(), plateau):
                        scale = replicate(mesh, np.float32(progress.rate_scale))
                        state = state._replace(opt_state=with_rate_scale(state.opt_state, scale))
                if validated and progress.note(means["loss"], number) and best is not None:
                    improved = state, extra()
                _report(writer, number, row)
            if on_epoch_end is not None and epoch_ended:
                recent.settle()
                on_epoch_end(state, epochs)
            outcome = _outcome(config, progress, number, last)
            if outcome is None:
                late = time.monotonic() >= deadline
                outcome = stop_agreed("interrupted" if stop_asked() else "time_limit" if late else None, row_due)
            rested = time.monotonic() - saved_at >= config.checkpoint_seconds or jax.process_count() > 1
            held = improved or held
            if best is not None and held is not None and (outcome is not None or rested):
                best.save(*held)
                held = None
            elif improved is not None:
                held = jax.tree.map(lambda leaf: leaf.copy(), improved[0]), improved[1]  # the next step consumes it
            checkpoint_due = _due(config.checkpoint_every, number, epoch_ended) and rested
            if checkpoints is not None and (outcome is not None or checkpoint_due):
                recent.settle()
                checkpoints.save(state, extra())
                saved_at = time.monotonic()
            show(number)
            if outcome is not None:
                break
    recent.settle()
    assert outcome is not None  # the last step sets it
    logger.info("%s after step %d", outcome, int(state.step))
    return FitResult(state, outcome, progress.best_loss, progress.best_step)


def last_step(config: LoopConfig, plan: BatchPlan) -> int | None:
    """The number of steps after which training is finished; None where only time limits it."""
    limits = [config.max_steps, None if config.epochs is None else steps_before(plan, config.epochs)]
    return min((limit for limit in limits if limit is not None), default=None)


def metric_columns(names: Sequence[str], validation: bool = True, plateau: bool = False) -> tuple[str, ...]:
    """Columns of the rows that `fit` writes, where `names` are the metrics of the example loss besides the loss."""
    training = ("epoch", "loss", *names, "grad_norm", *(("learning_rate",) if plateau else ()))
    return (*training, *(f"validation_{name}" for name in ("loss", *names))) if validation else training


def run_validation(validation: Validation, params: Any, mesh: Mesh) -> dict[str, float]:
    """Weighted means over every example of the validation set, each once."""
    plan = validation.plan
    shares = {"process": jax.process_index(), "num_processes": jax.process_count()}
    batches = load_batches(plan, validation.take, 0, plan.batches_per_epoch, **shares)
    return mean_metrics(validation.evaluate(params, to_global(mesh, batch)) for batch in batches)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM or SIGINT has come; only the main thread can listen.

    After the first one, and at the end, the former handlers are back, so that a second signal ends the process.
    """
    received: list[int] = []
    former: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in former.items():
            # None stands for a handler that was not set from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        former.clear()

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        former |= {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        restore()


def _due(every: int | None, number: int, epoch_ended: bool) -> bool:
    return epoch_ended if every is None else number % every == 0


def _outcome(config: LoopConfig, progress: Progress, number: int, last: int | None) -> Outcome | None:
    if last is not None and number >= last:
        return "finished"
    if config.patience is not None and progress.stale >= config.patience:
        return "early_stop"
    return None


def stop_agreed(wish: Outcome | None, at_meeting: bool) -> Outcome | None:
    """Why to stop now: at once when alone, else at a meeting of all processes if any of them wishes to."""
    if jax.process_count() == 1:
        return wish
    if not at_meeting:
        return None
    return STOPS[int(multihost_utils.process_allgather(np.asarray(STOPS.index(wish))).max())]


def _report(writer: MetricsWriter | None, number: int, row: Mapping[str, float]) -> None:
    logger.info("step %d: %s", number, ", ".join(f"{name} {value:.5g}" for name, value in row.items()))
    if not math.isfinite(row.get("validation_loss", 0.0)):
        logger.warning("step %d: the validation loss is %s", number, row["validation_loss"])
    if writer is not None:
        writer.write(number, row)


def _progress(first: int, last: int | None, wanted: bool) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """A bar over all steps, in the first process only."""
    if jax.process_index() != 0 or not wanted:
        return contextlib.nullcontext(lambda number: None)
    return progress_bar("training", total=last, completed=first)
