"""Settings of training; importing this module loads no JAX."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from agedi.config import DiffusionOptions, RegressorLoss, from_keywords, parse_reference_energies
from agedi.data.config import DatasetConfig
from agedi.training.loss_shares import parse_loss_balance
from agedi.training.published import translate_settings
from matterform.config import load_values, setting
from matterform.io.files import existing
from matterform.training.config import LoopConfig, OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a model is trained, and where the run is written."""

    # optimizer, and schedule of the learning rate
    optimizer: OptimizerConfig = OptimizerConfig(optimizer="adamw", clip_norm=10.0, schedule="plateau")
    # length of the training; checkpoints are written every 20 s at most, as writing can take longer than an epoch
    loop: LoopConfig = LoopConfig(max_minutes=24 * 60.0, log_every=10, checkpoint_seconds=20.0)
    batch_size: int = 64  # number of structures per step, over all devices and processes
    accumulate: int = 1  # number of parts in which a step is computed, to save memory
    ema_decay: float | None = None  # decay per step of averaged weights, which are then saved; none: not averaged
    validation_fraction: float = setting(0.1, "val_split")  # share of the structures held out for validation
    train_fraction: float | None = setting(None, "train_split")  # share to train on; none: all not held out
    seed: int = 42  # random seed of weights, held-out structures, batches and noise
    regressor_loss: RegressorLoss = RegressorLoss()  # loss of the force field
    # shares of diffusion and force field loss, as "80:20", or the latter's share; none: use regressor_loss_weight
    loss_balance: str | float | None = None
    # energies of the elements for the force field: auto (fitted), none, or eV by element, as Cu:-3.72,O:-4.95
    reference_energies: str = "auto"
    run_dir: pathlib.Path | None = setting(None, "folder")  # folder of the run; none: the next version_N in log_dir
    log_dir: pathlib.Path = pathlib.Path("logs")  # folder of runs version_0, version_1, ...
    name: str | None = None  # folder inside log_dir for the runs; none: log_dir itself
    tensorboard: bool = True  # write TensorBoard events beside metrics.csv
    keep: int = 1  # number of checkpoints kept to resume from, besides the best one
    wandb_project: str | None = None  # project at Weights & Biases to report to; none: no report
    progress: bool = setting(True, "progress_bar")  # show a progress bar if standard error is a terminal

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1); got {self.validation_fraction}")
        if self.train_fraction is not None and not 0 < self.train_fraction <= 1 - self.validation_fraction + 1e-9:
            raise ValueError(
                "train_fraction must lie in (0, 1 - validation_fraction]; "
                f"got {self.train_fraction}, {self.validation_fraction}"
            )
        for field in ("batch_size", "accumulate", "keep"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1; got {getattr(self, field)}")
        parse_loss_balance(self.loss_balance)
        parse_reference_energies(self.reference_energies)

    @property
    def runs(self) -> pathlib.Path:
        """The folder that new runs are numbered in."""
        return self.log_dir if self.name is None else self.log_dir / self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Files of structures, and how they are prepared."""

    train: pathlib.Path | None = setting(None, "data_path")  # file of structures to train on
    # file of structures that only the force field learns from
    regressor_data: pathlib.Path | None = setting(None, "regressor_data_path")
    dataset: DatasetConfig = DatasetConfig()  # preparation of the structures


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run: its data, its model, and how it is trained."""

    data: DataConfig = DataConfig()  # structures to train on
    diffusion: DiffusionOptions = DiffusionOptions()  # settings of a new model
    fit: FitConfig = FitConfig()  # how the model is trained, and where the run is written


def train_config(values: Mapping[str, Any], base: TrainConfig | None = None) -> TrainConfig:
    """A training run from settings by name (ours or published, flat or nested), which replace those of `base`.

    Raises:
        ValueError: a name is unknown, or a value is of the wrong type or out of range.
    """
    return from_keywords(TrainConfig, translate_settings(values), base)


def fit_config(values: Mapping[str, Any], base: FitConfig | None = None) -> FitConfig:
    """Training settings from settings by name, which replace those of `base`.

    Raises:
        ValueError: a name is unknown, or a value is of the wrong type or out of range.
    """
    return from_keywords(FitConfig, translate_settings(values), base)


def load_train_config(path: pathlib.Path) -> TrainConfig:
    """A training run from a YAML file of settings.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not YAML, a key is unknown, or a value is invalid.
    """
    values = load_values(existing(path))
    try:
        return train_config(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def loop_config(training: FitConfig, batches_per_epoch: int) -> LoopConfig:
    """The training loop's settings; metrics are logged at least once per epoch."""
    every = training.loop.log_every
    every = batches_per_epoch if every is None else min(every, batches_per_epoch)
    return dataclasses.replace(training.loop, log_every=every)
