"""Sizes and options of AtomFormer."""

import dataclasses
from typing import Any, Literal

# The published sizes: width, heads, blocks, Gaussians.
SIZES = {
    "tiny": {"dim": 128, "num_heads": 4, "depth": 4, "k": 128},
    "mini": {"dim": 256, "num_heads": 8, "depth": 8, "k": 256},
    "small": {"dim": 512, "num_heads": 16, "depth": 8, "k": 128},
    "base": {"dim": 768, "num_heads": 32, "depth": 12, "k": 128},
    "large": {"dim": 1024, "num_heads": 32, "depth": 24, "k": 128},
}

HEADS = ("formation_energy", "forces", "total_energy", "total_forces", "masked", "coords", "classification")
ENERGY_HEADS = ("formation_energy", "total_energy")
FORCE_HEADS = ("forces", "total_forces")

Periodic = Literal["none", "minimum_image", "images"]
Problem = Literal["regression", "binary", "multiclass"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnergyScale:
    """How an energy head's number becomes eV: sum of the atoms' references + scale x number (x atoms, if per_atom).

    The default is the published models': the number is the energy. The scale applies to direct forces as well.
    """

    references: tuple[tuple[int, float], ...] = ()  # (atomic number, eV an atom), of every element there is
    scale: float = 1.0  # eV
    per_atom: bool = False

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be positive; got {self.scale}")
        numbers = [number for number, _ in self.references]
        if len(set(numbers)) < len(numbers) or not all(0 < number < 119 for number in numbers):
            raise ValueError(f"references must name each atomic number (1 to 118) once; got {numbers}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtomformerConfig:
    """Everything that defines the network. The defaults are the published `base` with its S2EF heads."""

    vocab_size: int = 123
    dim: int = 768
    num_heads: int = 32
    depth: int = 12
    mlp_ratio: int = 4
    k: int = 128  # Gaussians that a distance is expanded in
    dropout: float = 0.0
    gradient_checkpointing: bool = False
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    heads: tuple[str, ...] = ("formation_energy", "forces")
    conservative: bool = False  # forces and denoising as the gradient of the energy head
    num_labels: int = 1  # of the classification head
    problem: Problem = "regression"
    label_names: tuple[str, ...] = ()
    label_mean: tuple[float, ...] = ()  # the labels' units: label = mean + scale x output; empty: 0 and 1
    label_scale: tuple[float, ...] = ()
    periodic: Periodic = "none"
    cutoff: float = 6.0  # Å, of the images where periodic is "images"; nothing else is cut off
    energy: EnergyScale = EnergyScale()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "num_heads", "depth", "mlp_ratio", "k", "num_labels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.dim % self.num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim={self.dim}, num_heads={self.num_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        if not self.cutoff > 0:
            raise ValueError(f"cutoff must be positive; got {self.cutoff}")
        if unknown := [name for name in self.heads if name not in HEADS]:
            raise ValueError(f"heads must be among {', '.join(HEADS)}; got {unknown}")
        if len(set(self.heads)) < len(self.heads):
            raise ValueError(f"heads must differ; got {self.heads}")
        if self.conservative and not set(self.heads) & set(ENERGY_HEADS):
            raise ValueError(f"conservative forces need one of the heads {', '.join(ENERGY_HEADS)}; got {self.heads}")
        for name in ("label_names", "label_mean", "label_scale"):
            if len(getattr(self, name)) not in (0, self.num_labels):
                raise ValueError(f"{name} must have num_labels = {self.num_labels} entries, or none")
        if not all(scale > 0 for scale in self.label_scale):
            raise ValueError(f"label_scale must be positive; got {self.label_scale}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @property
    def energy_head(self) -> str | None:
        """The head whose energy is reported and differentiated: the total one where both are there."""
        return next((name for name in reversed(ENERGY_HEADS) if name in self.heads), None)


def model_config(size: str, **changes: Any) -> AtomformerConfig:
    """The config of a published size (tiny, mini, small, base, large), with `changes`."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}")
    return AtomformerConfig(**{**SIZES[size], **changes})
