"""Settings of optimisers and loops refuse what cannot be trained with, by name."""

import dataclasses

import pytest

from matterform.config import from_dict, to_dict
from matterform.training.config import LoopConfig, OptimizerConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive; got 0.0"),
        ({"b1": 1.0}, r"b1 must be in \[0, 1\); got 1.0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, or none; got 0.0"),
        ({"warmup_steps": 3, "warmup_fraction": 0.1}, "warmup_steps or warmup_fraction; got 3, 0.1"),
        ({"weight_decay": 0.1}, "weight_decay needs optimizer='adamw'; got 0.1 with 'adam'"),
        ({"plateau_patience": 0}, "plateau_patience must be at least 1; got 0"),
    ],
)
def test_impossible_optimisers_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "epochs or max_steps must be given, or max_minutes"),
        ({"epochs": 0}, "epochs must be at least 1, or none; got 0"),
        ({"max_minutes": 0.0}, "max_minutes must be positive, or none; got 0.0"),
        ({"epochs": 1, "patience": 0}, "patience must be at least 1, or none; got 0"),
    ],
)
def test_impossible_loops_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LoopConfig(**settings)


def test_published_names_and_files_give_the_same_settings():
    config = OptimizerConfig(learning_rate=0.5, clip_norm=2.0)
    assert from_dict(OptimizerConfig, to_dict(config)) == config
    assert from_dict(OptimizerConfig, {"lr": 0.5, "gradient_clip_val": 2}) == config
    assert dataclasses.replace(LoopConfig(epochs=2), epochs=3) == LoopConfig(epochs=3)
