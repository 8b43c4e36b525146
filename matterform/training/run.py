"""The folder of a run: its config, fingerprints of its data, and its checkpoints."""

import contextlib
import json
import logging
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
from jax.experimental import multihost_utils

from matterform.config import load_config, save_config, to_dict
from matterform.io.files import write_atomically
from matterform.training.checkpoint import Checkpoints
from matterform.training.metrics import MetricsWriter, open_metrics
from matterform.training.state import TrainState

logger = logging.getLogger(__name__)


class RunFiles(NamedTuple):
    """File names inside a run folder."""

    config: str = "config.yaml"
    checkpoints: str = "checkpoints"
    best: str = "best"


RUN_FILES = RunFiles()


def check_run(config: Any, resume: bool, free: Collection[str], files: RunFiles = RUN_FILES) -> None:
    """Checks that the folder `config.run_dir` is new or, to resume, contains the same run.

    Args:
        free: fields that a resumed run may change, dotted if nested; a nested config includes all its fields.

    Raises:
        ValueError: there is no run to resume, the folder contains a run, or the run has other settings.
    """
    if config.run_dir.exists() and not config.run_dir.is_dir():
        raise ValueError(f"{config.run_dir} is a file; a run needs a folder")
    path = config.run_dir / files.config
    if resume and not path.exists():
        raise ValueError(
            f"{config.run_dir} holds no run to resume (no {files.config}); leave out --resume to begin one"
        )
    if path.exists():
        if not resume:
            raise ValueError(f"{config.run_dir} holds a run already; give --resume to go on, or another --run-dir")
        before = _flat(to_dict(load_config(type(config), path)))
        for name, value in _flat(to_dict(config)).items():
            if not any(name == part or name.startswith(f"{part}.") for part in free) and before.get(name) != value:
                raise ValueError(f"cannot resume with another {name}: the run has {before.get(name)}, given {value}")


def check_data(run_dir: pathlib.Path, data: Mapping[str, Any], resume: bool, sources: str) -> None:
    """Checks that a resumed run has the same data as before.

    Args:
        data: fingerprints of the data, as for `claim_run`.
        sources: where the data come from, for the message.

    Raises:
        ValueError: the data differ.
    """
    path = run_dir / "data.json"
    if resume and path.exists() and (former := json.loads(path.read_text(encoding="utf-8"))) != data:
        changed = sorted(name for name in {*former, *data} if former.get(name) != data.get(name))
        raise ValueError(
            f"cannot resume with other data: the run has {_some(former, changed)}, "
            f"but {sources} gives {_some(data, changed)}"
        )


def claim_run(config: Any, data: Mapping[str, Any], resume: bool, sources: str, files: RunFiles = RUN_FILES) -> None:
    """Writes the config and data.json, the fingerprints of the data, which come from `sources`.

    Call this after reading the data, so that a run that cannot read them leaves no files.

    Raises:
        ValueError: a resumed run has other data than before.
    """
    check_data(config.run_dir, data, resume, sources)
    if jax.process_count() > 1:  # otherwise the first process could claim the folder before the others check it
        multihost_utils.sync_global_devices("run folder checked")
    if jax.process_index() == 0:
        save_config(config, config.run_dir / files.config)
        with write_atomically(config.run_dir / "data.json") as temporary:
            temporary.write_text(json.dumps(data) + "\n", encoding="utf-8")


def _some(data: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {data.get(name)}" for name in names)


class OpenRun(NamedTuple):
    """The open files of a run folder, and the state to continue from."""

    state: TrainState  # the given state, or that of the checkpoint
    resumed: dict[str, Any] | None
    checkpoints: Checkpoints
    best: Checkpoints
    writer: MetricsWriter


@contextlib.contextmanager
def open_run(
    run_dir: pathlib.Path,
    columns: Sequence[str],
    state: TrainState,
    resume: bool | Literal["best"],
    *,
    keep: int,
    files: RunFiles = RUN_FILES,
    tensorboard: bool = True,
    wandb_project: str | None = None,
) -> Iterator[OpenRun]:
    """Opens the metrics.csv and the checkpoints of a claimed run, of which the newest `keep` are kept.

    Resuming from "best" continues from the best checkpoint, and discards later steps.

    Raises:
        ValueError: the run is resumed but has no checkpoint.
    """
    with contextlib.ExitStack() as stack:
        checkpoints = open_checkpoints(stack, run_dir / files.checkpoints, keep)
        best = open_checkpoints(stack, run_dir / files.best, 1)
        resumed = None
        if resume:
            state, resumed = restore_run(run_dir, best if resume == "best" else checkpoints, state)
        resumed_step = int(state.step) if resume else None
        writer = open_metrics(
            run_dir, columns, resumed_step=resumed_step, tensorboard=tensorboard, wandb_project=wandb_project
        )
        stack.callback(writer.close)
        yield OpenRun(state, resumed, checkpoints, best, writer)


def open_checkpoints(stack: contextlib.ExitStack, folder: pathlib.Path, keep: int) -> Checkpoints:
    """The checkpoints in a folder, closed with the stack."""
    checkpoints = Checkpoints(folder, keep=keep)
    stack.callback(checkpoints.close)
    return checkpoints


def restore_run(
    run_dir: pathlib.Path, checkpoints: Checkpoints, state: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """Reads the newest state, and the progress to pass to `fit`.

    Raises:
        ValueError: the run has no checkpoint.
    """
    if checkpoints.latest_step() is None:
        raise ValueError(f"{run_dir} ended before its first checkpoint; delete it and begin anew, without --resume")
    state, progress = checkpoints.restore(state)
    logger.info("resuming after step %d", int(state.step))
    return state, progress


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
