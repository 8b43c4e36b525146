"""A run's folder, logs/version_N, and what its hparams.yaml keeps."""

import dataclasses
import pathlib

import jax

from agedi.checkpoint import BEST, HPARAMS, LAST, load_hparams
from agedi.config import DiffusionConfig
from agedi.training.config import DataConfig, FitConfig
from matterform.config import from_dict, load_values, nested
from matterform.training.run import RunFiles

FILES = RunFiles(HPARAMS, f"checkpoints/{LAST}", f"checkpoints/{BEST}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The content of a run's hparams.yaml."""

    run_dir: pathlib.Path
    training: FitConfig
    data: DataConfig
    diffusion: DiffusionConfig
    n_training_data: int
    n_validation_data: int
    n_parameters: int

    @property
    def train(self) -> str:
        """Where the data come from, for messages."""
        return "what was given" if self.data.train is None else str(self.data.train)

    @property
    def keep(self) -> int:
        """How many checkpoints stay besides the best."""
        return 1

    @property
    def wandb_project(self) -> str | None:
        """Where to report to."""
        return self.training.reports_to


def load_run(run_dir: pathlib.Path) -> Run:
    """What the hparams.yaml of a run says; also those of earlier versions of matterform are understood.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it is no run of AGeDi, or its hparams.yaml is damaged.
    """
    load_hparams(run_dir)  # which explains what the folder is where it is no run
    path = run_dir / HPARAMS
    values = load_values(path)
    try:
        return from_dict(Run, values | {"data": nested(DataConfig, values["data"])} if "data" in values else values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def next_version(folder: pathlib.Path) -> pathlib.Path:
    """The first of version_0, version_1, ... after those that are there."""
    taken = [path.name.removeprefix("version_") for path in folder.glob("version_*")]
    return folder / f"version_{max((int(number) for number in taken if number.isdecimal()), default=-1) + 1}"


def claim_version(run: Run) -> Run:
    """The run in a folder that is now its own, whatever other runs have begun meanwhile."""
    while jax.process_count() == 1:  # several processes must agree, and take the one they have
        try:
            run.run_dir.mkdir(parents=True)
            break
        except FileExistsError:
            run = dataclasses.replace(run, run_dir=next_version(run.run_dir.parent))
    return run
