"""Settings of fine-tuning refuse what makes no sense, by name."""

import pathlib

import pytest

from crystalformer.rl.config import DpoConfig, ObjectiveConfig, PairingConfig, PpoConfig, PreferenceConfig, RewardConfig

RUN = pathlib.Path("run")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RewardConfig(reward=("beauty",)), "reward: expected one of .*, found 'beauty'"),
        (lambda: RewardConfig(reward=("pair", "force"), weights=(1.0,)), "expected one for each of 2 rewards, found 1"),
        (lambda: RewardConfig(reward_low=2.0, reward_high=1.0), "reward_low must be below reward_high"),
        (lambda: RewardConfig(validity_penalty=-1.0), "validity_penalty must not be negative"),
        (lambda: ObjectiveConfig(clip_ratio=1.0), r"clip_ratio must lie in \(0, 1\); got 1.0"),
        (lambda: PpoConfig(run_dir=RUN, spacegroup=(231,)), r"spacegroup must lie in 1\.\.230; got 231"),
        (lambda: PpoConfig(run_dir=RUN, ppo_epochs=0), "ppo_epochs or sft_epochs must be positive"),
        (lambda: PairingConfig(score_margin=-1.0), "score_margin must be a number of at least 0"),
        (lambda: PreferenceConfig(beta=0.0), "beta must be positive; got 0.0"),
        (lambda: PreferenceConfig(loss="ipo", label_smoothing=0.1), "label_smoothing belongs to the loss dpo"),
        (lambda: DpoConfig(run_dir=RUN, validation_fraction=1.0), r"validation_fraction must lie in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
