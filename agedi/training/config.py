"""Every option of training, and what a run's hparams.yaml keeps of them."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import numpy as np

from agedi.checkpoint import HPARAMS, load_hparams
from agedi.config import DiffusionConfig, split_names
from agedi.data.config import EXTENSIVE
from agedi.data.reference_energies import parse_reference_energies
from agedi.training.loss_balance import parse_loss_balance
from matterform.config import from_dict, load_config, to_dict
from matterform.training.config import LoopConfig, OptimizerConfig

Part = TypeVar("Part", "FitConfig", "DataConfig", "ModelOptions")

DEFAULT_HOURS = 24.0
CHECKPOINT_SECONDS = 20.0  # least time between checkpoints, whose writing takes longer than an epoch of a small set


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a model is trained and where the run goes."""

    epochs: int = -1  # -1: until the time is up
    max_time: float | None = None  # hours, added to max_time_minutes; by default 24 without any; both 0: no limit
    max_time_minutes: float = 0.0
    lr: float = 1e-4  # of AdamW
    lr_factor: float = 0.95  # the rate is multiplied by it
    lr_patience: int = 100  # after so many epochs without a lower validation loss (without validation: training loss)
    weight_decay: float = 0.0
    batch_size: int = 64
    gradient_clip_val: float | None = 10.0  # largest norm of the gradient
    ema_decay: float | None = None  # a step of the moving average of the weights, 0.999 say; used instead of them
    val_split: float = 0.1  # share of the structures held out for validation, drawn from `seed`
    train_split: float | None = None  # share to train on; by default all others
    seed: int = 42
    accumulate: int = 1  # parts that a step is computed in, one after another, to save memory
    log_interval: int = 10  # steps between rows of metrics, an epoch at most
    regressor_loss_weight: float = 1.0  # of energies and forces beside the diffusion loss
    loss_balance: str | float | None = None  # instead: their shares in training, as "80:20" or the regressor's share
    force_loss: Literal["mse", "mae", "huber"] = "huber"
    huber_delta: float = 0.01  # eV/Å
    reference_energies: str = "auto"  # fitted to the data; none; or eV by element, as Cu:-3.72,O:-4.95
    logger: Literal["tensorboard", "wandb", "csv"] = "tensorboard"  # metrics.csv is always written
    log_dir: pathlib.Path = pathlib.Path("logs")  # runs are its version_0, version_1, ...
    project: str = "agedi"  # of Weights & Biases
    name: str | None = None  # a folder of log_dir to put runs in
    progress_bar: bool = True  # where standard error is a terminal

    def __post_init__(self) -> None:
        if self.epochs < 1 and self.epochs != -1:
            raise ValueError(f"epochs must be at least 1, or -1 for no limit; got {self.epochs}")
        if not 0 <= (self.max_time or 0.0) < math.inf or not 0 <= self.max_time_minutes < math.inf:
            raise ValueError(f"max_time must be at least 0; got {self.max_time} h, {self.max_time_minutes} min")
        if self.epochs == -1 and self.max_time == 0 == self.max_time_minutes:
            raise ValueError("training would never end: give epochs, max_time (hours) or max_time_minutes")
        if not 0 <= self.val_split < 1:
            raise ValueError(f"val_split must lie in [0, 1); got {self.val_split}")
        if self.train_split is not None and not 0 < self.train_split <= 1 - self.val_split + 1e-9:
            raise ValueError(f"train_split must lie in (0, 1 - val_split]; got {self.train_split}, {self.val_split}")
        for field in ("batch_size", "accumulate", "log_interval", "lr_patience"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1; got {getattr(self, field)}")
        parse_loss_balance(self.loss_balance)
        parse_reference_energies(self.reference_energies)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where structures come from and what is made of them."""

    data_path: pathlib.Path | None = None  # a file of structures; None: they were given as objects
    regressor_data_path: pathlib.Path | None = None  # a file of structures that only the force field learns from
    mask: Literal["none", "MaskFixed"] = "none"  # MaskFixed: what FixAtoms fixes stays where it is
    confinement: tuple[float, float] | None = None  # z_min, z_max (Å) that hold all atoms that are not fixed
    canonical_cell: bool = False  # turns structures so that their cells are lower triangular
    repeat: int | None = None  # copies up to repeat x repeat x 1 cells join the data
    repeat_epoch: int | None = None  # every so many epochs, one size more
    extensive: tuple[str, ...] = EXTENSIVE  # properties that grow with the number of atoms


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What `create_diffusion` takes."""

    noisers: tuple[str, ...] = ("CellPositions",)  # Positions, CellPositions, ConfinedCellPositions, Types
    sde: Literal["ve", "vp"] | None = None  # vp only for Positions, which have it by default
    model: Literal["PaiNN"] = "PaiNN"
    cutoff: float | None = None  # Å; 6 by default
    feature_size: int = 64
    n_blocks: int = 4
    n_rbf: int = 30
    n_classes: int | None = None  # most species that Types may find in the data
    conditioning: tuple[str, ...] = ()  # names of properties
    conditioning_type: tuple[str, ...] = ("scalar",)  # scalar, integer or node; one for all, or one each
    condition_dropout: float = 0.2
    force_field: bool = False  # learn energies and forces too
    conservative_forces: bool = False  # forces as -dE/dx
    loss_scaling: tuple[float, ...] = ()  # a weight for each noiser
    schedule: Literal["linear", "exponential", "cosine"] | None = None
    sigma_min: float = 0.01  # Å, ve
    sigma_max: float | None = None  # Å, ve; by default from the data
    walls: Literal["reflected", "truncated"] = "reflected"
    eps: float = 1e-5  # smallest diffusion time in training


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(ModelOptions, DataConfig, FitConfig):
    """A whole training run in one list of options, as YAML files and the command line have it."""

    checkpoint: pathlib.Path | None = None  # a run to go on with: its folder, or its checkpoints/best_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's hparams.yaml says."""

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
        return "what was given" if self.data.data_path is None else str(self.data.data_path)

    @property
    def keep(self) -> int:
        """How many checkpoints stay besides the best."""
        return 1

    @property
    def wandb_project(self) -> str | None:
        """Where to report to."""
        return self.training.project if self.training.logger == "wandb" else None


def train_config(values: Mapping[str, Any]) -> TrainConfig:
    """Options by name; one word, or words joined by commas, serve where several are expected.

    Raises:
        ValueError: a name is unknown or a value is of the wrong type.
    """
    plain = _plain_options(values)
    for name in ("noisers", "conditioning", "conditioning_type", "extensive"):
        if plain.get(name) is not None:
            plain[name] = list(split_names(plain[name]))
    return from_dict(TrainConfig, plain)


def fit_config(values: Mapping[str, Any], before: FitConfig | None = None) -> FitConfig:
    """Options of training by name, in place of those of `before`.

    Raises:
        ValueError: a name is unknown or a value is of the wrong type.
    """
    return from_dict(FitConfig, {**({} if before is None else to_dict(before)), **_plain_options(values)})


def _plain_options(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: _plain(value) for name, value in values.items()}
    balance = plain.get("loss_balance")
    if isinstance(balance, Mapping | list | tuple):
        shares = parse_loss_balance(balance)
        plain["loss_balance"] = None if shares is None else f"{shares.diffusion}:{shares.regressor}"
    return plain


def _plain(value: Any) -> Any:
    """Paths as text, NumPy's numbers and arrays as Python's."""
    if isinstance(value, pathlib.Path):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def load_run(run_dir: pathlib.Path) -> Run:
    """What a run says of itself."""
    load_hparams(run_dir)  # which explains what the folder is where it is no run
    return load_config(Run, run_dir / HPARAMS)


def loop_config(training: FitConfig, batches_per_epoch: int) -> LoopConfig:
    """When to stop and what to do how often."""
    hours = training.max_time
    if hours is None:
        hours = 0.0 if training.max_time_minutes else DEFAULT_HOURS
    minutes = 60 * hours + training.max_time_minutes
    return LoopConfig(
        epochs=None if training.epochs == -1 else training.epochs,
        max_minutes=minutes or None,
        log_every=min(training.log_interval, batches_per_epoch),
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )


def optimizer_config(training: FitConfig) -> OptimizerConfig:
    """AdamW with the rate lowered on plateaus."""
    return OptimizerConfig(
        optimizer="adamw",
        learning_rate=training.lr,
        weight_decay=training.weight_decay,
        clip_norm=training.gradient_clip_val,
        schedule="plateau",
        plateau_factor=training.lr_factor,
        plateau_patience=training.lr_patience,
    )


def part_of(kind: type[Part], options: TrainConfig) -> Part:
    """The options that are fields of `kind`."""
    return kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)})  # pyright: ignore
