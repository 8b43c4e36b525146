"""Losses of preference pairs: direct preference optimisation (DPO) and its variant IPO.

DPO: Rafailov et al., arXiv:2305.18290, eq. 7; IPO: Azar et al., arXiv:2310.12036, eq. 17
(docs/formulas/reinforcement.md, eq. 7 to 9).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from crystalformer.config import TransformerConfig
from crystalformer.data.crystals import Crystals
from crystalformer.loss import crystal_log_prob
from crystalformer.network.parameters import Params, as_network
from crystalformer.rl.config import PreferenceConfig
from matterform.training.step import ExampleLoss

METRICS = ("accuracy", "ranked", "margin", "logp_chosen", "logp_rejected", "reward_chosen", "reward_rejected")


class PreferencePair(NamedTuple):
    """A chosen and a rejected crystal, or a batch of such pairs; log-probabilities in nats."""

    chosen: Crystals
    rejected: Crystals
    logp_reference: Float[Any, "*b 2"]  # of (chosen, rejected) under the reference model


def preference_loss(
    margin: Float[Array, "*b"], logp_chosen: Float[Array, "*b"], config: PreferenceConfig
) -> Float[Array, "*b"]:
    """Loss of pairs from their margin m and log p(chosen) (docs/formulas/reinforcement.md, eq. 8 and 9)."""
    if config.loss == "ipo":
        loss = (margin - 1 / (2 * config.beta)) ** 2
    else:
        right, wrong = jax.nn.log_sigmoid(config.beta * margin), jax.nn.log_sigmoid(-config.beta * margin)
        loss = -(1 - config.label_smoothing) * right - config.label_smoothing * wrong
    return loss - config.gamma * logp_chosen


def make_pair_loss(transformer: TransformerConfig, preference: PreferenceConfig, dropout: bool = False) -> ExampleLoss:
    """The loss of one `PreferencePair` and its metrics, as `matterform.training.step` expects.

    Metrics: `accuracy` is 1 if the margin m is positive, `ranked` is 1 if the chosen crystal is more likely than the
    rejected one, and `reward_*` are the implicit rewards beta (log p - log p_reference).
    """

    def example_loss(params: Params, key: PRNGKeyArray | None, pair: PreferencePair):
        network = as_network(params, transformer)
        both = jax.tree.map(lambda chosen, rejected: jnp.stack([chosen, rejected]), pair.chosen, pair.rejected)
        keys = jax.random.split(key) if dropout and key is not None else None

        def total(key: PRNGKeyArray | None, crystal: Crystals) -> Float[Array, ""]:
            return crystal_log_prob(network, key, crystal, transformer).total

        logp = jax.vmap(total, in_axes=(None if keys is None else 0, 0))(keys, both)
        log_ratio = logp - pair.logp_reference
        margin = log_ratio[0] - log_ratio[1]
        metrics = {
            "accuracy": (margin > 0).astype(jnp.float32),
            "ranked": (logp[0] > logp[1]).astype(jnp.float32),
            "margin": margin,
            "logp_chosen": logp[0],
            "logp_rejected": logp[1],
            "reward_chosen": preference.beta * log_ratio[0],
            "reward_rejected": preference.beta * log_ratio[1],
        }
        return preference_loss(margin, logp[0], preference), metrics

    return example_loss
