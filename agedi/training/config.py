"""Settings of a training run; importing this module loads no JAX."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from agedi.config import DiffusionOptions, plain_values
from agedi.data.config import DatasetConfig
from matterform.config import from_dict, named, nested, setting, to_dict
from matterform.training.config import LoopConfig, OptimizerConfig

DEFAULT_HOURS = 24.0
CHECKPOINT_SECONDS = 20.0  # least time between checkpoints, whose writing takes longer than an epoch of a small set
PARTS = ("diffusion", "regressor")
SEPARATORS = r"(?<=[\d%\s])[:/-]"


class LossBalance(NamedTuple):
    """Shares of the two losses in the total; they sum to 1."""

    diffusion: float
    regressor: float


def parse_loss_balance(given: Any) -> LossBalance | None:
    """Shares of the losses from "80:20", "80/20", "0.8-0.2", "50%:50%", a pair, a mapping, or the regressor's share.

    Raises:
        ValueError: they are not two numbers of at least 0, or both are 0.
    """
    if given is None:
        return None
    try:
        diffusion, regressor = map(float, _two_numbers(given))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"loss_balance must be shares of diffusion and regressor, as 80:20, or the regressor's share, as 0.2; "
            f"got {given!r}"
        ) from error
    if not (diffusion >= 0 and regressor >= 0 and diffusion + regressor > 0):
        hint = "; in YAML, write 80:20 in quotes" if isinstance(given, int | float) else ""
        raise ValueError(f"shares in loss_balance must be at least 0 and not both 0; got {given!r}{hint}")
    return LossBalance(diffusion / (diffusion + regressor), regressor / (diffusion + regressor))


def _two_numbers(given: Any) -> Sequence[Any]:
    if isinstance(given, Mapping):
        if set(given) != set(PARTS):
            raise ValueError("other keys")
        return [given[part] for part in PARTS]
    if isinstance(given, str):
        parts = [part.strip().removesuffix("%") for part in re.split(SEPARATORS, given)]
        given = parts if len(parts) > 1 else float(parts[0]) / (100 if "%" in given else 1)
    if isinstance(given, int | float):
        return [1 - given, given]
    return given


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a model is trained and where the run goes."""

    epochs: int = -1  # passes over the training data; -1: until the time is up
    max_time: float | None = None  # hours, added to max_minutes; none: 24, or 0 with max_minutes; both 0: no limit
    max_minutes: float = setting(0.0, "max_time_minutes")  # of wall-clock time in this process
    learning_rate: float = setting(1e-4, "lr")  # of AdamW
    plateau_factor: float = setting(0.95, "lr_factor")  # what the learning rate is multiplied by on a plateau
    # Epochs without a lower validation loss (or training loss, without validation) that make a plateau.
    plateau_patience: int = setting(100, "lr_patience")
    weight_decay: float = 0.0  # per step, times the learning rate
    batch_size: int = setting(64, "batchsize")  # structures a step, over all devices and processes
    # Largest norm of the whole gradient; none: not clipped.
    clip_norm: float | None = setting(10.0, "gradient_clip_val", "clip_grad")
    ema_decay: float | None = None  # a step of the moving average of the weights, 0.999 say; used instead of them
    validation_fraction: float = setting(0.1, "val_split")  # share of the structures held out, drawn from `seed`
    train_fraction: float | None = setting(None, "train_split")  # share to train on; none: all that is not held out
    seed: int = 42  # of weights, held-out structures, batches and noise
    accumulate: int = 1  # parts that a step is computed in, one after another, to save memory
    log_every: int = setting(10, "log_interval")  # steps between rows of metrics, an epoch at most
    regressor_loss_weight: float = 1.0  # of energies and forces beside the diffusion loss
    loss_balance: str | float | None = None  # instead: their shares in training, as "80:20" or the regressor's share
    force_loss: Literal["mse", "mae", "huber"] = "huber"  # of the errors of forces
    huber_delta: float = 0.01  # eV/Å: larger errors count linearly
    reference_energies: str = "auto"  # fitted to the data; none; or eV by element, as Cu:-3.72,O:-4.95
    logger: Literal["tensorboard", "wandb", "csv"] = "tensorboard"  # metrics.csv is always written
    log_dir: pathlib.Path = pathlib.Path("logs")  # runs are its version_0, version_1, ...
    wandb_project: str | None = setting(None, "project")  # for logger wandb; none: agedi
    name: str | None = None  # a folder of log_dir to put runs in
    progress_bar: bool = True  # where standard error is a terminal

    def __post_init__(self) -> None:
        if self.epochs < 1 and self.epochs != -1:
            raise ValueError(f"epochs must be at least 1, or -1 for no limit; got {self.epochs}")
        if not 0 <= (self.max_time or 0.0) < math.inf or not 0 <= self.max_minutes < math.inf:
            raise ValueError(f"max_time must be at least 0; got {self.max_time} h, {self.max_minutes} min")
        if self.epochs == -1 and self.max_time == 0 == self.max_minutes:
            raise ValueError("training would never end: give epochs, max_time (hours) or max_minutes")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1); got {self.validation_fraction}")
        if self.train_fraction is not None and not 0 < self.train_fraction <= 1 - self.validation_fraction + 1e-9:
            raise ValueError(
                f"train_fraction must lie in (0, 1 - validation_fraction]; got {self.train_fraction}, "
                f"{self.validation_fraction}"
            )
        for field in ("batch_size", "accumulate", "log_every", "plateau_patience"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1; got {getattr(self, field)}")
        parse_loss_balance(self.loss_balance)
        if self.reference_energies not in ("auto", "none"):
            from agedi.data.reference_energies import parse_reference_energies

            parse_reference_energies(self.reference_energies)

    @property
    def reports_to(self) -> str | None:
        """The project of Weights & Biases to report to."""
        return (self.wandb_project or "agedi") if self.logger == "wandb" else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The files of structures to train on, and what is made of them."""

    train: pathlib.Path | None = setting(None, "data_path", "train_path")  # structures; none: given as objects
    regressor_data_path: pathlib.Path | None = None  # structures that only the force field learns from
    dataset: DatasetConfig = DatasetConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run."""

    training: FitConfig = FitConfig()
    data: DataConfig = DataConfig()
    diffusion: DiffusionOptions = DiffusionOptions()
    checkpoint: pathlib.Path | None = None  # a run to go on with: its folder, or its checkpoints/best_model


def train_config(values: Mapping[str, Any]) -> TrainConfig:
    """Settings from published names, ours or both, flat or nested; names of a list may be joined by commas.

    Raises:
        ValueError: a name is unknown or a value is of the wrong type.
    """
    return from_dict(TrainConfig, nested(TrainConfig, _plain(values)))


def given_names(values: Mapping[str, Any]) -> set[str]:
    """The fields of `TrainConfig`, nested ones too, that values as those of `train_config` set."""
    return set(_leaves(nested(TrainConfig, _plain(values))))


def _leaves(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield name


def fit_config(values: Mapping[str, Any], before: FitConfig | None = None) -> FitConfig:
    """Settings of the training by name, in place of those of `before`.

    Raises:
        ValueError: a name is unknown or a value is of the wrong type.
    """
    return from_dict(FitConfig, to_dict(before or FitConfig()) | named(FitConfig, _plain(values)))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = plain_values(values)
    if isinstance(plain.get("loss_balance"), Mapping | list | tuple):
        shares = parse_loss_balance(plain["loss_balance"])
        plain["loss_balance"] = None if shares is None else f"{shares.diffusion}:{shares.regressor}"
    return plain


def loop_config(training: FitConfig, batches_per_epoch: int) -> LoopConfig:
    """When to stop and what to do how often."""
    hours = training.max_time
    if hours is None:
        hours = 0.0 if training.max_minutes else DEFAULT_HOURS
    minutes = 60 * hours + training.max_minutes
    return LoopConfig(
        epochs=None if training.epochs == -1 else training.epochs,
        max_minutes=minutes or None,
        log_every=min(training.log_every, batches_per_epoch),
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )


def optimizer_config(training: FitConfig) -> OptimizerConfig:
    """AdamW with the rate lowered on plateaus."""
    return OptimizerConfig(
        optimizer="adamw",
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        schedule="plateau",
        plateau_factor=training.plateau_factor,
        plateau_patience=training.plateau_patience,
    )
