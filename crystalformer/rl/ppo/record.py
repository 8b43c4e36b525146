"""Files of a PPO run: metrics and histograms per epoch, tables of samples, learning curves."""

import collections
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from crystalformer.data.crystals import Crystals
from crystalformer.rl.ppo.rollout import Rollout
from crystalformer.rl.reward.base import describe_problems
from crystalformer.table import COLUMNS, TableWriter, table_rows
from matterform.elements import element_table
from matterform.io.files import write_atomically
from matterform.plots.curves import write_curves
from matterform.training.metrics import open_metrics

logger = logging.getLogger(__name__)

PHASES = ("sampling", "likelihood", "building", "reward", "update", "validation")
QUANTILES = (10, 50, 90)  # percent
METRICS = (
    "reward_mean",  # failures count with the worst value
    "reward_error",  # standard error of the mean
    *(f"reward_q{percent}" for percent in QUANTILES),
    "baseline",
    "objective",  # mean reward - beta * KL
    "kl",  # KL(policy || reference), nats
    "kl_error",  # standard error
    "entropy",  # of the policy, nats; differential for coordinates and lattices
    "failed_share",
    "distinct_share",  # of crystals that differ in space group, Wyckoff letters or elements
    "loss",  # this and the next four: means over the optimiser steps of the epoch
    "ratio",
    "clip_share",
    "kl_step",
    "grad_norm",
    "optimizer_steps",  # since the start of the run
    "sft_crystals",
    "sft_loss",
    "sft_grad_norm",
    "validation_loss",
    *(f"seconds_{phase}" for phase in PHASES),
)
ALWAYS_LOGGED = ("reward_mean", "reward_error", "failed_share", "kl", "entropy", "clip_share", "grad_norm")


def epoch_row(rollout: Rollout, beta: float) -> dict[str, float]:
    """Metrics of the samples of an epoch.

    Args:
        beta: weight of the KL penalty.
    """
    rewards, logp = rollout.rewards, np.asarray(rollout.logp.total, np.float64)
    divergence = logp - rollout.logp_reference
    row = {
        "reward_mean": rewards.mean(),
        "reward_error": _standard_error(rewards),
        "objective": rewards.mean() - beta * divergence.mean(),
        "kl": divergence.mean(),
        "kl_error": _standard_error(divergence),
        "entropy": -logp.mean(),
        "failed_share": rollout.failed.mean(),
        "distinct_share": len(set(_fingerprints(rollout.crystals))) / len(rewards),
    }
    row |= {f"reward_q{percent}": np.percentile(rewards, percent) for percent in QUANTILES}
    for name, values in rollout.details.items():
        known = values[np.isfinite(values)]
        if len(known):
            row[f"{name}_mean"] = known.mean()
    return {name: float(value) for name, value in row.items()}


class EpochWriter:
    """Writes metrics.csv, epochs.jsonl, samples/ and curves.png of a run folder; only the first process writes.

    Args:
        details: names of the reward's details, whose means become columns of metrics.csv.
        resumed: number of finished epochs of a resumed run; later rows are dropped. None for a new run.
        wandb: project of Weights & Biases to report to.
    """

    def __init__(self, run_dir: pathlib.Path, details: Sequence[str], resumed: int | None, wandb: str | None) -> None:
        self._folder, self._details = run_dir, tuple(details)
        columns = (*METRICS, *(f"{name}_mean" for name in details))
        self._writer = open_metrics(run_dir, columns, resumed_step=resumed, tensorboard=True, wandb_project=wandb)
        self._epochs = run_dir / "epochs.jsonl"
        if jax.process_index() == 0:
            keep_lines(self._epochs, resumed or 0)

    def write(self, epoch: int, row: dict[str, float], rollout: Rollout) -> None:
        """Appends the metrics of an epoch, its histograms and the failures of this process, and logs a summary."""
        self._describe(epoch, rollout)
        self._writer.write(epoch, row)
        logger.info(
            "epoch %d: %s", epoch, ", ".join(f"{name} {row[name]:.4g}" for name in ALWAYS_LOGGED if name in row)
        )

    def _describe(self, epoch: int, rollout: Rollout) -> None:
        problems = describe_problems(rollout.local.problems)
        if rollout.failed.any():
            logger.info("epoch %d: reward: %s", epoch, problems)
        line = {
            "epoch": epoch,
            "problems": problems,
            "spacegroups": {str(group): count for group, count in _counts(rollout.crystals.G.tolist())},
            "elements": dict(_counts(_elements(rollout.crystals))),  # number of crystals that contain each element
        }
        if jax.process_index() == 0:
            with self._epochs.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def save_samples(self, epoch: int, rollout: Rollout) -> None:
        """Writes samples/epoch_NNNNNN.csv: the table of `crystalformer sample` with rewards and their details."""
        if jax.process_index() != 0:
            return
        # The reasons of failures are known only for the samples of this process, which come first.
        reasons = [*rollout.local.problems, *[""] * (len(rollout.rewards) - len(rollout.local.problems))]
        extra = ("reward", "reward_problem", *self._details)
        table = TableWriter(self._folder / "samples" / f"epoch_{epoch:06d}.csv", (*COLUMNS, *extra))
        for index, row in enumerate(table_rows(rollout.crystals, rollout.logp, range(len(rollout.rewards)))):
            details = {name: values[index] for name, values in rollout.details.items()}
            table.write([{**row, "reward": rollout.rewards[index], "reward_problem": reasons[index], **details}])
        table.finish()

    def draw(self) -> None:
        """Writes curves.png, or logs a warning if matplotlib is not installed."""
        if jax.process_index() != 0:
            return
        try:
            write_curves(self._folder / "metrics.csv", self._folder / "curves.png")
        except ImportError as error:
            logger.warning("curves.png is not written: %s", error)

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()


def keep_lines(path: pathlib.Path, epochs: int) -> None:
    """Removes lines after the first `epochs` epochs, and a torn last line; a resumed run writes them again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= epochs]
    with write_atomically(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _standard_error(values: Float[np.ndarray, " b"]) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def _fingerprints(crystals: Crystals) -> list[tuple[int, ...]]:
    """Space group, elements and Wyckoff letters of each crystal."""
    return [tuple(row) for row in np.concatenate([crystals.G[:, None], crystals.A, crystals.W], axis=1).tolist()]


def _elements(crystals: Crystals) -> list[str]:
    symbols = element_table().symbol.tolist()
    return [symbols[number] for numbers in crystals.A.tolist() for number in sorted(set(numbers) - {0})]


def _counts(values: Sequence[Any]) -> list[tuple[Any, int]]:
    return collections.Counter(values).most_common()
