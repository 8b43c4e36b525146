"""Settings of fine-tuning: rewards, PPO and DPO. Importing this module loads neither JAX nor a potential."""

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
    """The reward, larger is better, and its models. Several rewards are added with their weights."""

    reward: tuple[str, ...] = ("ehull",)  # names: ehull, force, property, dielectric, pair, or your own module:function
    weights: tuple[float, ...] = ()  # weight of each reward in the sum; by default 1
    # ehull: the reference hull, a file of entries or the folder that `matterform hull` makes from it
    convex_path: pathlib.Path | None = None
    # ehull: energies of the elements (JSON, eV/atom), for a hull of formation energies
    references: pathlib.Path | None = None
    relax_steps: int = 0  # ehull: relaxation steps before the energy is taken; 0 scores crystals as sampled
    stress_weight: float = 1.0  # force: weight of the stress (eV/angstrom^3) relative to the forces (eV/angstrom)
    # property: folder of its model; dielectric: folder of the model of the band gap
    property_path: pathlib.Path | None = None
    fidelity: int | None = None  # fidelity of a multi-fidelity property model: 0 PBE, 1 GLLB-SC, 2 HSE, 3 SCAN
    property_batch_size: int = 64  # structures that a property model evaluates together
    target: float | None = None  # property: target value, in the unit of the model
    property_form: Literal["absolute", "squared"] = "absolute"  # property: form of the error that is penalised
    dielectric_path: pathlib.Path | None = None  # dielectric: folder of the model of the dielectric tensor
    # ehull: bound on both sides, eV/atom; property: largest error that is counted, in the unit of the model
    reward_clip: float = 10.0
    # module:function: reward of crystals that cannot be built; lower values are raised to it
    custom_worst: float = -10.0
    reward_workers: int = 0  # module:function: worker processes that share a batch; 0 computes in this process
    reward_low: float | None = None  # lower bound of the total reward, before penalties and bonuses; by default none
    reward_high: float | None = None  # upper bound of the total reward, before penalties and bonuses; by default none
    validity_penalty: float = 0.0  # subtracted if atoms are too close or the density is not that of a solid
    composition_penalty: float = 0.0  # subtracted if oxidation states cannot balance (SMACT)
    unknown_penalty: float = 0.0  # ehull: subtracted if the hull has no entry with all elements of the crystal
    uniqueness_bonus: float = 0.0  # added for the first of each group of matching crystals in a batch
    novelty_bonus: float = 0.0  # added for crystals that match none in novelty_reference
    novelty_reference: pathlib.Path | None = None  # known crystals in any format, usually the training set
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
    """Constants of the PPO objective, and how rewards become advantages (docs/formulas/reinforcement.md, eq. 1 to 5).

    The baseline `running` is the running mean of the mean rewards of the batches. `group` subtracts the mean reward of
    the crystals of the same space group and divides by its standard deviation, as in GRPO (Shao et al.,
    arXiv:2402.03300, section 4.1.2); a space group with a single crystal uses mean and deviation of the batch.
    """

    clip_ratio: float = 0.2  # the ratio of new to old probability is clipped to 1 +- clip_ratio
    beta: float = 0.1  # weight of the KL penalty, in units of the reward per nat
    # Baseline of the rewards: running mean, or mean of the space group.
    baseline: Literal["running", "group"] = "running"
    baseline_decay: float = 0.95  # decay of the running mean of the rewards, per epoch

    def __post_init__(self) -> None:
        if not 0 < self.clip_ratio < 1:
            raise ValueError(f"clip_ratio must lie in (0, 1); got {self.clip_ratio}")
        if not self.beta >= 0:
            raise ValueError(f"beta must not be negative; got {self.beta}")
        if not 0 <= self.baseline_decay < 1:
            raise ValueError(f"baseline_decay must lie in [0, 1); got {self.baseline_decay}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """Settings of a PPO run.

    Space groups are sampled uniformly from `spacegroup`, or with the frequencies of the data set `spacegroups_from`; by
    default with those of the shipped model's training set.
    """

    run_dir: pathlib.Path = setting(dataclasses.MISSING, "folder")  # new folder for all results, or one to resume
    weights: WeightsConfig = WeightsConfig()  # initial weights, which are the reference model as well
    reward: RewardConfig = RewardConfig()
    spacegroup: tuple[int, ...] = ()  # numbers 1-230, sampled uniformly; by default as in the shipped training set
    spacegroups_from: pathlib.Path | None = None  # data set (CSV or prepared) whose frequencies are sampled
    batch_size: int = setting(1000, "batchsize")  # samples per epoch, over all processes
    epochs: int = 100  # rollouts, each followed by ppo_epochs and sft_epochs optimiser steps
    max_minutes: float | None = None  # wall-clock time limit of this process, minutes; by default none
    ppo_epochs: int = 5  # optimiser steps per epoch on the PPO objective
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    sft_epochs: int = 0  # optimiser steps per epoch on the likelihood of good relaxed samples; needs relax_steps
    sft_min_reward: float = -0.1  # smallest reward of a good relaxed sample
    part_size: int = 16  # crystals per device that are computed at once; limits the memory, use more on GPUs
    validation: pathlib.Path | None = setting(None, "valid_path")  # data set whose loss is logged every epoch
    save_every: int = 10  # epochs between tables of samples
    publish_every: int = 10  # epochs between published files; the last epoch is always published
    keep: int = 2  # number of checkpoints that are kept to resume from
    seed: int = 42  # random seed of all sampling and shuffling
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairingConfig:
    """How pairs are made from a scored table.

    In each group the best crystal is paired with the worst, the second best with the second worst and so on, as long as
    their scores differ by at least `score_margin`. No crystal is used twice; of equal scores the earlier row is better.
    """

    score: str | None = None  # name of the column of scores; larger is better
    lower_is_better: bool = False  # whether smaller scores are better, e.g. energies above the hull
    group_by: Literal["formula", "spacegroup"] = "formula"  # what the two crystals of a pair have in common
    # Smallest difference of the scores of a pair, in their unit; equal scores are never paired.
    score_margin: float = 0.0
    pairs_per_group: int | None = None  # largest number of pairs per group; by default half of its crystals

    def __post_init__(self) -> None:
        if self.group_by not in ("formula", "spacegroup"):
            raise ValueError(f"group_by must be formula or spacegroup; got {self.group_by!r}")
        if not (self.score_margin >= 0 and math.isfinite(self.score_margin)):
            raise ValueError(f"score_margin must be a number of at least 0; got {self.score_margin}")
        if self.pairs_per_group is not None and self.pairs_per_group < 1:
            raise ValueError(f"pairs_per_group must be at least 1, or none; got {self.pairs_per_group}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Loss of a pair with the margin m = (log p - log p_reference)(chosen) - (log p - log p_reference)(rejected).

    `dpo`: -(1 - label_smoothing) log sigmoid(beta m) - label_smoothing log sigmoid(-beta m) (Rafailov et al.,
    arXiv:2305.18290, eq. 7; smoothing after Mitchell 2023). `ipo`: (m - 1 / (2 beta))^2 (Azar et al., arXiv:2310.12036,
    eq. 17). gamma log p(chosen) is subtracted from either (docs/formulas/reinforcement.md, eq. 7 to 9).
    """

    loss: Literal["dpo", "ipo"] = "dpo"  # logistic (dpo) or squared (ipo) in the margin
    beta: float = 0.1  # strength of the tie to the reference model; larger stays closer
    label_smoothing: float = 0.0  # assumed share of pairs with chosen and rejected swapped (dpo only)
    gamma: float = 0.0  # weight of the log-likelihood of the chosen crystals

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
    """Settings of a DPO run; its pairs are the rows of `chosen` and `rejected`, or made from the table `scored`."""

    run_dir: pathlib.Path = setting(dataclasses.MISSING, "folder")  # new folder for all results, or one to resume
    # CSV, prepared folder, CIFs, extxyz ...; row i is preferred to row i of rejected.
    chosen: pathlib.Path | None = None
    rejected: pathlib.Path | None = None  # file with as many crystals as chosen
    scored: pathlib.Path | None = None  # instead of chosen and rejected: CSV of crystals with a column of scores
    pairing: PairingConfig = PairingConfig()
    validation_fraction: float = setting(0.1, "val_split")  # share of the pairs that is held out, chosen by seed
    weights: WeightsConfig = WeightsConfig()  # initial weights, which are the reference model as well
    preference: PreferenceConfig = PreferenceConfig()
    dropout: bool = False  # dropout in training; the reference never uses it
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, clip_norm=1.0)
    loop: LoopConfig = LoopConfig(epochs=10)
    batch_size: int = setting(64, "batchsize")  # pairs per step, over all devices and processes
    accumulate: int = 1  # parts of a step that are computed one after another, to save memory
    # decay per step of a moving average of the weights, published instead of them; none: no average
    ema_decay: float | None = None
    seed: int = 42  # random seed of all sampling and shuffling
    publish_every: int = 10  # epochs between published files; the last epoch and the best one are always published
    keep: int = 2  # number of checkpoints that are kept to resume from
    workers: int = 1  # processes that read a CSV of CIFs
    wandb_project: str | None = None  # report to Weights & Biases as well (extra `wandb`)

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1); got {self.validation_fraction}")
        for name in ("batch_size", "accumulate", "publish_every", "keep", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
