"""Proximal policy optimisation of CrystalFormer (spec section 6; Schulman et al., arXiv:1707.06347, equation 7).

    maximise mean[min(r A, clip(r, 1 - clip_ratio, 1 + clip_ratio) A)],  r = exp(logp - logp_old),
    A = R - b - beta (logp - logp_reference),

with gradients through every logp. In expectation over samples of the present weights, the gradient at r = 1 is that of
mean R - beta KL(policy || reference): the optimum is the reference times exp(R / beta), normalised.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from crystalformer.config import TransformerConfig
from crystalformer.data.crystals import Crystals
from crystalformer.loss import crystal_log_prob
from crystalformer.network.parameters import Params, as_network
from crystalformer.rl.config import ObjectiveConfig


class Example(NamedTuple):
    """One sampled crystal, or a batch of them."""

    crystal: Crystals
    logp_old: Float[Any, "*b"]  # when it was drawn
    logp_reference: Float[Any, "*b"]
    advantage: Float[Any, "*b"]  # R - b


def make_ppo_loss(config: TransformerConfig, objective: ObjectiveConfig):
    """The negative objective of one crystal, as `matterform.training` takes it; without dropout.

    Metrics: `ratio`, `clip_share` (1 where the ratio is outside the clip range) and `kl_step`, whose mean estimates
    KL(old || new) without bias and with every term positive: r - 1 - log r.
    """

    def example_loss(params: Params, key: PRNGKeyArray | None, example: Example):
        # The sampler always ends a crystal at the last slot, which the network only finds likely: crystals of n_max - 1
        # sites, which are rare, have a probability that is a little too small here and in logp_old alike.
        logp = crystal_log_prob(as_network(params, config), None, example.crystal, config).total
        return ppo_loss(logp, example, objective)

    return example_loss


def ppo_loss(
    logp: Float[Array, ""], example: Example, objective: ObjectiveConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The negative objective and its metrics from the log-probability of one crystal."""
    log_ratio = logp - example.logp_old
    ratio = jnp.exp(log_ratio)
    advantage = example.advantage - objective.beta * (logp - example.logp_reference)
    clipped = jnp.clip(ratio, 1 - objective.clip_ratio, 1 + objective.clip_ratio)
    value = jnp.minimum(ratio * advantage, clipped * advantage)
    outside = jnp.abs(ratio - 1) > objective.clip_ratio
    return -value, {"ratio": ratio, "clip_share": outside.astype(value.dtype), "kl_step": ratio - 1 - log_ratio}


def advantages(
    rewards: Float[np.ndarray, " b"],
    spacegroups: Int[np.ndarray, " b"],
    running_mean: float | None,
    objective: ObjectiveConfig,
) -> tuple[Float[np.ndarray, " b"], float]:
    """R - b for every crystal, and the running mean that the next epoch starts from.

    The running mean is None before the first epoch, which takes its own mean, and includes the present batch.
    """
    mean = float(rewards.mean())
    decay = objective.baseline_decay
    running = mean if running_mean is None else decay * running_mean + (1 - decay) * mean
    if objective.baseline == "running":
        return (rewards - running).astype(np.float32), running
    return _relative_to_group(rewards, spacegroups).astype(np.float32), running


def _relative_to_group(rewards: Float[np.ndarray, " b"], spacegroups: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    result = _standardized(rewards)
    for group in np.unique(spacegroups):
        members = spacegroups == group
        if members.sum() > 1:
            result[members] = _standardized(rewards[members])
    return result


def _standardized(values: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """Zero mean and unit deviation; all 0 where the values are equal, up to rounding."""
    deviation = values.std()
    if deviation <= 1e-6 * max(1.0, float(np.abs(values).max())):
        return np.zeros_like(values)
    return (values - values.mean()) / deviation
