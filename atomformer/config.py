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
    """Conversion of the output of an energy head to eV: sum of the reference energies of the atoms + scale x output.

    With `per_atom` the second term is multiplied by the number of atoms. By default the output is the energy, as in the
    published models. The scale applies to direct forces as well.
    """

    references: tuple[tuple[int, float], ...] = ()  # reference energy of every element: (atomic number, eV/atom)
    scale: float = 1.0  # factor (eV) from the output of the network to energies, and to forces in eV/Å
    per_atom: bool = False  # whether the output of the network is an energy per atom

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be positive; got {self.scale}")
        numbers = [number for number, _ in self.references]
        if len(set(numbers)) < len(numbers) or not all(0 < number < 119 for number in numbers):
            raise ValueError(f"references must name each atomic number (1 to 118) once; got {numbers}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtomformerConfig:
    """Settings of the network. The defaults are the published size `base` with its S2EF heads."""

    vocab_size: int = 123  # number of tokens: 118 elements and 5 special ones
    dim: int = 768  # width of the hidden states
    num_heads: int = 32  # number of attention heads; divides dim
    depth: int = 12  # number of blocks of attention and MLP
    mlp_ratio: int = 4  # ratio of the width of the MLP to dim
    k: int = 128  # number of Gaussians in which a distance is expanded
    dropout: float = 0.0  # dropout probability on the outputs of attention and MLP
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass to save memory
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # number type of activations; parameters are float32
    heads: tuple[str, ...] = ("formation_energy", "forces")  # output heads; set by the loss in training
    conservative: bool = False  # compute forces and denoised coordinates as derivatives of the energy
    num_labels: int = 1  # number of outputs of the head for labels: targets or classes
    problem: Problem = "regression"  # kind of labels: numbers, truth values or one class
    label_names: tuple[str, ...] = ()  # names of the labels; set by the data in training
    label_mean: tuple[float, ...] = ()  # mean in property units; label = mean + scale x output; none: 0
    label_scale: tuple[float, ...] = ()  # factor of the output in property units; none: 1
    periodic: Periodic = "none"  # distances ignore the cell, or are to the nearest or to all images
    cutoff: float = 6.0  # cutoff of distances with `--periodic images`, Å; unused otherwise
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
        """The head whose energy is reported and differentiated: the total energy if the model has both."""
        return next((name for name in reversed(ENERGY_HEADS) if name in self.heads), None)


def model_config(size: str, **changes: Any) -> AtomformerConfig:
    """The config of a published size (tiny, mini, small, base, large), with `changes` of other fields.

    Raises:
        ValueError: an unknown size, or a field with an invalid value.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}")
    return AtomformerConfig(**{**SIZES[size], **changes})


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms (0 turns a term off), and the corruption of structures for the last two.

    `masked` and `denoising` use a corrupted copy of the structure, all other terms the structure itself.
    """

    formation_energy: float = 0.0  # weight of formation energies
    total_energy: float = 0.0  # weight of total energies
    forces: float = 0.0  # weight of forces
    relaxed_coords: float = 0.0  # weight of relaxed coordinates
    labels: float = 0.0  # weight of the properties in --label-columns
    masked: float = 0.0  # weight of predicting the elements of masked atoms
    denoising: float = 0.0  # weight of coordinate denoising
    errors_per_atom: bool = False  # divide energy errors by the number of atoms
    error: Literal["l1", "l2"] = "l1"  # error measure: absolute (l1) or squared (l2)
    # Probability that an atom is masked; cosine: a share cos(pi u / 2) of all atoms with u ~ U(0, 1).
    mask_probability: float | Literal["cosine"] = 0.15
    noise_ang: float = 0.05  # standard deviation of the noise on coordinates of atoms that are not fixed, Å

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
        """The terms with a positive weight."""
        return tuple(name for name in (*CLEAN_TERMS, *CORRUPTED_TERMS) if getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run.

    `train` and `validation` are sources or outputs of `atomformer prepare`. Without `validation`, a random share
    `validation_fraction` of the training set is held out.
    """

    train: pathlib.Path = setting(dataclasses.MISSING, "train_path")  # training structures, in any format or prepared
    # New folder for all results, or the run to resume.
    run_dir: pathlib.Path = setting(dataclasses.MISSING, "folder")
    # Structures for validation, in any format or prepared.
    validation: pathlib.Path | None = setting(None, "valid_path")
    validation_fraction: float = setting(0.05, "val_split")  # share of the training set held out without --validation
    split: str | None = None  # split of a Hugging Face folder to train on, e.g. train
    validation_split: str | None = None  # split to validate on, of --validation or else of --train
    # Model to start from: run folder, model folder or Hugging Face id; heads are kept if they fit. None: random.
    model: str | None = setting(None, "start_from", "checkpoint", "restore_path")
    freeze: Literal["none", "encoder"] = "none"  # part of the network that is not trained
    task: Task | None = None  # ATOM3D task to train for; it sets the problem and the number of labels
    label_columns: tuple[str, ...] = ()  # names of the properties to train; none: labels
    standardize: bool = True  # scale labels by their mean and standard deviation in the training set
    fit_references: bool = False  # subtract energies per element, fitted by least squares
    # File of single atoms; their energies, shifted by one common energy, are subtracted.
    isolated_atoms: pathlib.Path | None = None
    # Published size; sets dim, num_heads, depth and k.
    size: Literal["tiny", "mini", "small", "base", "large"] | None = None
    network: AtomformerConfig = AtomformerConfig()  # heads follow from the loss; with `model`, sizes from there
    loss: LossConfig = LossConfig(formation_energy=1.0, forces=1.0)
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig(epochs=10)
    batch_size: int = setting(128, "batchsize")  # number of structures per step, over all devices and processes
    accumulate: int = 1  # number of parts in which a step is computed, to save memory
    ema_decay: float | None = None  # decay per step of averaged weights for use, e.g. 0.999; none: not averaged
    seed: int = 42  # random seed of weights, held-out structures, batches, masks and noise
    keep: int = 2  # number of checkpoints kept for --resume
    wandb_project: str | None = None  # project at Weights & Biases to report to (extra wandb)

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

    validation_fraction: float = setting(0.1, "val_split")  # share of the training set held out without --validation
    loss: LossConfig = LossConfig(labels=1.0)
    optimizer: OptimizerConfig = OptimizerConfig(
        optimizer="adamw", learning_rate=1e-4, weight_decay=0.01, clip_norm=5.0, schedule="cosine"
    )
    loop: LoopConfig = LoopConfig(epochs=50)
    batch_size: int = setting(16, "batchsize")  # number of structures per step, over all devices and processes
