"""Sizes of the network and how it computes; which weights to use."""

import dataclasses
import pathlib
from typing import Literal

Generation = Literal["rotary", "absolute"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of CrystalFormer under the names of its model cards; the defaults are those of the published weights.

    `Nf` counts Fourier frequencies of a coordinate, `Kx` and `Kl` components of the coordinate and lattice mixtures,
    `n_max` slots for sites (a crystal has at most n_max - 1). `generation` says where positions enter: `rotary`
    turns queries and keys, `absolute` adds a learned table to the tokens (MP-20, code version 0.3).
    """

    Nf: int = 5
    Kx: int = 16
    Kl: int = 4
    n_max: int = 21
    h0_size: int = 256  # width of the first letter's MLP; 0 makes it a table
    num_layers: int = 16
    num_heads: int = 16
    key_size: int = 64
    model_size: int = 64
    embed_size: int = 32
    atom_types: int = 119
    wyck_types: int = 28
    dropout_rate: float = 0.1  # on the outputs of attention and MLP
    attn_rate: float = 0.1  # on the weights of attention
    widening_factor: int = 4  # width of the MLP over model_size
    sigmamin: float = 1e-3  # least width of the lattice's normal distributions
    generation: Generation = "rotary"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of the layers; parameters stay float32
    remat: bool = False  # compute layers again in the backward pass, to save memory

    def __post_init__(self) -> None:
        positive = ("Nf", "Kx", "Kl", "num_layers", "num_heads", "key_size", "model_size", "embed_size")
        for name in (*positive, "widening_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.n_max < 2:
            raise ValueError(f"n_max must be at least 2 (one site and one padding slot); got {self.n_max}")
        if self.h0_size < 0:
            raise ValueError(f"h0_size must be 0 (a table) or a width; got {self.h0_size}")
        if not 2 <= self.atom_types <= 119:
            raise ValueError(f"atom_types must lie in 2..119 (padding and the elements); got {self.atom_types}")
        if not 2 <= self.wyck_types <= 28:
            raise ValueError(f"wyck_types must lie in 2..28 (padding and the letters a-z, A); got {self.wyck_types}")
        if self.generation == "rotary" and self.key_size % 2:
            raise ValueError(f"key_size must be even to be rotated in halves; got {self.key_size}")
        for name in ("dropout_rate", "attn_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a probability in [0, 1); got {getattr(self, name)}")
        for name, choices in (("generation", ("rotary", "absolute")), ("compute_dtype", ("float32", "bfloat16"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if not self.sigmamin > 0:
            raise ValueError(f"sigmamin must be positive; got {self.sigmamin}")

    @property
    def output_size(self) -> int:
        """Columns of the network's output: the widest of its heads."""
        return max(self.atom_types + 13 * self.Kl, 3 * self.Kx, self.wyck_types)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Which weights to use. Sizes are read off them; give what they do not tell if it differs from the published."""

    checkpoint: pathlib.Path | None = None  # a published or own .pkl; by default the small model that ships
    num_heads: int | None = None  # of a published file: the tree tells only num_heads x key_size
    key_size: int | None = None
    Kx: int | None = None  # components of the coordinate mixtures
    n_max: int | None = None  # slots for sites (rotary weights take any number)
    compute_dtype: str | None = None  # float32 or bfloat16
