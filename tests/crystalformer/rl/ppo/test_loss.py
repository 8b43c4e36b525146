"""The objective against hand-worked numbers, REINFORCE and the analytic optimum; baselines by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crystalformer.loss import crystal_log_prob
from crystalformer.network.parameters import as_network
from crystalformer.rl.config import ObjectiveConfig
from crystalformer.rl.ppo.loss import PpoExample, advantages, make_ppo_loss, ppo_loss

pytestmark = pytest.mark.usefixtures("quick")


def example_of(logp_old, logp_reference, advantage) -> PpoExample:
    return PpoExample(None, *(jnp.float32(value) for value in (logp_old, logp_reference, advantage)))


def test_loss_by_hand():
    # r = e^0.5 = 1.6487, A = 1 - 0.1 * (-1 - -3) = 0.8: clipped to 1.2, min(1.319, 0.96).
    loss, metrics = ppo_loss(jnp.float32(-1), example_of(-1.5, -3, 1), ObjectiveConfig())
    assert float(loss) == pytest.approx(-0.96, rel=1e-6)
    assert jax.tree.map(float, metrics) == pytest.approx(
        {"ratio": 1.6487213, "clip_share": 1.0, "kl_step": 1.6487213 - 1 - 0.5}, rel=1e-5
    )
    # A = -1 - 0.2 = -1.2: the minimum is the unclipped -1.978.
    loss, _ = ppo_loss(jnp.float32(-1), example_of(-1.5, -3, -1), ObjectiveConfig())
    assert float(loss) == pytest.approx(1.2 * 1.6487213, rel=1e-6)


def test_ratio_is_one_and_the_gradient_is_that_of_reinforce_at_the_first_step(tiny_config, lively, random_crystals):
    config = dataclasses.replace(tiny_config, n_max=4, num_layers=1)
    params, objective = lively(config), ObjectiveConfig(beta=0.3)
    crystals = jax.tree.map(jnp.asarray, random_crystals(6, config.n_max))

    def logps(params):
        network = as_network(params, config)
        return jax.vmap(lambda crystal: crystal_log_prob(network, None, crystal, config).total)(crystals)

    logp = jax.jit(logps)(params)
    reference, rewards = logp - jnp.linspace(-1, 2, len(logp)), jnp.linspace(-3, 1, len(logp))
    examples = PpoExample(crystals, logp, reference, rewards)
    example_loss = make_ppo_loss(config, objective)

    def loss(params):
        losses, metrics = jax.vmap(example_loss, in_axes=(None, None, 0))(params, None, examples)
        return losses.mean(), metrics

    gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(metrics["ratio"], 1, atol=1e-5)
    assert not metrics["clip_share"].any()
    # d/dtheta of -[r (R - beta (logp - reference))] at r = 1, by hand: -(R - beta (logp - reference) - beta) dlogp.
    weights = rewards - objective.beta * (logp - reference) - objective.beta
    expected = jax.jit(jax.grad(lambda params: -(weights * logps(params)).mean()))(params)
    for name, leaves in expected.items():
        for leaf, value in leaves.items():
            np.testing.assert_allclose(gradient[name][leaf], value, rtol=2e-4, atol=2e-5, err_msg=f"{name}/{leaf}")


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_policy_over_letters_converges_to_the_analytic_optimum(beta):
    # All letters are enumerated, each weighted by the probability to draw it, so nothing is left to chance.
    rewards = jnp.array([0.3, -0.2, 0.5, 0.0, -1.0])
    reference = jax.nn.log_softmax(jnp.array([0.0, 1.0, -1.0, 0.5, 0.2]))
    objective, optimizer = ObjectiveConfig(beta=beta), optax.adam(0.02)

    def loss(logits, old, baseline):
        losses, _ = jax.vmap(lambda logp, example: ppo_loss(logp, example, objective))(
            jax.nn.log_softmax(logits), PpoExample(None, old, reference, rewards - baseline)
        )
        return jnp.sum(jnp.exp(old) * losses)

    def epoch(carry, _):
        logits, opt_state = carry
        old = jax.nn.log_softmax(logits)
        for _ in range(5):
            updates, opt_state = optimizer.update(jax.grad(loss)(logits, old, jnp.exp(old) @ rewards), opt_state)
            logits = optax.apply_updates(logits, updates)
        return (logits, opt_state), None

    start = jnp.asarray(reference)
    (logits, _), _ = jax.lax.scan(epoch, (start, optimizer.init(start)), None, length=600)
    optimum = jax.nn.softmax(reference + rewards / beta)
    np.testing.assert_allclose(jax.nn.softmax(logits), optimum, atol=2e-3)
    assert np.abs(jax.nn.softmax(reference) - optimum).max() > 0.1  # there was something to learn


def test_running_baseline_by_hand():
    objective = ObjectiveConfig(baseline_decay=0.9)
    first, mean = advantages(np.array([1.0, 3.0]), np.array([1, 2]), None, objective)
    np.testing.assert_allclose(first, [-1, 1])
    assert mean == 2.0
    second, mean = advantages(np.array([4.0, 8.0]), np.array([1, 2]), mean, objective)
    assert mean == pytest.approx(0.9 * 2 + 0.1 * 6)
    np.testing.assert_allclose(second, [4 - 2.4, 8 - 2.4], rtol=1e-6)


def test_group_baseline_by_hand():
    rewards, groups = np.array([1.0, 3.0, 5.0, 2.0, 2.0]), np.array([225, 225, 14, 62, 62])
    values, mean = advantages(rewards, groups, 7.0, ObjectiveConfig(baseline="group"))
    batch = (rewards[2] - rewards.mean()) / rewards.std()  # the only one of its group
    np.testing.assert_allclose(values, [-1, 1, batch, 0, 0], rtol=1e-6)
    assert mean == pytest.approx(0.95 * 7 + 0.05 * 2.6)


def test_equal_rewards_teach_nothing_whatever_their_rounding():
    rewards = np.full(7, 0.1) + np.array([0, 1, -1, 0, 2, 0, -1]) * 1e-17
    values, _ = advantages(rewards, np.full(7, 225), None, ObjectiveConfig(baseline="group"))
    assert not values.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clip_ratio": 0.0}, "clip_ratio must lie in"),
        ({"beta": -1.0}, "beta must not be negative"),
        ({"baseline_decay": 1.0}, "baseline_decay must lie in"),
    ],
)
def test_wrong_constants_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**wrong)
