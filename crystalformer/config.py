"""Settings of CrystalFormer: its network, its weights, its training; importing this module loads no JAX."""

import dataclasses
import pathlib
from typing import Literal

from matterform.config import setting
from matterform.training.config import LoopConfig, OptimizerConfig

Generation = Literal["rotary", "absolute"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of CrystalFormer under the names of its model cards; the defaults are those of the published weights.

    `Nf` counts Fourier frequencies of a coordinate, `Kx` and `Kl` components of the coordinate and lattice mixtures,
    `n_max` slots for sites (a crystal has at most n_max - 1). `generation` says where positions enter: `rotary`
    turns queries and keys, `absolute` adds a learned table to the tokens (MP-20, code version 0.3).
    """

    Nf: int = 5  # number of Fourier frequencies of a coordinate
    Kx: int = 16  # number of components in the mixture of a coordinate
    Kl: int = 4  # number of components in the mixture of the lattice
    n_max: int = 21  # slots for sites; a crystal has at most n_max - 1
    h0_size: int = 256  # width of the first letter's MLP; 0 makes it a table
    num_layers: int = setting(16, "transformer_layers")  # number of layers (attention and MLP)
    num_heads: int = 16  # number of attention heads
    key_size: int = 64  # width of an attention head
    model_size: int = 64  # width of the layers
    embed_size: int = 32  # width of the embeddings of space groups, elements and letters
    atom_types: int = 119  # number of atom types: padding and the elements
    wyck_types: int = 28  # number of Wyckoff letters: padding, a-z, A
    dropout_rate: float = 0.1  # probability of dropout on the outputs of attention and MLP
    attn_rate: float = setting(0.1, "attn_dropout")  # probability of dropout on the weights of attention
    widening_factor: int = 4  # width of the MLP, in units of model_size
    sigmamin: float = 1e-3  # smallest width of the lattice's normal distributions
    generation: Generation = "rotary"  # form of positions; absolute for weights of MP-20, code version 0.3
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # number format of layers
    remat: bool = False  # recompute layers in the backward pass, to save memory

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
class WeightsConfig:
    """Which weights to use. Sizes are read off their shapes; give the others where they differ from the published."""

    # Weights: a .pkl, a folder of them, a run folder, or the name of a published model on this disk; by default the
    # small model that ships.
    model: pathlib.Path | None = setting(None, "checkpoint", "restore_path")
    num_heads: int | None = None  # number of attention heads, where a published file has other than 16
    key_size: int | None = None  # width of an attention head, where a published file has other than 64
    Kx: int | None = None  # components of the coordinate mixtures, where a published file has other than 16
    n_max: int | None = None  # largest number of sites plus one (rotary weights take any); by default 21
    compute_dtype: str | None = None  # number format inside the network, float32 (default) or bfloat16


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the parts of the loss; the coordinates have weight 1."""

    lamb_a: float = 1.0  # weight of the elements
    lamb_w: float = 1.0  # weight of the Wyckoff letters
    lamb_l: float = 1.0  # weight of the lattice

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative; got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run.

    `train` and `validation` are CSV files or folders that `crystalformer prepare` made. Without `validation`, a
    share `validation_fraction` of the training set is held out, drawn from `seed`.
    """

    train: pathlib.Path = setting(dataclasses.MISSING, "train_path")  # CSV of crystals, or a prepared folder
    run_dir: pathlib.Path = setting(dataclasses.MISSING, "folder")  # new folder for all results, or one to resume
    validation: pathlib.Path | None = setting(None, "valid_path")  # held-out crystals, as `train`
    validation_fraction: float = setting(0.1, "val_split")  # share of `train` held out if no `validation` is given
    transformer: TransformerConfig = TransformerConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig(epochs=100)
    batch_size: int = setting(100, "batchsize")  # crystals per step, over all devices and processes
    accumulate: int = 1  # parts in which a step is computed, one after the other, to save memory
    # decay per step of a moving average of the weights (e.g. 0.999), which is then published
    ema_decay: float | None = None
    seed: int = 42  # random seed of weights, held-out crystals, batches and dropout
    # Weights that training starts from: a .pkl, a folder of them, a run folder, or the name of a published model on
    # this disk; by default random ones.
    model: pathlib.Path | None = setting(None, "start_from", "checkpoint", "restore_path")
    publish_every: int = 50  # epochs between published files; the last epoch and the best one are always published
    keep: int = 2  # checkpoints to resume from
    workers: int = 1  # processes that read a CSV
    wandb_project: str | None = None  # report to Weights & Biases as well (extra `wandb`)

    def __post_init__(self) -> None:
        if self.validation is None and not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1); got {self.validation_fraction}")
        for name in ("batch_size", "accumulate", "publish_every", "keep", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
