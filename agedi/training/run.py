"""The hparams.yaml of a run, and the folder it is in."""

import dataclasses
import pathlib

import jax

from agedi.checkpoint import BEST, HPARAMS, LAST, load_hparams
from agedi.config import DiffusionConfig, from_keywords
from agedi.training.config import DataConfig, FitConfig, fit_config
from matterform.config import from_dict, load_values, to_dict
from matterform.training.run import RunFiles

FILES = RunFiles(HPARAMS, f"checkpoints/{LAST}", f"checkpoints/{BEST}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The contents of the hparams.yaml of a run."""

    run_dir: pathlib.Path
    training: FitConfig
    data: DataConfig
    diffusion: DiffusionConfig
    n_training_data: int
    n_validation_data: int
    n_parameters: int


def load_run(run_dir: pathlib.Path) -> Run:
    """Reads the hparams.yaml of a run.

    Raises:
        FileNotFoundError: the run folder does not exist.
        ValueError: the folder is not a run of AGeDi, or its hparams.yaml is damaged.
    """
    load_hparams(run_dir)  # explains what the folder is if it is not a run
    values = load_values(run_dir / HPARAMS)
    try:
        # Runs of earlier versions have the same settings under published names, and not nested.
        training = fit_config(values.get("training") or {})
        data = from_keywords(DataConfig, values.get("data") or {})
        return from_dict(Run, values | {"training": to_dict(training), "data": to_dict(data)})
    except ValueError as error:
        raise ValueError(f"{run_dir / HPARAMS}: {error}") from error


def next_version(folder: pathlib.Path) -> pathlib.Path:
    """The first of version_0, version_1, ... after those that exist."""
    taken = [path.name.removeprefix("version_") for path in folder.glob("version_*")]
    return folder / f"version_{max((int(number) for number in taken if number.isdecimal()), default=-1) + 1}"


def claim_version(run: Run) -> Run:
    """Creates the folder of a new run; if another run has taken it in the meantime, the next version."""
    while jax.process_count() == 1:  # several processes must agree, so they keep the folder they have
        try:
            run.run_dir.mkdir(parents=True)
            break
        except FileExistsError:
            run = dataclasses.replace(run, run_dir=next_version(run.run_dir.parent))
    return run
