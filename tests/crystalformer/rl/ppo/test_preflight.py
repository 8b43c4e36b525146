"""Checks before the first epoch: a reward that always fails, too little memory, other data."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from crystalformer.loss import LogProb
from crystalformer.rl.config import RewardConfig
from crystalformer.rl.ppo import preflight
from crystalformer.rl.ppo.preflight import (
    available_bytes,
    check_memory,
    check_not_all_failed,
    fingerprints,
    try_reward,
)
from crystalformer.rl.ppo.rollout import Policy, Rollout
from crystalformer.rl.reward.base import Reward, Scores
from matterform.training.mesh import make_mesh
from matterform.training.step import PartedStep

REWARD = Reward("made up", lambda structures: None, -9.0)


@pytest.fixture(scope="module")
def policy(tiny_config) -> Policy:
    config = dataclasses.replace(tiny_config, n_max=3, num_layers=1)
    return Policy({"linear": {"w": np.ones((2, 2), np.float32)}}, config)


def rollout_of(random_crystals, problems) -> Rollout:
    """A rollout in which crystals have these problems, and otherwise the reward 1."""
    count = len(problems)
    failed = np.array([bool(problem) for problem in problems])
    values = np.where(failed, -9.0, 1.0)
    logp = LogProb(*np.zeros((4, count), np.float32))
    scores = Scores(values, problems, {})
    return Rollout(random_crystals(count, 3), logp, np.zeros(count, np.float32), values, failed, {}, scores)


def test_a_reward_that_fails_for_all_crystals_is_refused_with_the_reasons(random_crystals):
    check_not_all_failed(REWARD, rollout_of(random_crystals, ["", "broken"]), "samples")
    with pytest.raises(ValueError, match="reward made up failed for all of 2 samples: 2 of 2 failed: 2 x broken"):
        check_not_all_failed(REWARD, rollout_of(random_crystals, ["broken", "broken"]), "samples")


def test_the_trial_logs_the_mean_reward_and_the_failures(policy, random_crystals, monkeypatch, caplog):
    asked = []

    def roll_out(policy, reference, reward, key, groups, watch, part_size):
        asked.append(groups)
        with watch.phase("reward"):
            return rollout_of(random_crystals, [""] * 12 + ["broken"] * 4)

    monkeypatch.setattr(preflight, "roll_out", roll_out)
    frequencies = np.zeros(230)
    frequencies[[61, 224]] = 1
    with caplog.at_level(logging.INFO):
        try_reward(REWARD, policy, frequencies, 1, 8)
    assert set(asked[0]) == {62, 225}
    assert "reward made up: mean 1 over 16 trial samples, 4 failed" in caplog.text
    assert "4 of 16 failed: 4 x broken; each gets the reward -9" in caplog.text


@pytest.mark.parametrize(("needed", "fits"), [(2**20, True), (2**62, False)])
def test_a_gradient_that_needs_too_much_memory_is_refused(policy, random_crystals, monkeypatch, needed, fits):
    batches = []

    def temporary_bytes(params, batch):
        batches.append(batch)
        return needed

    monkeypatch.setattr(preflight, "available_bytes", lambda: 2**33)
    step = PartedStep(lambda *_: None, lambda *_: None, temporary_bytes)
    trial = rollout_of(random_crystals, [""] * 3)
    if fits:
        check_memory(step, policy, trial, 8, make_mesh())
    else:
        with pytest.raises(
            ValueError, match=r"part_size 8: a gradient needs .* GiB on each device, which has 8\.0 GiB"
        ):
            check_memory(step, policy, trial, 8, make_mesh())
    assert batches[0].examples.crystal.W.shape == (8, 3)  # the longest crystals, whatever the trial holds


def test_processors_share_the_memory_of_this_machine():
    assert 2**28 < (available_bytes() or 0) < 2**50
    assert jax.default_backend() == "cpu"


def test_fingerprints_are_of_weights_space_groups_and_files(policy, tmp_path):
    table, moved = tmp_path / "hull.csv", tmp_path / "moved.csv"
    table.write_text("Cu,0\n")
    moved.write_text("Cu,0\n")
    groups = np.ones(230)
    first = fingerprints(policy, groups, RewardConfig(convex_path=table))
    assert set(first) == {"reference", "space groups", "convex_path"}
    assert fingerprints(policy, groups, RewardConfig(convex_path=moved)) == first
    moved.write_text("Cu,1\n")
    assert fingerprints(policy, groups, RewardConfig(convex_path=moved))["convex_path"] != first["convex_path"]
    assert fingerprints(policy, 2 * groups, RewardConfig())["space groups"] != first["space groups"]
    other = policy._replace(params={"linear": {"w": np.zeros((2, 2), np.float32)}})
    assert fingerprints(other, groups, RewardConfig())["reference"] != first["reference"]
