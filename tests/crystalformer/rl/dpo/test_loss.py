"""The losses by hand, and the metrics of a pair."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crystalformer.loss import log_prob
from crystalformer.rl.config import PreferenceConfig
from crystalformer.rl.dpo.examples import reference_log_prob
from crystalformer.rl.dpo.loss import METRICS, PreferencePair, make_pair_loss, preference_loss

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, math.log(1 + math.exp(-0.2))),  # 0.598139: beta m = 0.1 x 2
        ({"beta": 0.5}, math.log(1 + math.exp(-1))),  # 0.313262
        ({"label_smoothing": 0.1}, 0.9 * math.log(1 + math.exp(-0.2)) + 0.1 * math.log(1 + math.exp(0.2))),  # 0.618139
        ({"gamma": 0.05}, math.log(1 + math.exp(-0.2)) + 0.05 * 30),  # 2.098139
        ({"loss": "ipo"}, 9.0),  # (2 - 1 / 0.2)^2
        ({"loss": "ipo", "beta": 0.25, "gamma": 0.1}, 3.0),  # (2 - 2)^2 + 0.1 x 30
    ],
)
def test_losses_of_a_margin_of_two(options, expected):
    found = preference_loss(jnp.float32(2), jnp.float32(-30), PreferenceConfig(**options))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, -0.05),  # -beta / 2
        ({"label_smoothing": 0.2}, -0.03),  # -beta (1 - 2 x 0.2) / 2
        ({"loss": "ipo"}, -10.0),  # 2 (0 - 5)
    ],
)
def test_the_pull_on_a_margin_of_zero(options, expected):
    pull = jax.grad(lambda margin: preference_loss(margin, jnp.float32(0), PreferenceConfig(**options)))(0.0)
    np.testing.assert_allclose(pull, expected, rtol=1e-6)


def test_the_smoothed_loss_is_least_at_the_odds_it_assumes():
    # With a share s of wrong pairs, sigmoid(beta m) = 1 - s at the minimum: m = log(0.9 / 0.1) / 0.1 for s = 0.1.
    config = PreferenceConfig(label_smoothing=0.1)
    slope = jax.grad(lambda margin: preference_loss(margin, jnp.float32(0), config))
    np.testing.assert_allclose(slope(10 * math.log(9)), 0, atol=1e-7)
    assert slope(20.0) < -1e-4
    assert slope(24.0) > 1e-4


def test_metrics_of_a_pair_follow_from_log_probabilities(network, lively, pairs):
    new, old = lively(network, 1), lively(network)
    reference = reference_log_prob(old, network, pairs)
    logp = reference_log_prob(new, network, pairs)
    np.testing.assert_allclose(reference[:, 1], log_prob(old, network, pairs.rejected).total, rtol=1e-6)
    example_loss = make_pair_loss(network, PreferenceConfig(beta=0.3))
    batch_loss = jax.jit(jax.vmap(example_loss, in_axes=(None, None, 0)))
    losses, found = batch_loss(new, None, PreferencePair(*pairs, reference))
    gain = logp - reference
    margin = gain[:, 0] - gain[:, 1]
    expected = {
        "accuracy": margin > 0,
        "ranked": logp[:, 0] > logp[:, 1],
        "margin": margin,
        "logp_chosen": logp[:, 0],
        "logp_rejected": logp[:, 1],
        "reward_chosen": 0.3 * gain[:, 0],
        "reward_rejected": 0.3 * gain[:, 1],
    }
    assert 0 < expected["accuracy"].mean() < 1
    assert set(found) == set(METRICS)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(losses, np.log1p(np.exp(-0.3 * margin)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [False, True])
def test_a_key_matters_only_with_dropout(network, lively, pairs, dropout):
    example = jax.tree.map(
        lambda field: field[0], PreferencePair(*pairs, np.zeros((len(pairs.chosen.G), 2), np.float32))
    )
    example_loss = jax.jit(make_pair_loss(network, PreferenceConfig(), dropout))
    params = lively(network)
    losses = [example_loss(params, jax.random.key(seed), example)[0] for seed in range(2)]
    assert (losses[0] == losses[1]) == (not dropout)


@pytest.mark.parametrize(
    ("name", "value"), [("beta", 0.0), ("label_smoothing", 0.5), ("label_smoothing", -0.1), ("gamma", -1.0)]
)
def test_an_impossible_preference_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} must"):
        PreferenceConfig(**{name: value})


def test_ipo_has_no_label_smoothing():
    with pytest.raises(ValueError, match="label_smoothing belongs to the loss dpo"):
        PreferenceConfig(loss="ipo", label_smoothing=0.1)
