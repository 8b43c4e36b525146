"""Rewards of property models: hand-worked numbers and worst values."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalformer.rl.reward.property import dielectric_reward, property_reward
from matterform.potentials.base import Properties, PropertyModel

COPPER = Structure(Lattice.cubic(3.6), ["Cu"] * 4, [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def model_of(values, problems=None) -> PropertyModel:
    """A property model that gives these, whatever it is asked."""
    values = np.asarray(values, float)
    return PropertyModel("made up", lambda structures: Properties(values, problems or [""] * len(values)))


@pytest.mark.parametrize(
    ("form", "expected", "worst"), [("absolute", [-0.5, -1.5, -4, -4], -4), ("squared", [-0.25, -2.25, -16, -16], -16)]
)
def test_the_property_reward_by_hand(form, expected, worst):
    model = model_of([1.0, 3.0, 9.5, np.nan], ["", "", "", "no value"])
    reward = property_reward(model, target=1.5, form=form, largest_error=4.0)
    scores = reward.score([COPPER] * 4)
    np.testing.assert_allclose(scores.values, expected)
    assert reward.worst == worst
    np.testing.assert_array_equal(scores.details["property"], [1.0, 3.0, 9.5, np.nan])
    assert scores.problems == ["", "", "", "no value"]


def test_a_target_needs_a_model_of_one_number():
    reward = property_reward(model_of(np.zeros((2, 6))), target=1.0)
    with pytest.raises(ValueError, match="made up predicts 6 numbers"):
        reward.score([COPPER, COPPER])
    np.testing.assert_allclose(property_reward(model_of([[2.0]]), target=1.0).score([COPPER]).values, [-1])


@pytest.mark.parametrize(
    "tensor",
    [
        [2.0, 4.0, 9.0, 0.3, 0.2, 0.1],  # xx, yy, zz, yz, xz, xy
        [2.0, 0.1, 0.2, 0.1, 4.0, 0.3, 0.2, 0.3, 9.0],
        [5.0],
    ],
)
def test_the_dielectric_reward_is_the_mean_eigenvalue_times_the_gap(tensor):
    if len(tensor) == 9:
        assert np.linalg.eigvalsh(np.reshape(tensor, (3, 3))).mean() == pytest.approx(5)
    tensors = np.tile(tensor, (3, 1))
    reward = dielectric_reward(model_of(tensors), model_of([2.0, -0.5, np.nan], ["", "", "no gap"]))
    scores = reward.score([COPPER] * 3)
    np.testing.assert_allclose(scores.values, [10, 0, 0])
    assert scores.problems == ["", "", "no gap"]
    np.testing.assert_allclose(scores.details["dielectric"], [5, 5, 5])
    np.testing.assert_array_equal(scores.details["band_gap"], [2.0, -0.5, np.nan])


def test_a_negative_dielectric_constant_counts_as_0():
    scores = dielectric_reward(model_of([-3.0]), model_of([2.0])).score([COPPER])
    np.testing.assert_array_equal(scores.values, [0])


def test_a_tensor_of_a_strange_shape_is_an_error():
    with pytest.raises(ValueError, match="made up predicts 4 numbers for a crystal; expected 1, 6 or 9"):
        dielectric_reward(model_of(np.zeros((1, 4))), model_of([1.0])).score([COPPER])


def test_no_structures_give_no_scores_under_the_same_names():
    for reward, names in (
        (property_reward(model_of([]), 0.0), {"property"}),
        (dielectric_reward(model_of(np.zeros((0, 6))), model_of([])), {"dielectric", "band_gap"}),
    ):
        scores = reward.score([])
        assert scores.values.shape == (0,)
        assert set(scores.details) == names
