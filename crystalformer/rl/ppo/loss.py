"""Proximal policy optimisation with a KL penalty (Schulman et al., arXiv:1707.06347, eq. 7).

    maximise mean[min(r A, clip(r, 1 - clip_ratio, 1 + clip_ratio) A)],  r = exp(logp - logp_old),
    A = R - b - beta (logp - logp_reference),

with gradients through every logp (docs/formulas/reinforcement.md, eq. 1 and 2). At r = 1 the expected gradient is that
of mean R - beta KL(policy || reference), which is maximal for the policy reference * exp(R / beta), normalised.
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


class PpoExample(NamedTuple):
    """One sampled crystal, or a batch, with the inputs of the loss; log-probabilities in nats."""

    crystal: Crystals
    logp_old: Float[Any, "*b"]  # under the weights that sampled it
    logp_reference: Float[Any, "*b"]  # under the reference model
    advantage: Float[Any, "*b"]  # reward minus baseline


def make_ppo_loss(config: TransformerConfig, objective: ObjectiveConfig):
    """The loss of one `PpoExample` and its metrics, as `matterform.training.step` expects; without dropout.

    Metrics: `ratio`, `clip_share` (1 if the ratio is outside the clip range) and `kl_step` = r - 1 - log r, a
    non-negative, unbiased estimator of KL(old || new) (docs/formulas/reinforcement.md, eq. 6).
    """

    def example_loss(params: Params, key: PRNGKeyArray | None, example: PpoExample):
        # The sampler always ends a crystal at the last slot, while the network's probability of that is below 1. So the
        # log-probability of the rare crystals of n_max - 1 sites is slightly too low, both here and in logp_old.
        logp = crystal_log_prob(as_network(params, config), None, example.crystal, config).total
        return ppo_loss(logp, example, objective)

    return example_loss


def ppo_loss(
    logp: Float[Array, ""], example: PpoExample, objective: ObjectiveConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The negative objective and the metrics of one crystal, from its log-probability (nats)."""
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
    """Reward minus baseline of every crystal, and the updated running mean of the rewards.

    The running mean includes the present batch; in the first epoch, when `running_mean` is None, it is the mean of the
    batch (docs/formulas/reinforcement.md, eq. 4 and 5).
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
    """Values with zero mean and unit standard deviation; zeros if the values are equal up to rounding."""
    deviation = values.std()
    if deviation <= 1e-6 * max(1.0, float(np.abs(values).max())):
        return np.zeros_like(values)
    return (values - values.mean()) / deviation
