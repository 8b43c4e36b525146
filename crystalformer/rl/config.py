"""Settings of fine-tuning: rewards, PPO and DPO; importing this module loads no JAX, nor any potential."""

import dataclasses
import math
import pathlib
from typing import Literal

import numpy as np

from crystalformer.config import WeightsConfig
from matterform.config import setting
from matterform.potentials.config import PotentialConfig
from matterform.training.config import LoopConfig, OptimizerConfig

CUSTOM = "module:function"
REWARDS = ("ehull", "force", "property", "dielectric", "pair", CUSTOM)
# Settings of a reward that name a file.
PATHS = ("convex_path", "references", "property_path", "dielectric_path", "novelty_reference")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What to reward, larger is better, and with which models. Several rewards are added with their weights."""

    reward: tuple[str, ...] = ("ehull",)  # ehull, force, property, dielectric, pair, or module:function of your own
    weights: tuple[float, ...] = ()  # one a reward; by default 1 each
    convex_path: pathlib.Path | None = None  # ehull: the reference hull, as a file of entries or a folder made of it
    references: pathlib.Path | None = None  # ehull: energies of the elements (JSON), for a hull of formation energies
    relax_steps: int = 0  # ehull: steps of relaxation before; 0 takes crystals as they are
    stress_weight: float = 1.0  # force: of the stress (eV/angstrom^3) beside the forces (eV/angstrom)
    property_path: pathlib.Path | None = None  # property: folder of the model; dielectric: that of the band gap
    fidelity: int | None = None  # of a multi-fidelity property model: 0 PBE, 1 GLLB-SC, 2 HSE, 3 SCAN
    property_batch_size: int = 64  # structures that a property model evaluates together
    target: float | None = None  # property: what to aim at, in the model's unit
    property_form: Literal["absolute", "squared"] = "absolute"  # property: of the error
    dielectric_path: pathlib.Path | None = None  # dielectric: folder of the model of the dielectric tensor
    reward_clip: float = 10.0  # ehull: eV/atom, to both sides; property: the largest error that counts
    custom_worst: float = -10.0  # module:function: of crystals that cannot be built; lower values count as this one
    reward_workers: int = 0  # module:function: processes among which a batch is divided; a potential has its own
    reward_low: float | None = None  # least value of the whole, before penalties and bonuses
    reward_high: float | None = None  # largest value of the whole, before penalties and bonuses
    validity_penalty: float = 0.0  # for atoms too close for their radii, and densities that solids do not have
    composition_penalty: float = 0.0  # for oxidation states that cannot balance (SMACT)
    unknown_penalty: float = 0.0  # ehull: for chemical systems of which the hull has no compound with all elements
    uniqueness_bonus: float = 0.0  # for the first of its kind in a batch
    novelty_bonus: float = 0.0  # for crystals that match none of the reference
    novelty_reference: pathlib.Path | None = None  # crystals in any format, usually the training set
    potential: PotentialConfig = PotentialConfig()

    def __post_init__(self) -> None:
        if not self.reward:
            raise ValueError(f"reward: expected at least one of {', '.join(REWARDS)}, found none")
        for name in self.reward:
            if name not in REWARDS and ":" not in name:
                raise ValueError(f"reward: expected one of {', '.join(REWARDS)}, found {name!r}")
        if len(set(self.reward)) < len(self.reward):
            raise ValueError(f"reward: each may be there once; found {', '.join(self.reward)}")
        if self.weights and len(self.weights) != len(self.reward):
            raise ValueError(f"weights: expected one for each of {len(self.reward)} rewards, found {len(self.weights)}")
        if not all(0 < weight < np.inf for weight in self.weights):
            raise ValueError(f"weights must be positive; found {self.weights}")
        if not 0 < self.reward_clip < np.inf:
            raise ValueError(f"reward_clip must be positive; found {self.reward_clip:g}")
        if self.reward_low is not None and self.reward_high is not None and not self.reward_low < self.reward_high:
            raise ValueError(f"reward_low must be below reward_high; found {self.reward_low} and {self.reward_high}")
        if not np.isfinite(self.custom_worst):
            raise ValueError(f"custom_worst must be finite; found {self.custom_worst}")
        if self.target is not None and not np.isfinite(self.target):
            raise ValueError(f"target must be finite; found {self.target}")
        if self.property_batch_size < 1:
            raise ValueError(f"property_batch_size must be at least 1; found {self.property_batch_size}")
        sizes = ("relax_steps", "stress_weight", "reward_workers", "validity_penalty", "composition_penalty")
        for name in (*sizes, "unknown_penalty", "uniqueness_bonus", "novelty_bonus"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must not be negative; found {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The constants of the objective, and how rewards become advantages.

    `running` subtracts the running mean of the batches' mean rewards. `group` subtracts the mean of the crystals of the
    same space group and divides by their standard deviation, as GRPO does (Shao et al., arXiv:2402.03300, section
    4.1.2); a space group with a single crystal falls back on mean and deviation of the batch.
    """

    clip_ratio: float = 0.2  # largest distance from 1 of the ratio of probabilities that still counts
    beta: float = 0.1  # weight of the divergence from the reference
    baseline: Literal["running", "group"] = "running"  # what is subtracted from the rewards
    baseline_decay: float = 0.95  # of the running mean, per epoch

    def __post_init__(self) -> None:
        if not 0 < self.clip_ratio < 1:
            raise ValueError(f"clip_ratio must lie in (0, 1); got {self.clip_ratio}")
        if not self.beta >= 0:
            raise ValueError(f"beta must not be negative; got {self.beta}")
        if not 0 <= self.baseline_decay < 1:
            raise ValueError(f"baseline_decay must lie in [0, 1); got {self.baseline_decay}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """A whole run.

    Space groups are drawn from `spacegroup`, each as often, or as often as `spacegroups_from` has them; by default as
    often as the shipped model's training set has them.
    """

    run_dir: pathlib.Path = setting(dataclasses.MISSING, "folder")  # new folder for all results, or one to resume
    weights: WeightsConfig = WeightsConfig()  # what to start from, which is the reference as well
    reward: RewardConfig = RewardConfig()
    spacegroup: tuple[int, ...] = ()  # numbers 1-230 to sample; by default as in the shipped training set
    spacegroups_from: pathlib.Path | None = None  # data set (CSV or prepared); its crystals of less than n_max sites
    batch_size: int = setting(1000, "batchsize")  # crystals an epoch, over all processes
    epochs: int = 100  # samplings, each followed by `ppo_epochs` and `sft_epochs` optimiser steps
    max_minutes: float | None = None  # of wall-clock time in this process
    ppo_epochs: int = 5  # optimiser steps on each batch of samples
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    sft_epochs: int = 0  # steps towards the likelihood of good relaxed samples; needs a reward that relaxes
    sft_min_reward: float = -0.1  # what counts as good
    part_size: int = 16  # crystals that each device computes with at a time: bounds the memory; more on GPUs
    validation: pathlib.Path | None = setting(None, "valid_path")  # data set whose loss is logged
    save_every: int = 10  # epochs between tables of samples
    publish_every: int = 10  # epochs between published files; the last epoch is always published
    keep: int = 2  # checkpoints to resume from
    seed: int = 42  # of all that is drawn
    wandb_project: str | None = None  # report to Weights & Biases as well (extra `wandb`)

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "part_size", "save_every", "publish_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if min(self.ppo_epochs, self.sft_epochs) < 0 or self.ppo_epochs + self.sft_epochs == 0:
            raise ValueError(f"ppo_epochs or sft_epochs must be positive; got {self.ppo_epochs} and {self.sft_epochs}")
        if self.spacegroup and self.spacegroups_from is not None:
            raise ValueError("give spacegroup or spacegroups_from, not both")
        if wrong := [group for group in self.spacegroup if not 1 <= group <= 230]:
            raise ValueError(f"spacegroup must lie in 1..230; got {wrong[0]}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes must be positive, or none; got {self.max_minutes}")

    @property
    def train(self) -> str:
        """Where its data come from, for messages."""
        files = (getattr(self.reward, name) for name in PATHS)
        paths = (self.spacegroups_from, *files, self.reward.potential.mlff_path)
        return ", ".join(str(path) for path in paths if path is not None) or str(self.run_dir / "reference.pkl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairingConfig:
    """How a scored table becomes pairs.

    In each group the best crystal is paired with the worst, the second best with the second worst and so on, as long
    as their scores differ by `score_margin`; none is used twice, and of equal scores the earlier row is the better.
    """

    score: str | None = None  # the column of numbers, of which larger is better
    lower_is_better: bool = False  # of energies above hull, say
    group_by: Literal["formula", "spacegroup"] = "formula"  # the reduced formula, or the space group's number
    score_margin: float = 0.0  # least difference of the scores of a pair, in their unit; equal ones are never paired
    pairs_per_group: int | None = None  # at most; none: half of the group

    def __post_init__(self) -> None:
        if self.group_by not in ("formula", "spacegroup"):
            raise ValueError(f"group_by must be formula or spacegroup; got {self.group_by!r}")
        if not (self.score_margin >= 0 and math.isfinite(self.score_margin)):
            raise ValueError(f"score_margin must be a number of at least 0; got {self.score_margin}")
        if self.pairs_per_group is not None and self.pairs_per_group < 1:
            raise ValueError(f"pairs_per_group must be at least 1, or none; got {self.pairs_per_group}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """The loss of a pair, with m = (log p - log p_reference)(chosen) - (log p - log p_reference)(rejected).

    `dpo`: -(1 - label_smoothing) log sigmoid(beta m) - label_smoothing log sigmoid(-beta m) (Rafailov et al. 2023,
    eq. 7; smoothed as by Mitchell 2023); `ipo`: (m - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17); either one minus
    gamma log p(chosen).
    """

    loss: Literal["dpo", "ipo"] = "dpo"  # logistic (dpo) or squared (ipo) in the margin
    beta: float = 0.1  # how closely the weights stay to the reference; larger is closer
    label_smoothing: float = 0.0  # share of pairs that may be the wrong way round (dpo only)
    gamma: float = 0.0  # weight of the chosen crystals' own likelihood

    def __post_init__(self) -> None:
        if self.loss not in ("dpo", "ipo"):
            raise ValueError(f"loss must be dpo or ipo; got {self.loss!r}")
        if not self.beta > 0:
            raise ValueError(f"beta must be positive; got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie in [0, 0.5); got {self.label_smoothing}")
        if self.label_smoothing and self.loss == "ipo":
            raise ValueError(f"label_smoothing belongs to the loss dpo; got {self.label_smoothing} with ipo")
        if not self.gamma >= 0:
            raise ValueError(f"gamma must not be negative; got {self.gamma}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """A whole run.

    The pairs are `chosen` and `rejected`, row by row, or come from the table `scored` as `pairing` says. A share
    `validation_fraction` of them is held out, drawn from `seed`.
    """

    run_dir: pathlib.Path = setting(dataclasses.MISSING, "folder")  # new folder for all results, or one to resume
    chosen: pathlib.Path | None = None  # CSV, prepared folder, CIFs, extxyz, ...; row i is preferred to ...
    rejected: pathlib.Path | None = None  # ... row i of this one
    scored: pathlib.Path | None = None  # or: a CSV of crystals with a column of scores
    pairing: PairingConfig = PairingConfig()
    validation_fraction: float = setting(0.1, "val_split")  # share of the pairs held out
    weights: WeightsConfig = WeightsConfig()  # the weights to start from, which are the reference as well
    preference: PreferenceConfig = PreferenceConfig()
    dropout: bool = False  # in training; the reference never has any
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, clip_norm=1.0)
    loop: LoopConfig = LoopConfig(epochs=10)
    batch_size: int = setting(64, "batchsize")  # pairs a step, over all devices and processes
    accumulate: int = 1  # parts that a step is computed in, one after another, to save memory
    seed: int = 42  # of all that is drawn
    publish_every: int = 10  # epochs between published files; the last epoch and the best one are always published
    keep: int = 2  # checkpoints to resume from
    workers: int = 1  # processes that read a CSV of CIFs
    wandb_project: str | None = None  # report to Weights & Biases as well (extra `wandb`)

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1); got {self.validation_fraction}")
        for name in ("batch_size", "accumulate", "publish_every", "keep", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")

    @property
    def train(self) -> str:
        """Where the pairs come from, for messages."""
        return str(self.scored) if self.scored is not None else f"{self.chosen} with {self.rejected}"
