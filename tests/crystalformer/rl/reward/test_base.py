"""Worst values, and the summary of failures."""

import numpy as np

from crystalformer.rl.reward.base import describe_problems, make_scores


def test_failures_and_lower_values_count_as_the_worst():
    scores = make_scores(np.array([1.0, np.nan, 3.0, -9.0, np.inf]), ["", "", "broken", "", ""], worst=-5.0)
    np.testing.assert_array_equal(scores.values, [1, -5, -5, -5, -5])
    assert scores.problems == ["", "its reward is not finite", "broken", "", "its reward is not finite"]


def test_problems_are_grouped_by_what_stands_before_their_first_number():
    problems = [
        "",
        "cell volume too small: 0.1 Å³, below 0.5 Å³",
        "cell volume too small: 0.2 Å³",
        "it has no site",
        "",
    ]
    assert describe_problems(problems) == "3 of 5 failed: 2 x cell volume too small; 1 x it has no site"
    assert describe_problems(["unknown element Og (Z = 118)"]) == "1 of 1 failed: 1 x unknown element Og"
    assert describe_problems(["3 atoms"]) == "1 of 1 failed: 1 x 3 atoms"
    assert describe_problems(["", ""]) == "0 of 2 failed"
    lonely = "ValueError: isolated atom: site 3 has no neighbor within 6 Å"
    problems = ["a cell length is not positive: -3 angstrom", "no cell has these angles: 60.0, 60.0, 130.0", lonely]
    problems += ["after 12 steps: atoms too close: 0.312 Å", "after 4 steps: cell volume 2"]
    assert describe_problems(problems) == (
        "5 of 5 failed: 1 x a cell length is not positive; 1 x no cell has these angles; "
        "1 x ValueError: isolated atom; 1 x in relaxation: atoms too close; 1 x in relaxation: cell volume"
    )


def test_lists_of_elements_are_one_kind_that_names_the_most_frequent():
    missing = [["Cd", "Pt"], ["Pt"], ["Pt", "Hg"], ["Cd", "Tl", "Bi", "Au", "Ag"], ["Hg", "Au"]]
    problems = [f"no elemental entry in the hull: {', '.join(symbols)}" for symbols in missing]
    problems += ["ValueError: element unknown to the model: Og (Z = 118)"] * 2
    assert describe_problems(problems) == (
        "7 of 7 failed: 5 x no elemental entry in the hull: Pt (3), Cd (2), Hg (2), Au (2), Tl and 2 other elements; "
        "2 x ValueError: element unknown to the model: Og (2)"
    )


def test_the_line_about_problems_is_bounded():
    problems = [f"a reason {'x' * n}" for n in range(1, 9)] + ["y" * 1000] * 2
    line = describe_problems(problems)
    assert line.startswith(f"10 of 10 failed: 2 x {'y' * 80}; 1 x a reason x; ")
    assert line.endswith("; 3 x something else")
