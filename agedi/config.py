"""Configuration of a diffusion model, as stored in `hparams.yaml` next to the weights."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from matterform.config import from_dict, nested, setting, to_dict

Settings = TypeVar("Settings")

NOISERS = ("Positions", "CellPositions", "ConfinedCellPositions", "Types")
POSITION_NOISERS = NOISERS[:3]
ReferenceEnergies = str | Mapping[str | int, float]  # "auto", "none", "Cu:-3.72,O:-4.95", or eV by element
NAMES = ("noisers", "conditioning", "conditioning_type", "extensive")  # settings that are lists of names


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the PaiNN network."""

    feature_size: int = 64  # number of features per atom
    n_blocks: int = 4  # number of message-passing blocks
    n_rbf: int = 30  # number of radial basis functions of the distance
    cutoff: float = 6.0  # radius within which atoms are neighbors, Å

    def __post_init__(self) -> None:
        for name in ("feature_size", "n_blocks", "n_rbf", "cutoff"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """A property that the model is conditioned on, and how its values enter the network."""

    name: str
    kind: Literal["scalar", "integer", "node"] = "scalar"  # one number, one class, or one number per atom
    mean: float = 0.0  # mean of the training data in the property's unit; scalar and node values are standardised
    std: float = 1.0  # standard deviation of the training data, in the property's unit
    num_classes: int = 200  # integer only: values 0 ... num_classes - 1
    extensive: bool = False  # grows with the number of atoms, so repeated cells multiply it


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForceFieldConfig:
    """The energy and forces head on the shared backbone."""

    conservative: bool = False  # compute forces as -dE/dx instead of by a separate head
    reference_energies: tuple[tuple[int, float], ...] = ()  # (atomic number, eV), added to the head's energy
    energy_scale: float = 1.0  # unit of the head's output, eV per atom


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Noisers, their processes, the network, and the properties it is conditioned on."""

    noisers: tuple[str, ...] = ("CellPositions",)
    sde: Literal["ve", "vp"] = "ve"  # noise process of positions; vp only for Positions
    schedule: Literal["linear", "exponential", "cosine"] | None = None  # None: exponential for ve, cosine for vp
    sigma_min: float = 0.01  # smallest noise of sde ve, Å
    sigma_max: float | None = None  # largest noise of sde ve, Å; None: chosen from the data, so that t = 1 is the prior
    beta_min: float = 0.1  # noise rate of sde vp at t = 0
    beta_max: float = 20.0  # noise rate of sde vp at t = 1
    walls: Literal["reflected", "truncated"] = "reflected"  # forward noise between the walls of a confinement
    species: tuple[int, ...] = ()  # atomic numbers of the training data, increasing; Types samples from these
    loss_scaling: tuple[float, ...] = ()  # weight of each noiser's loss; (): all 1
    # smallest diffusion time in training, as a fraction of the whole
    smallest_time: float = setting(1e-5, "eps")
    model: ModelConfig = ModelConfig()
    conditions: tuple[ConditionConfig, ...] = ()
    condition_dropout: float = 0.2  # share of training examples whose property is hidden, for guidance
    force_field: ForceFieldConfig | None = None
    confinement: tuple[float, float] | None = None  # z_min and z_max (Å) of the training data
    # nine numbers (Å), rows are lattice vectors, if all structures have the same cell
    cell: tuple[float, ...] | None = None
    pbc: tuple[bool, bool, bool] | None = None  # periodic directions, if all structures have the same

    def __post_init__(self) -> None:
        if not self.noisers:
            raise ValueError(f"noisers must name at least one of {', '.join(NOISERS)}; got none")
        for name in self.noisers:
            if name not in NOISERS:
                raise ValueError(f"noisers must be among {', '.join(NOISERS)}; got {name!r}")
        if len(set(self.noisers)) < len(self.noisers):
            raise ValueError(f"every noiser may be named once; got {', '.join(self.noisers)}")
        positions = [name for name in self.noisers if name in POSITION_NOISERS]
        if len(positions) > 1:
            raise ValueError(f"only one noiser may move positions; got {', '.join(positions)}")
        if self.sde == "vp" and positions and positions != ["Positions"]:
            raise ValueError(
                f"sde vp shrinks positions towards an origin, which a periodic cell does not have; "
                f"use sde ve with {positions[0]}"
            )
        if self.loss_scaling and len(self.loss_scaling) != len(self.noisers):
            raise ValueError(f"loss_scaling needs {len(self.noisers)} numbers; got {self.loss_scaling}")
        largest = math.inf if self.sigma_max is None else self.sigma_max
        if not 0 < self.sigma_min < largest or self.sigma_max == math.inf:
            raise ValueError(f"expected 0 < sigma_min < sigma_max; got {self.sigma_min}, {self.sigma_max}")
        if not 0 < self.smallest_time < 1:
            raise ValueError(f"smallest_time must lie between 0 and 1; got {self.smallest_time}")
        if not 0 < self.beta_min < self.beta_max < math.inf:
            raise ValueError(f"expected 0 < beta_min < beta_max; got {self.beta_min}, {self.beta_max}")
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout must lie in [0, 1); got {self.condition_dropout}")
        if "ConfinedCellPositions" in self.noisers and self.confinement is None:
            raise ValueError("ConfinedCellPositions needs a confinement: z_min and z_max in angstrom")
        if self.confinement is not None and not self.confinement[0] < self.confinement[1]:
            raise ValueError(f"confinement must be z_min < z_max; got {self.confinement}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressorLoss:
    """Weights and error measures of the force field loss."""

    regressor_loss_weight: float = 1.0  # weight of energy and forces together, relative to the diffusion loss
    energy_loss: Literal["mse", "mae", "huber"] = "mse"  # error measure of energies per atom (eV)
    force_loss: Literal["mse", "mae", "huber"] = "huber"  # error measure of force components (eV/Å)
    huber_delta: float = 0.01  # huber: smaller errors are squared; eV/Å for forces, eV per atom for energies
    energy_weight: float = 1.0  # weight of the energies in the force field loss
    force_weight: float = 1.0  # weight of the forces in the force field loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionOptions:
    """Settings of a new model. Together with the training data they determine its `DiffusionConfig`."""

    # noisers of the diffusion: Positions, CellPositions, ConfinedCellPositions, Types; repeated or joined by commas
    noisers: tuple[str, ...] = DiffusionConfig.noisers
    sde: Literal["ve", "vp"] | None = None  # noise process of positions; none: vp for Positions, ve for all others
    architecture: Literal["PaiNN"] = setting("PaiNN", "model")  # network of the score model
    cutoff: float | None = ModelConfig.cutoff  # radius within which atoms are neighbors, Å
    feature_size: int = ModelConfig.feature_size  # number of features per atom
    n_blocks: int = ModelConfig.n_blocks  # number of message-passing blocks
    n_rbf: int = ModelConfig.n_rbf  # number of radial basis functions of the distance
    n_classes: int | None = None  # largest number of elements that the data may contain; none: any number
    conditioning: tuple[str, ...] = ()  # properties to condition on; repeated or joined by commas
    # scalar, integer or node (one number per atom): one for all properties, or one for each
    conditioning_type: tuple[str, ...] = ("scalar",)
    # share of training examples whose property is hidden, for guidance
    condition_dropout: float = DiffusionConfig.condition_dropout
    force_field: bool = False  # also learn energies and forces
    conservative_forces: bool = ForceFieldConfig.conservative  # compute forces as -dE/dx, not by a separate head
    loss_scaling: tuple[float, ...] = DiffusionConfig.loss_scaling  # weight of each noiser's loss; none: all 1
    # noise as a function of diffusion time; none: exponential for sde ve, cosine for vp
    noise_schedule: Literal["linear", "exponential", "cosine"] | None = setting(None, "schedule")
    sigma_min: float = DiffusionConfig.sigma_min  # smallest noise of sde ve, Å
    sigma_max: float | None = DiffusionConfig.sigma_max  # largest noise of sde ve, Å; none: from the training data
    beta_min: float = DiffusionConfig.beta_min  # noise rate of sde vp at t = 0
    beta_max: float = DiffusionConfig.beta_max  # noise rate of sde vp at t = 1
    walls: Literal["reflected", "truncated"] = DiffusionConfig.walls  # noise between the walls of a confinement
    species: tuple[int, ...] = DiffusionConfig.species  # atomic numbers to learn; none given: those of the data
    # smallest diffusion time in training, as a fraction of the whole
    smallest_time: float = setting(DiffusionConfig.smallest_time, "eps")


def position_noiser(config: DiffusionConfig) -> str | None:
    """The name of the noiser that moves positions, if any."""
    return next((name for name in config.noisers if name in POSITION_NOISERS), None)


def diffuses_types(config: DiffusionConfig) -> bool:
    """Whether the model generates species too."""
    return "Types" in config.noisers


def parse_reference_energies(given: ReferenceEnergies) -> tuple[tuple[int, float], ...] | None:
    """Energies (eV) by atomic number, from "Cu:-3.72,O:-4.95" or a mapping; () for "none", None for "auto".

    Raises:
        ValueError: a symbol is not an element, or an energy is not a number.
    """
    from matterform.elements import atomic_number

    if given in ("auto", "none"):
        return None if given == "auto" else ()
    pairs: list[tuple[str | int, Any]]
    if isinstance(given, str):
        pairs = [(symbol.strip(), value) for symbol, _, value in (part.partition(":") for part in given.split(","))]
    else:
        pairs = list(given.items())
    try:
        energies = {
            symbol if isinstance(symbol, int) else atomic_number(symbol): float(value) for symbol, value in pairs
        }
    except ValueError as error:
        raise ValueError(
            f"reference_energies must be auto, none or eV by element, as Cu:-3.72,O:-4.95; got {given}"
        ) from error
    return tuple(sorted(energies.items()))


def from_keywords(cls: type[Settings], values: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Builds a dataclass of settings from keywords, which replace those of `base` (default: the class's defaults).

    A keyword is a field of `cls` or of a dataclass nested in it, or a published alias of one. Values may be paths,
    NumPy values, comma-joined names, and mappings for nested dataclasses.

    Raises:
        ValueError: a keyword is unknown or given twice, or its value is of the wrong type or out of range.
    """
    return from_dict(cls, _merged(to_dict(cls() if base is None else base), nested(cls, plain_values(values))))


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Python keywords as YAML would give them: no paths, no NumPy values, and lists of names instead of joined ones."""
    plain = {name: _plain(value) for name, value in values.items()}
    return plain | {name: list(split_names(plain[name])) for name in NAMES if plain.get(name) is not None}


def _merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain values, updated with those of `changes`."""
    return values | {
        name: _merged(values[name], value) if isinstance(value, Mapping) and isinstance(values[name], dict) else value
        for name, value in changes.items()
    }


def split_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names given one by one or joined by commas; "none" stands for no name."""
    parts = [names] if isinstance(names, str) else list(names)
    found = [name.strip() for part in parts for name in part.split(",")]
    return tuple(name for name in found if name and name.lower() != "none")


def _plain(value: Any) -> Any:
    """Paths as strings, NumPy numbers and arrays as those of Python."""
    if isinstance(value, pathlib.Path):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
