"""Samples and their scores: what a rollout holds, whatever the number of processes."""

import dataclasses

import jax
import numpy as np
import pytest
from pymatgen.core import Structure

from crystalformer.loss import LogProb, log_prob
from crystalformer.rl.ppo.rollout import (
    Policy,
    Rollout,
    Stopwatch,
    gather_crystals,
    make_example_take,
    roll_out,
    samples_per_process,
    score_built,
)
from crystalformer.rl.reward.base import Reward, Scores, make_scores
from crystalformer.sampling.sample import sample

pytestmark = pytest.mark.usefixtures("quick")

GROUPS = np.tile([225, 221, 62, 225], 3)  # as many samples as in test_train.py, so that programs are compiled once


@pytest.fixture(scope="module")
def policy(tiny_config, lively) -> Policy:
    config = dataclasses.replace(tiny_config, n_max=3, num_layers=1)
    return Policy(lively(config), config)


def score_lightness(structures):
    """Minus the weight in a thousand u."""
    values = np.array([-structure.composition.weight / 1000 for structure in structures])
    return make_scores(values, [""] * len(values), -9.0, {"atoms": np.array([float(len(s)) for s in structures])})


@pytest.fixture(scope="module")
def rollout(policy, lively) -> Rollout:
    reference = lively(policy.config, 1)
    watch = Stopwatch()
    found = roll_out(policy, reference, Reward("light", score_lightness, -9.0), jax.random.key(3), GROUPS, watch, 8)
    assert set(watch.seconds) == {"sampling", "likelihood", "building", "reward"}
    np.testing.assert_allclose(
        found.logp_reference, log_prob(reference, policy.config, found.crystals).total, rtol=1e-5
    )
    return found


def test_a_rollout_holds_samples_with_their_log_probabilities_and_rewards(policy, rollout):
    crystals = sample(policy.params, policy.config, jax.random.key(3), GROUPS)
    np.testing.assert_array_equal(rollout.crystals.A, crystals.A)
    np.testing.assert_array_equal(rollout.crystals.G, GROUPS)
    np.testing.assert_allclose(rollout.logp.total, log_prob(policy.params, policy.config, crystals, 8).total, rtol=1e-5)
    np.testing.assert_array_equal(rollout.failed, [bool(problem) for problem in rollout.local.problems])
    np.testing.assert_array_equal(rollout.rewards[rollout.failed], -9)
    np.testing.assert_array_equal(np.isnan(rollout.details["atoms"]), rollout.failed)


def test_samples_of_two_processes_are_those_of_one(policy, rollout):
    """`first_index` lets each process sample its own share."""
    half = sample(policy.params, policy.config, jax.random.key(3), GROUPS[2:], first_index=2)
    np.testing.assert_array_equal(rollout.crystals.A[2:], half.A)
    np.testing.assert_allclose(rollout.crystals.XYZ[2:], half.XYZ, atol=1e-5)


def test_examples_are_gathered_with_their_advantages(rollout):
    take = make_example_take(rollout, np.array([0.5, -1.0, 2.0, *[0.0] * 9], np.float32))
    example = take(np.array([2, 0]), 2)
    assert example.crystal.W.shape == (2, 2)
    np.testing.assert_array_equal(example.crystal.G, GROUPS[[2, 0]])
    np.testing.assert_array_equal(example.advantage, [2.0, 0.5])
    np.testing.assert_array_equal(example.logp_old, rollout.logp.total[[2, 0]])
    np.testing.assert_array_equal(example.logp_reference, rollout.logp_reference[[2, 0]])


def test_failures_are_counted_and_get_the_worst_value():
    metal = Structure(np.eye(3) * 3, ["Cu"], [[0, 0, 0]])
    structures = [metal, None, metal]

    def score(structures):
        return make_scores(
            np.arange(len(structures), dtype=float), [""] * len(structures), -9.0, {"n": np.ones(len(structures))}
        )

    scores = score_built(Reward("test", score, -9.0), structures, ["", "no cell", ""])
    assert scores.values.tolist() == [0, -9, 1]
    assert scores.problems == ["", "no cell", ""]
    assert np.isnan(scores.details["n"][1])
    with pytest.raises(ValueError, match="reward test: expected 2 values"):
        score_built(Reward("test", lambda structures: score(structures[:1]), -9.0), structures[::2], ["", ""])


def test_a_reward_that_is_not_finite_is_an_error():
    metal = Structure(np.eye(3) * 3, ["Cu"], [[0, 0, 0]])
    broken = Reward("broken", lambda structures: Scores(np.array([0.0, np.nan]), ["", ""], {}), -9.0)
    with pytest.raises(ValueError, match=r"reward broken: value nan for structure 1 \(Cu\); expected a finite number"):
        score_built(broken, [metal, metal], ["", ""])


def test_a_batch_is_shared_evenly_or_not_at_all(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    assert samples_per_process(12) == 3
    with pytest.raises(ValueError, match="batch_size must be a multiple of the number of processes; got 10, 4"):
        samples_per_process(10)


def test_one_process_gathers_its_own_crystals(rollout):
    assert gather_crystals(rollout.crystals, 9) is rollout.crystals
    assert isinstance(rollout.logp, LogProb)
