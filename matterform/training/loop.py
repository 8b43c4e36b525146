"""The training loop: runs steps, validates, writes metrics and checkpoints, and stops cleanly."""

import contextlib
import dataclasses
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from matterform.progress import progress_bar
from matterform.training.batches import BatchPlan, Take, load_batches
from matterform.training.checkpoint import Checkpoints
from matterform.training.mesh import to_global
from matterform.training.metrics import MetricsWriter, StepMetrics
from matterform.training.state import TrainState, inference_params
from matterform.training.step import Evaluate, TrainStep, mean_metrics

logger = logging.getLogger(__name__)

Outcome = Literal["finished", "early_stop", "interrupted"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """When to stop and how often to do what; periods count steps, and None means once an epoch."""

    epochs: int | None = None
    max_steps: int | None = None  # with epochs: whichever comes first
    log_every: int | None = None
    validate_every: int | None = None
    checkpoint_every: int | None = None
    patience: int | None = None  # validations without a lower loss before stopping; None never stops early

    def __post_init__(self) -> None:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("epochs or max_steps must be given; found neither")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise ValueError(f"{field.name} must be at least 1, or none; got {value}")


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

    def note(self, loss: float, step: int) -> bool:
        """Counts a validation; returns whether it is the best so far."""
        improved = math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if improved:
            self.best_loss, self.best_step = loss, step
        self.stale = 0 if improved else self.stale + 1
        return improved


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
) -> FitResult:
    """Trains from `state.step` on; constructs nothing, and consumes `state`.

    To resume, give what `Checkpoints.restore` returned: the state, and the extra object as `resumed`. The batches,
    keys and means then go on as if nothing had happened. SIGTERM and SIGINT end the loop after the running step
    (with several processes: at the next multiple of `log_every`) with a checkpoint; a second signal acts as usual.

    Args:
        best: gets the state of the lowest validation loss.
        on_epoch_end: called with the state and the number of finished epochs in every process; the state is
            consumed by the next step, so copy what is to be kept.

    Raises:
        FloatingPointError: a loss or gradient is not finite; no checkpoint has been written since.
    """
    progress = Progress(**(resumed or {}))
    recent = StepMetrics(progress.totals, progress.count)
    per_epoch, first, last = plan.batches_per_epoch, int(state.step), last_step(config, plan)
    log_every, validate_every = config.log_every or per_epoch, config.validate_every or per_epoch
    checkpoint_every = config.checkpoint_every or per_epoch

    def extra() -> dict[str, Any]:
        return dataclasses.asdict(dataclasses.replace(progress, totals=recent.totals, count=recent.count))

    outcome = _outcome(config, progress, first, last)
    if outcome is not None:
        return FitResult(state, outcome, progress.best_loss, progress.best_step)
    batches = load_batches(plan, take, first, last, process=jax.process_index(), num_processes=jax.process_count())
    with stop_on_signals() as stop_asked, _progress(first, last) as show, contextlib.closing(batches):
        for number, batch in enumerate(batches, first + 1):
            state, metrics = step(state, to_global(mesh, batch))
            recent.add(number, metrics)
            validated = validation is not None and number % validate_every == 0
            if validated or number % log_every == 0:
                recent.settle()
                row = {"epoch": number / per_epoch, **recent.take_means()}
                if validation is not None and validated:
                    means = run_validation(validation, inference_params(state), mesh)
                    row |= {f"validation_{name}": value for name, value in means.items()}
                    if progress.note(means["loss"], number) and best is not None:
                        best.save(state, extra())
                _report(writer, number, row)
            if on_epoch_end is not None and number % per_epoch == 0:
                recent.settle()
                on_epoch_end(state, number // per_epoch)
            outcome = _outcome(config, progress, number, last)
            if outcome is None and _stop_agreed(stop_asked(), number % log_every == 0):
                outcome = "interrupted"
            if checkpoints is not None and (outcome is not None or number % checkpoint_every == 0):
                recent.settle()
                checkpoints.save(state, extra())
            show(number)
            if outcome is not None:
                break
    recent.settle()
    assert outcome is not None  # the last step sets it
    logger.info("%s after step %d", outcome, int(state.step))
    return FitResult(state, outcome, progress.best_loss, progress.best_step)


def last_step(config: LoopConfig, plan: BatchPlan) -> int:
    """The number of steps after which training is finished."""
    limits = [config.max_steps, None if config.epochs is None else config.epochs * plan.batches_per_epoch]
    return min(limit for limit in limits if limit is not None)


def metric_columns(names: Sequence[str], validation: bool = True) -> tuple[str, ...]:
    """Columns of the rows that `fit` writes, where `names` are the metrics of the example loss besides the loss."""
    training = ("epoch", "loss", *names, "grad_norm")
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


def _outcome(config: LoopConfig, progress: Progress, number: int, last: int) -> Outcome | None:
    if number >= last:
        return "finished"
    if config.patience is not None and progress.stale >= config.patience:
        return "early_stop"
    return None


def _stop_agreed(asked: bool, at_meeting: bool) -> bool:
    """Whether to stop now: at once when alone, else at a meeting of all processes if any of them was asked to."""
    if jax.process_count() == 1:
        return asked
    return at_meeting and bool(multihost_utils.process_allgather(np.asarray(asked)).any())


def _report(writer: MetricsWriter | None, number: int, row: Mapping[str, float]) -> None:
    logger.info("step %d: %s", number, ", ".join(f"{name} {value:.5g}" for name, value in row.items()))
    if not math.isfinite(row.get("validation_loss", 0.0)):
        logger.warning("step %d: the validation loss is %s", number, row["validation_loss"])
    if writer is not None:
        writer.write(number, row)


def _progress(first: int, last: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """A bar over all steps, in the first process only."""
    if jax.process_index() != 0:
        return contextlib.nullcontext(lambda number: None)
    return progress_bar("training", total=last, completed=first)
