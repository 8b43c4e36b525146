"""Configs refuse values that no model can have, those that are no numbers too."""

import dataclasses
import math

import numpy as np
import pytest

from agedi.config import DiffusionConfig, DiffusionOptions, ModelConfig, from_keywords, split_names
from agedi.data.config import DatasetConfig


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_sizes_must_be_positive_numbers(value):
    with pytest.raises(ValueError, match="cutoff must be positive"):
        ModelConfig(cutoff=value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noisers": ()}, "at least one"),
        ({"noisers": ("Cells",)}, "got 'Cells'"),
        ({"noisers": ("Types", "Types")}, "named once"),
        ({"noisers": ("Positions", "CellPositions")}, "only one noiser may move"),
        ({"sde": "vp"}, "use sde ve with CellPositions"),
        ({"noisers": ("ConfinedCellPositions",)}, "needs a confinement"),
        ({"confinement": (3.0, 1.0)}, "z_min < z_max"),
        ({"sigma_min": -1.0}, "0 < sigma_min < sigma_max"),
        ({"sigma_max": 0.005}, "0 < sigma_min < sigma_max"),
        ({"sigma_max": math.nan}, "0 < sigma_min < sigma_max"),
        ({"smallest_time": -1.0}, "smallest_time must lie between 0 and 1"),
        ({"smallest_time": 2.0}, "smallest_time must lie between 0 and 1"),
        ({"beta_max": math.inf}, "beta_min < beta_max"),
        ({"condition_dropout": 1.0}, "condition_dropout"),
        ({"loss_scaling": (1.0, 2.0)}, "needs 1 numbers"),
    ],
)
def test_contradictions_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(DiffusionConfig(), **changes)


def test_names_may_be_joined_by_commas():
    assert split_names("Positions, Types") == split_names(["Positions", "Types"]) == ("Positions", "Types")
    assert split_names("none") == split_names(()) == ()


def test_keywords_may_be_arrays_and_joined_names():
    options = from_keywords(DiffusionOptions, {"conditioning": "gap,energy", "n_rbf": np.int64(8), "sigma_max": 2})
    assert (options.conditioning, options.n_rbf, options.sigma_max) == (("gap", "energy"), 8, 2.0)
    assert from_keywords(DatasetConfig, {"confinement": np.array([1.0, 4.0])}).confinement == (1.0, 4.0)


@pytest.mark.parametrize(
    ("cls", "keywords", "words"),
    [
        (DiffusionOptions, {"feature_sizes": 4}, "did you mean 'feature_size'"),
        (DiffusionOptions, {"n_blocks": 1.5}, "n_blocks: expected int, found 1.5"),
        (DatasetConfig, {"mask": "Fixed"}, "mask: expected one of 'none', 'MaskFixed'"),
    ],
)
def test_wrong_keywords_are_refused_by_name(cls, keywords, words):
    with pytest.raises(ValueError, match=words):
        from_keywords(cls, keywords)
