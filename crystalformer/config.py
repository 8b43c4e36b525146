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

    `generation` is the kind of position encoding: `rotary` rotates queries and keys, `absolute` adds a learned table
    to the tokens (MP-20, code version 0.3).
    """

    Nf: int = 5  # number of Fourier frequencies of a coordinate
    Kx: int = 16  # number of components in the mixture of a coordinate
    Kl: int = 4  # number of components in the mixture of the lattice
    n_max: int = 21  # number of slots for sites; a crystal has at most n_max - 1 sites
    h0_size: int = 256  # width of the MLP that predicts the first Wyckoff letter; 0 uses a table instead
    num_layers: int = setting(16, "transformer_layers")  # number of transformer layers
    num_heads: int = 16  # number of attention heads
    key_size: int = 64  # width of each attention head
    model_size: int = 64  # width of the transformer layers (channels per token)
    embed_size: int = 32  # width of the embeddings of space groups, elements and letters
    atom_types: int = 119  # number of atom types, including padding
    wyck_types: int = 28  # number of Wyckoff letters (a-z, A), including padding
    dropout_rate: float = 0.1  # dropout probability after attention and MLP
    attn_rate: float = setting(0.1, "attn_dropout")  # dropout probability of attention weights
    widening_factor: int = 4  # width of the MLP as a multiple of model_size
    sigmamin: float = 1e-3  # smallest standard deviation in the lattice mixture, Å and radian
    generation: Generation = "rotary"  # position encoding; absolute for MP-20 weights of version 0.3
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # floating-point type of the layers
    remat: bool = False  # recompute layers in the backward pass to save memory

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
    """Weights to load; the other fields are needed only if they differ from the published values."""

    # Weights: a .pkl, a folder of them, a run folder, or the name of a published model on this disk; by default the
    # small model that comes with the package.
    model: pathlib.Path | None = setting(None, "checkpoint", "restore_path")
    num_heads: int | None = None  # number of attention heads, if not 16
    key_size: int | None = None  # width of each attention head, if not 64
    Kx: int | None = None  # number of components of the coordinate mixtures, if not 16
    n_max: int | None = None  # largest number of sites plus one; free for rotary weights; by default 21
    compute_dtype: str | None = None  # floating-point type of the layers: float32 (default) or bfloat16


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the parts of the loss; the coordinates have weight 1."""

    lamb_a: float = 1.0  # weight of the elements in the loss
    lamb_w: float = 1.0  # weight of the Wyckoff letters in the loss
    lamb_l: float = 1.0  # weight of the lattice in the loss

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative; got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run.

    `train` and `validation` are CSV files or folders written by `crystalformer prepare`. Without `validation`, a
    random fraction `validation_fraction` of the training set is held out.
    """

    train: pathlib.Path = setting(dataclasses.MISSING, "train_path")  # CSV of crystals, or a prepared folder
    run_dir: pathlib.Path = setting(dataclasses.MISSING, "folder")  # new folder for all results, or one to resume
    validation: pathlib.Path | None = setting(None, "valid_path")  # held-out crystals: CSV or prepared folder
    validation_fraction: float = setting(0.1, "val_split")  # held-out fraction if `validation` is not given
    transformer: TransformerConfig = TransformerConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig(epochs=100)
    batch_size: int = setting(100, "batchsize")  # crystals per step on all devices together
    accumulate: int = 1  # number of parts into which each step is split to save memory
    # decay per step of a moving average of the weights (e.g. 0.999), published instead of them; none: no average
    ema_decay: float | None = None
    seed: int = 42  # random seed of weights, held-out crystals, batches and dropout
    # Initial weights: a .pkl, a folder of them, a run folder, or the name of a published model on
    # this disk; by default random.
    model: pathlib.Path | None = setting(None, "start_from", "checkpoint", "restore_path")
    publish_every: int = 50  # epochs between published files; the last epoch and the best one are always published
    keep: int = 2  # number of checkpoints that are kept to resume from
    workers: int = 1  # number of processes that read a CSV
    wandb_project: str | None = None  # report to Weights & Biases as well (extra `wandb`)

    def __post_init__(self) -> None:
        if self.validation is None and not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1); got {self.validation_fraction}")
        for name in ("batch_size", "accumulate", "publish_every", "keep", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
