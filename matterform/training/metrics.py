"""Writers of metrics: a CSV file with fixed columns, TensorBoard, Weights & Biases."""

import importlib.util
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from matterform.io.tables import open_rows


class MetricsWriter(NamedTuple):
    """Destination of metrics; `write(step, metrics)` copies them from the device."""

    write: Callable[[int, Mapping[str, Any]], None]
    close: Callable[[], None]


def open_metrics(
    folder: str | pathlib.Path,
    columns: Sequence[str],
    *,
    resumed_step: int | None = None,
    tensorboard: bool = False,
    wandb_project: str | None = None,
) -> MetricsWriter:
    """Writes `folder/metrics.csv` and, if requested, TensorBoard events in `folder` and a Weights & Biases run.

    Only the first process writes. With `resumed_step`, a run is continued after that step, and later rows are deleted.

    Raises:
        ValueError: metrics.csv exists and no run is resumed, or it has other columns.
        ImportError: Weights & Biases is requested but not installed.
    """
    if jax.process_index() != 0:
        return combine([])
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writers = [open_csv(folder / "metrics.csv", columns, resumed_step)]
    if tensorboard:
        writers.append(open_tensorboard(folder, resumed_step))
    if wandb_project is not None:
        writers.append(open_wandb(wandb_project, folder))
    return combine(writers)


def combine(writers: Iterable[MetricsWriter]) -> MetricsWriter:
    """A writer that copies metrics from the device once and passes them to each of `writers`."""
    writers = tuple(writers)

    def write(step: int, metrics: Mapping[str, Any]) -> None:
        if writers:
            host = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
            for writer in writers:
                writer.write(step, host)

    def close() -> None:
        for writer in writers:
            writer.close()

    return MetricsWriter(write, close)


def open_csv(path: pathlib.Path, columns: Sequence[str], resumed_step: int | None = None) -> MetricsWriter:
    """Writes one CSV row per call: `step`, then `columns`; the cell of a missing metric is empty.

    Numbers are written so that reading them gives the same float. A resumed run keeps the rows up to
    `resumed_step`, so that its file becomes equal to that of an uninterrupted run.

    Raises:
        ValueError: the file exists and no run is resumed, it has other columns, or a metric is not a column.
    """
    if resumed_step is None and path.exists():
        raise ValueError(f"{path} exists already; resume that run or write to another folder")

    def keep(row: Mapping[str, str]) -> bool:
        return resumed_step is not None and int(row["step"]) <= resumed_step

    table = open_rows(path, ["step", *columns], keep=keep)

    def write(step: int, metrics: Mapping[str, Any]) -> None:
        # As text, to distinguish a missing metric (empty cell) from one that is not a number ("nan").
        table.write({"step": step, **{name: repr(float(value)) for name, value in metrics.items()}})

    return MetricsWriter(write, table.close)


def open_tensorboard(folder: pathlib.Path, resumed_step: int | None = None) -> MetricsWriter:
    """Writes TensorBoard events; a resumed run hides the events after `resumed_step`."""
    import tensorboardX  # slow to import, and optional in a run

    purge_step = None if resumed_step is None else resumed_step + 1
    events = tensorboardX.SummaryWriter(str(folder), purge_step=purge_step)

    def write(step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            events.add_scalar(name, float(value), step)

    return MetricsWriter(write, events.close)


def check_wandb(project: str | None) -> None:
    """Checks that Weights & Biases is installed if a project is given.

    Raises:
        ImportError: it is not installed.
    """
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise ImportError("logging to Weights & Biases needs an extra: pip install 'matterform[wandb]'")


def open_wandb(project: str, folder: pathlib.Path) -> MetricsWriter:
    """Opens a Weights & Biases run with the name of its folder; login and mode are those of the user's W&B settings.

    Raises:
        ImportError: Weights & Biases is not installed.
    """
    check_wandb(project)
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(project=project, name=folder.name, dir=str(folder))

    def write(step: int, metrics: Mapping[str, Any]) -> None:
        run.log({name: float(value) for name, value in metrics.items()}, step=step)

    return MetricsWriter(write, run.finish)


class StepMetrics:
    """Means of metrics over steps; the metrics of a step are copied from the device only after the next one started.

    `totals` and `count` are the sums of an interrupted run; with them, the means are identical to the last bit.
    """

    def __init__(self, totals: Mapping[str, float] | None = None, count: int = 0) -> None:
        self.totals, self.count = dict(totals or {}), count
        self._pending: tuple[int, Mapping[str, Any]] | None = None

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds the metrics of `step`, which may still be running, and processes those of the previous step.

        Raises:
            FloatingPointError: the loss or gradient of the previous step is not finite.
        """
        self.settle()
        self._pending = step, metrics

    def settle(self) -> None:
        """Waits for the last added step, and processes its metrics.

        Raises:
            FloatingPointError: its loss or gradient is not finite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        host = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        if host.pop("nonfinite"):
            raise FloatingPointError(
                f"step {step}: expected a finite loss and gradient; found loss {host['loss']} and gradient norm "
                f"{host['grad_norm']}; resume from the last checkpoint, which is older, with a lower learning_rate "
                "or a clip_norm"
            )
        self.totals = {name: self.totals.get(name, 0.0) + value for name, value in host.items()}
        self.count += 1

    def take_means(self) -> dict[str, float]:
        """Returns the means since the last call, and resets them."""
        means = {name: total / self.count for name, total in self.totals.items()}
        self.totals, self.count = {}, 0
        return means
