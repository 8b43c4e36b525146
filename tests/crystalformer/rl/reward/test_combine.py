"""Sums, clips, penalties and bonuses, by hand."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalformer.rl.reward.base import Reward, Scores, make_scores
from crystalformer.rl.reward.combine import (
    clipped,
    weighted_sum,
    with_composition_penalty,
    with_novelty_bonus,
    with_uniqueness_bonus,
    with_unknown_penalty,
    with_validity_penalty,
)
from matterform.io.formats import write_structures


def salt(a: float = 5.6, cation: str = "Na") -> Structure:
    """Rock salt in its primitive cell, with the conventional edge `a` (Å)."""
    lattice = Lattice([[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]])
    return Structure(lattice, [cation, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


CLOSE = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.25]])  # 1.0 Å apart; their radii ask for 1.7
FLAT = Structure(Lattice([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), ["Cu"], [[0, 0, 0]])


def reward_of(values, problems=None, name="first", worst=-10.0, details=None, relaxed=None) -> Reward:
    """A reward that gives these, whatever it is asked."""
    problems = problems or [""] * len(values)
    scores = make_scores(np.array(values, float), problems, worst, details, relaxed)
    return Reward(name, lambda structures: scores, worst)


def test_a_sum_weighs_values_and_worst_values():
    first = reward_of([1, 2, 3, 4], ["", "no energy", "", ""], details={"energy": np.array([1.0, np.nan, 2.0, 3.0])})
    second = reward_of([10, 20, 30, 40], ["", "no gap", "no gap", ""], "second", -2.0, {"gap": np.arange(4.0)})
    reward = weighted_sum([(2.0, first), (0.5, second)])
    scores = reward.score([salt()] * 4)
    assert reward.worst == -21
    np.testing.assert_allclose(scores.values, [7, -21, -21, 28])
    assert scores.problems == ["", "no energy", "no gap", ""]
    assert reward.name == "2 first + 0.5 second"
    assert set(scores.details) == {"reward_first", "reward_second", "energy", "gap"}
    np.testing.assert_array_equal(scores.details["reward_second"], [10, -2, -2, 40])
    np.testing.assert_array_equal(scores.details["energy"], [1, np.nan, 2, 3])


def test_details_of_one_name_are_told_apart_and_relaxed_crystals_kept():
    relaxed = [salt(), None]
    first = reward_of([1, 2], details={"gap": np.zeros(2)})
    second = reward_of([1, 2], name="second", details={"gap": np.ones(2)}, relaxed=relaxed)
    scores = weighted_sum([(1.0, first), (1.0, second)]).score([salt()] * 2)
    np.testing.assert_array_equal(scores.details["first_gap"], [0, 0])
    np.testing.assert_array_equal(scores.details["second_gap"], [1, 1])
    assert scores.relaxed is relaxed
    assert weighted_sum([(1.0, first)]).score([salt()] * 2).relaxed is None


def test_sums_that_make_no_sense_are_refused():
    first = reward_of([1])
    with pytest.raises(ValueError, match="different names; got none"):
        weighted_sum([])
    with pytest.raises(ValueError, match="different names; got first, first"):
        weighted_sum([(1.0, first), (1.0, first)])
    for weight in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="the weight of the reward first must be positive"):
            weighted_sum([(weight, first)])


def test_clips_hold_for_the_worst_value_too():
    reward = clipped(reward_of([-5, 0.5, 9, 1], ["", "", "", "broken"]), -2.0, 3.0)
    scores = reward.score([salt()] * 4)
    np.testing.assert_array_equal(scores.values, [-2, 0.5, 3, -2])
    assert reward.worst == -2
    assert scores.problems == ["", "", "", "broken"]
    with pytest.raises(ValueError, match="clips must be ordered; got low = 3, high = -2"):
        clipped(reward, 3.0, -2.0)


def test_a_validity_penalty_falls_on_crowded_crystals_and_lowers_the_worst():
    reward = with_validity_penalty(reward_of([1, 1, 1], ["", "", "broken"]), 4.0)
    scores = reward.score([salt(), CLOSE, FLAT])
    np.testing.assert_array_equal(scores.values, [1, -3, -14])
    np.testing.assert_array_equal(scores.details["valid"], [1, 0, 0])
    assert reward.worst == -14
    assert scores.problems == ["", "", "broken"]


def test_a_composition_penalty_falls_on_what_cannot_be_neutral():
    pytest.importorskip("smact")
    crowd = salt()
    crowd.append("Na", [0.25, 0.25, 0.25])  # Na2Cl
    scores = with_composition_penalty(reward_of([1, 1]), 0.5).score([salt(), crowd])
    np.testing.assert_array_equal(scores.values, [1, 0.5])
    np.testing.assert_array_equal(scores.details["valid_composition"], [1, 0])


def test_crystals_of_many_elements_are_no_work_for_the_composition_penalty():
    pytest.importorskip("smact")
    metals = ["Fe", "Mn", "V", "Cr", "Mo", "W", "Re", "Os", "Ru", "Rh", "Ir", "Pt"]  # all combinations take days
    many = Structure(Lattice.cubic(9), [*metals, "S", "Cl"], [[i / 14, 0, 0] for i in range(14)])
    scores = with_composition_penalty(reward_of([1, 1]), 0.5).score([many, salt()])
    np.testing.assert_array_equal(scores.details["valid_composition"], [0, 1])


def test_an_unknown_penalty_falls_on_systems_that_the_hull_does_not_know():
    problems, known = ["", "", "broken"], np.array([1, 0, np.nan])
    reward = with_unknown_penalty(reward_of([-1, 0, 0], problems, details={"known_system": known}), 0.5)
    scores = reward.score([salt()] * 3)
    np.testing.assert_array_equal(scores.values, [-1, -0.5, -10.5])
    assert (reward.worst, scores.problems) == (-10.5, problems)


def test_only_the_first_of_its_kind_gets_the_uniqueness_bonus():
    reward = with_uniqueness_bonus(reward_of([1, 1, 1, 1], ["broken", "", "", ""]), 0.25)
    scores = reward.score([salt(), salt(), salt(5.61), salt(cation="K")])
    np.testing.assert_array_equal(scores.values, [-10, 1.25, 1, 1.25])
    np.testing.assert_array_equal(scores.details["unique"], [np.nan, 1, 0, 1])
    assert reward.worst == -10


def test_relaxed_crystals_are_compared_where_there_are_some():
    reward = with_uniqueness_bonus(reward_of([0, 0], relaxed=[salt(), salt()]), 1.0)
    very_different = Structure(Lattice.tetragonal(4, 12), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.1]])
    np.testing.assert_array_equal(reward.score([salt(), very_different]).values, [1, 0])


@pytest.mark.parametrize("source", ["structures", "table.csv", "crystals.extxyz", "folder"])
def test_crystals_that_match_none_of_the_reference_get_the_novelty_bonus(tmp_path, source):
    reference = [salt(), salt(cation="Li", a=5.1)]
    if source != "structures":
        write_structures(tmp_path / source, reference)
    reward = with_novelty_bonus(
        reward_of([1, 1, 1, 1, 1], ["", "", "", "", "broken"]),
        0.5,
        reference if source == "structures" else tmp_path / source,
    )
    split = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])  # CsCl type
    for _ in range(2):
        scores = reward.score([salt(5.62), split, salt(5.1, "Li"), salt(cation="K"), salt(cation="K")])
        np.testing.assert_array_equal(scores.values, [1, 1.5, 1, 1.5, -10])
        np.testing.assert_array_equal(scores.details["novel"], [0, 1, 0, 1, np.nan])


@pytest.mark.parametrize("wrap", [with_validity_penalty, with_composition_penalty, with_uniqueness_bonus])
def test_sizes_that_are_negative_or_infinite_are_refused(wrap):
    for size in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="must not be negative"):
            wrap(reward_of([1]), size)


def test_no_structures_are_combined_to_no_scores():
    nothing = Reward("first", lambda structures: Scores(np.zeros(0), [], {"x": np.zeros(0)}), -1.0)
    reward = weighted_sum([(1.0, nothing), (2.0, nothing._replace(name="second"))])
    for wrap in (with_validity_penalty, with_uniqueness_bonus):
        reward = wrap(reward, 1.0)
    scores = with_novelty_bonus(reward, 1.0, [salt()]).score([])
    assert scores.values.shape == (0,)
    assert {"valid", "unique", "novel"} < set(scores.details)
