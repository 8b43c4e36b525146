"""What describes a diffusion model: everything that `hparams.yaml` keeps besides the weights."""

import dataclasses
import math
from typing import Literal

NOISERS = ("Positions", "CellPositions", "ConfinedCellPositions", "Types")
POSITION_NOISERS = NOISERS[:3]
MAX_ATOMIC_NUMBER = 118


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the PaiNN network."""

    feature_size: int = 64
    n_blocks: int = 4
    n_rbf: int = 30
    cutoff: float = 6.0  # Å

    def __post_init__(self) -> None:
        for name in ("feature_size", "n_blocks", "n_rbf", "cutoff"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """A property that samples can be asked for, and how its values enter the network."""

    name: str
    kind: Literal["scalar", "integer", "node"] = "scalar"  # one number, one class, or a number per atom
    mean: float = 0.0  # of the training data; scalar and node values are standardised
    std: float = 1.0
    num_classes: int = 200  # integer only: values 0 ... num_classes - 1
    extensive: bool = False  # grows with the number of atoms, so repeated cells multiply it


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForceFieldConfig:
    """The energy and forces head on the shared backbone."""

    conservative: bool = False  # forces as -dE/dx instead of from a head of their own
    reference_energies: tuple[tuple[int, float], ...] = ()  # (atomic number, eV), added to the head's energy
    energy_scale: float = 1.0  # eV an atom: unit of the head's output


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Noisers, their processes, the network, and what it is conditioned on."""

    noisers: tuple[str, ...] = ("CellPositions",)
    sde: Literal["ve", "vp"] = "ve"  # of positions; vp only for Positions
    schedule: Literal["linear", "exponential", "cosine"] | None = None  # None: exponential for ve, cosine for vp
    sigma_min: float = 0.01  # Å, ve
    sigma_max: float | None = None  # Å, ve; None: chosen from the training data, so that t = 1 is the prior
    beta_min: float = 0.1  # vp
    beta_max: float = 20.0
    walls: Literal["reflected", "truncated"] = "reflected"  # forward noise between the walls of a confinement
    species: tuple[int, ...] = ()  # atomic numbers of the training data, increasing; what Types draws from
    loss_scaling: tuple[float, ...] = ()  # weight of each noiser's loss; () is 1 each
    eps: float = 1e-5  # smallest diffusion time in training
    model: ModelConfig = ModelConfig()
    conditions: tuple[ConditionConfig, ...] = ()
    condition_dropout: float = 0.2  # share of training structures that see no property, for guidance
    force_field: ForceFieldConfig | None = None
    confinement: tuple[float, float] | None = None  # z_min, z_max (Å) of the training data
    cell: tuple[float, ...] | None = None  # nine numbers (Å), rows are vectors, where all training structures share it
    pbc: tuple[bool, bool, bool] | None = None  # of the training structures, where all share it

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
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must lie between 0 and 1; got {self.eps}")
        if not 0 < self.beta_min < self.beta_max < math.inf:
            raise ValueError(f"expected 0 < beta_min < beta_max; got {self.beta_min}, {self.beta_max}")
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout must lie in [0, 1); got {self.condition_dropout}")
        if "ConfinedCellPositions" in self.noisers and self.confinement is None:
            raise ValueError("ConfinedCellPositions needs a confinement: z_min and z_max in angstrom")
        if self.confinement is not None and not self.confinement[0] < self.confinement[1]:
            raise ValueError(f"confinement must be z_min < z_max; got {self.confinement}")


def position_noiser(config: DiffusionConfig) -> str | None:
    """The name of the noiser that moves positions, if any."""
    return next((name for name in config.noisers if name in POSITION_NOISERS), None)


def diffuses_types(config: DiffusionConfig) -> bool:
    """Whether species are drawn too."""
    return "Types" in config.noisers
