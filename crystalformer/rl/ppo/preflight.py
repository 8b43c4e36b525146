"""Checks before the first epoch of PPO: that the reward works, the memory suffices, the data are those of the run."""

import logging
import os
import pathlib
import zlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from crystalformer.rl.config import PATHS, RewardConfig
from crystalformer.rl.ppo.rollout import Policy, Rollout, Stopwatch, make_example_take, roll_out
from crystalformer.rl.reward.base import Reward, describe_problems
from crystalformer.symmetry.wyckoff import draw_spacegroups
from matterform.io.files import checksum
from matterform.training.mesh import to_global
from matterform.training.step import Batch, PartedStep

logger = logging.getLogger(__name__)

TRIAL_KEY = 3  # folded into the seed; `epoch.py` folds 1 and 2
TRIAL_SIZE = 16  # samples per process


def try_reward(
    reward: Reward, policy: Policy, frequencies: Float[np.ndarray, "230"], seed: int, part_size: int
) -> Rollout:
    """Scores a few samples of the initial weights, and logs their mean reward, failures and time per structure.

    Raises:
        ValueError: the reward fails for all of them.
    """
    watch, number = Stopwatch(), TRIAL_SIZE * jax.process_count()
    groups = draw_spacegroups(frequencies, number, [seed, TRIAL_KEY])
    key = jax.random.fold_in(jax.random.key(seed), TRIAL_KEY)
    trial = roll_out(policy, policy.params, reward, key, groups, watch, part_size)
    check_not_all_failed(reward, trial, "trial samples, so there is nothing to learn")
    logger.info(
        "reward %s: mean %.4g over %d trial samples, %d failed, %.3g s per structure",
        *(reward.name, trial.rewards[~trial.failed].mean(), number, trial.failed.sum()),
        watch.seconds["reward"] / TRIAL_SIZE,
    )
    if trial.failed.any():
        # A reward that fails for some elements would teach the network to avoid them.
        logger.warning("%s; each gets the reward %g", describe_problems(trial.local.problems), reward.worst)
    return trial


def check_not_all_failed(reward: Reward, rollout: Rollout, what: str) -> None:
    """Raises ValueError, with the reasons, if no crystal has a reward: most likely a device or model is broken."""
    if rollout.failed.all():
        raise ValueError(
            f"reward {reward.name} failed for all of {len(rollout.failed)} {what}: "
            f"{describe_problems(rollout.local.problems)}"
        )


def check_memory(step: PartedStep, policy: Policy, trial: Rollout, part_size: int, mesh: Mesh) -> None:
    """Compiles the gradient for the longest crystals and compares its memory with that of a device.

    Raises:
        ValueError: it needs more memory than a device has.
    """
    size = part_size * mesh.size
    rows = np.resize(np.arange(len(trial.rewards)), size // jax.process_count())
    take = make_example_take(trial, np.zeros(len(trial.rewards), np.float32))
    part = Batch(take(rows, policy.config.n_max), np.ones(len(rows), np.float32))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), policy.params)
    needed = step.temporary_bytes(shapes, to_global(mesh, part))
    available = available_bytes()
    logger.info("a gradient of %d crystals needs %.2f GiB on each device", size, needed / 2**30)
    if available is not None and needed > available:
        raise ValueError(
            f"part_size {part_size}: a gradient needs {needed / 2**30:.1f} GiB on each device, which has "
            f"{available / 2**30:.1f} GiB; lower part_size"
        )


def available_bytes() -> int | None:
    """Memory of one device in bytes; on CPU, its share of this machine's memory. None if unknown."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return None


def fingerprints(policy: Policy, frequencies: Float[np.ndarray, "230"], config: RewardConfig) -> Mapping[str, int]:
    """Checksums of the data that a run depends on: initial weights, space groups, and the reward's files.

    A resumed run may find its files at other paths, but their contents must be the same.
    """
    weights = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(dict(policy.params)))
    prints = {"reference": zlib.crc32(weights), "space groups": zlib.crc32(frequencies.tobytes())}
    paths: dict[str, pathlib.Path | None] = {name: getattr(config, name) for name in PATHS}
    paths["mlff_path"] = config.potential.mlff_path
    return prints | {name: checksum(path) for name, path in paths.items() if path is not None and path.exists()}
