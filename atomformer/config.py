"""Settings of AtomFormer: its network, its losses, its training; importing this module loads no JAX."""

import dataclasses
import pathlib
from typing import Any, Literal

from matterform.config import setting
from matterform.training.config import LoopConfig, OptimizerConfig

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

CLEAN_TERMS = ("formation_energy", "total_energy", "forces", "relaxed_coords", "labels")
CORRUPTED_TERMS = ("masked", "denoising")

Periodic = Literal["none", "minimum_image", "images"]
Problem = Literal["regression", "binary", "multiclass"]
Task = Literal["SMP", "RES", "MSP", "LEP", "PPI", "LBA", "PSR", "RSR"]  # of ATOM3D; see `prediction.metrics.ATOM3D`


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnergyScale:
    """How an energy head's number becomes eV: sum of the atoms' references + scale x number (x atoms, if per_atom).

    The default is the published models': the number is the energy. The scale applies to direct forces as well.
    """

    references: tuple[tuple[int, float], ...] = ()  # (atomic number, eV an atom), of every element there is
    scale: float = 1.0  # eV
    per_atom: bool = False  # the number is an energy per atom

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be positive; got {self.scale}")
        numbers = [number for number, _ in self.references]
        if len(set(numbers)) < len(numbers) or not all(0 < number < 119 for number in numbers):
            raise ValueError(f"references must name each atomic number (1 to 118) once; got {numbers}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtomformerConfig:
    """Everything that defines the network. The defaults are the published `base` with its S2EF heads."""

    vocab_size: int = 123  # tokens: elements and special ones
    dim: int = 768  # width of the layers
    num_heads: int = 32  # attention heads
    depth: int = 12  # blocks of attention and MLP
    mlp_ratio: int = 4  # width of the MLP over dim
    k: int = 128  # Gaussians that a distance is expanded in
    dropout: float = 0.0  # probability, on the outputs of attention and MLP
    gradient_checkpointing: bool = False  # compute blocks again in the backward pass, to save memory
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of the layers; parameters stay float32
    heads: tuple[str, ...] = ("formation_energy", "forces")  # outputs, among HEADS
    conservative: bool = False  # forces and denoising as the gradient of the energy head
    num_labels: int = 1  # of the classification head
    problem: Problem = "regression"  # of the classification head
    label_names: tuple[str, ...] = ()  # one for each label, or none
    label_mean: tuple[float, ...] = ()  # the labels' units: label = mean + scale x output; empty: 0 and 1
    label_scale: tuple[float, ...] = ()  # in the labels' units; empty: 1
    periodic: Periodic = "none"  # distances of atoms in a cell: as they stand, to the nearest or to all images
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms, 0 where a term is off, and how structures are corrupted for the last two.

    `masked` and `denoising` see a corrupted copy of the structure, all other terms the structure itself.
    """

    formation_energy: float = 0.0  # weight of formation energies
    total_energy: float = 0.0  # weight of total energies
    forces: float = 0.0  # weight of forces
    relaxed_coords: float = 0.0  # weight of the positions after relaxation
    labels: float = 0.0  # weight of properties
    masked: float = 0.0  # weight of guessing masked atoms
    denoising: float = 0.0  # weight of finding the noise added to coordinates
    errors_per_atom: bool = False  # energy errors are divided by the number of atoms
    error: Literal["l1", "l2"] = "l1"  # absolute or squared errors
    mask_probability: float | Literal["cosine"] = 0.15  # cosine: a share cos(pi u / 2), u ~ U(0, 1), of each structure
    noise_ang: float = 0.05  # Å: standard deviation of the noise on every coordinate of atoms that are not fixed

    def __post_init__(self) -> None:
        for name in (*CLEAN_TERMS, *CORRUPTED_TERMS):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a weight, at least 0; got {getattr(self, name)}")
        if not any(getattr(self, name) for name in (*CLEAN_TERMS, *CORRUPTED_TERMS)):
            raise ValueError(f"at least one of {', '.join((*CLEAN_TERMS, *CORRUPTED_TERMS))} must be positive")
        if self.relaxed_coords and self.denoising:
            raise ValueError("relaxed_coords and denoising both train the coordinate head; choose one")
        if self.mask_probability != "cosine" and not 0 < self.mask_probability <= 1:
            raise ValueError(f"mask_probability must lie in (0, 1], or be cosine; got {self.mask_probability}")
        if not self.noise_ang > 0:
            raise ValueError(f"noise_ang must be positive; got {self.noise_ang}")

    @property
    def active(self) -> tuple[str, ...]:
        """The terms that are on."""
        return tuple(name for name in (*CLEAN_TERMS, *CORRUPTED_TERMS) if getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run.

    `train` and `validation` are anything that `atomformer prepare` reads, or what it wrote. Without `validation`, a
    share `validation_fraction` of the training set is held out, drawn from `seed`.
    """

    train: pathlib.Path = setting(dataclasses.MISSING, "train_path")  # structures, in any format or prepared
    run_dir: pathlib.Path = setting(dataclasses.MISSING, "folder")  # new folder for all results, or one to resume
    validation: pathlib.Path | None = setting(None, "valid_path")  # held-out structures, as `train`
    validation_fraction: float = setting(0.05, "val_split")  # share of `train` held out if no `validation` is given
    split: str | None = None  # part of a Hugging Face folder to train on
    validation_split: str | None = None  # part of the same folder, or of `validation`, to validate on
    # Folder or hub id of a model whose encoder, and heads where they fit, to start from; by default random weights.
    model: str | None = setting(None, "start_from", "checkpoint", "restore_path")
    freeze: Literal["none", "encoder"] = "none"  # what is not to change
    task: Task | None = None  # ATOM3D task to train for; it sets the problem and the number of labels
    label_columns: tuple[str, ...] = ()  # properties to learn; by default `labels`
    standardize: bool = True  # labels of a regression get the training set's mean and deviation as origin and unit
    fit_references: bool = False  # energies are learned as differences from energies per element, by least squares
    isolated_atoms: pathlib.Path | None = None  # file of single atoms: their energies are the references, up to a shift
    size: Literal["tiny", "mini", "small", "base", "large"] | None = None  # instead of dim, num_heads, depth and k
    network: AtomformerConfig = AtomformerConfig()  # heads follow from the loss; with `model` sizes from there
    loss: LossConfig = LossConfig(formation_energy=1.0, forces=1.0)
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig(epochs=10)
    batch_size: int = setting(128, "batchsize")  # structures a step, over all devices and processes
    accumulate: int = 1  # parts that a step is computed in, one after another, to save memory
    ema_decay: float | None = None  # a step of the moving average of the weights, 0.999 say; used instead of them
    seed: int = 42  # of weights, held-out structures, batches, masks and noise
    keep: int = 2  # checkpoints to resume from
    wandb_project: str | None = None  # report to Weights & Biases as well (extra `wandb`)

    def __post_init__(self) -> None:
        if self.validation is None and not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1); got {self.validation_fraction}")
        for name in ("batch_size", "accumulate", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.fit_references and self.isolated_atoms is not None:
            raise ValueError("give fit_references or isolated_atoms, not both")
        if self.task is not None and not self.loss.labels:
            raise ValueError(f"task {self.task} needs the loss term labels; give it a weight")


# The published recipe of pre-training.
PUBLISHED = OptimizerConfig(
    optimizer="adamw", learning_rate=3e-4, weight_decay=0.01, clip_norm=5.0, schedule="cosine", warmup_fraction=0.001
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Trains energies and forces, masked atoms, coordinate denoising, or several of them, by the loss weights.

    The default loss is that of the published pre-training: formation energies and forces. The run folder holds
    config.yaml, metrics.csv, curves.png, checkpoints/ to resume from and model/ to use.

    atomformer pretrain --train s2ef --run-dir runs/base --size base --epochs 10

    atomformer pretrain --train molecules.xyz --run-dir runs/denoise --formation-energy 0 --forces 0 --denoising 1

    atomformer pretrain --run-dir runs/base --resume
    """

    network: AtomformerConfig = AtomformerConfig(gradient_checkpointing=True)
    optimizer: OptimizerConfig = PUBLISHED


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Trains properties (label columns or an ATOM3D task), or energies and forces; starts from --model, if given.

    The run folder holds config.yaml, metrics.csv, curves.png, checkpoints/ to resume from and model/ to use.

    atomformer finetune --train qm9.parquet --label-columns gap --model atomformer-base --run-dir runs/gap

    atomformer finetune --train atom3d-lba --split train --validation-split val --task LBA --run-dir runs/lba

    atomformer finetune --train md.xyz --labels 0 --total-energy 1 --forces 10 --conservative --run-dir runs/md
    """

    validation_fraction: float = setting(0.1, "val_split")  # share of `train` held out if no `validation` is given
    loss: LossConfig = LossConfig(labels=1.0)
    optimizer: OptimizerConfig = OptimizerConfig(
        optimizer="adamw", learning_rate=1e-4, weight_decay=0.01, clip_norm=5.0, schedule="cosine"
    )
    loop: LoopConfig = LoopConfig(epochs=50)
    batch_size: int = setting(16, "batchsize")  # structures a step, over all devices and processes
