import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matterform.potentials.base import (
    BatchModel,
    Prediction,
    batches_of_like_size,
    check_elements,
    check_neighbors,
    collect_predictions,
    collect_properties,
    run_in_batches,
)


def chain(n: int) -> Structure:
    """n atoms 2 Å apart; models below answer with n."""
    return Structure(Lattice.tetragonal(5, 2 * n), ["Na"] * n, [[0, 0, k / n] for k in range(n)])


def counting_model(batches: list[list[int]], poison: int | None = None) -> BatchModel:
    """Answers with the number of atoms, and notes its batches; a batch with `poison` atoms raises."""

    def run(inputs):
        batches.append(inputs)
        if poison in inputs:
            raise ArithmeticError(f"poison\n  among {len(inputs)}")
        return [float(count) for count in inputs]

    return BatchModel(len, run, (ArithmeticError,))


def test_batches_are_of_like_sizes_and_results_in_order():
    batches = []
    results, problems = run_in_batches([chain(n) for n in (5, 1, 4, 2, 3)], counting_model(batches), batch_size=2)
    assert results == [5, 1, 4, 2, 3]
    assert batches == [[1, 2], [3, 4], [5]]
    assert problems == [""] * 5


def test_batches_of_large_crystals_are_smaller():
    assert batches_of_like_size([20, 20, 20], 3) == [[0, 1, 2]]
    assert batches_of_like_size([100, 30, 2, 30, 500, 1], 3) == [[5, 2, 1], [3], [0], [4]]  # at most 60 atoms in three
    assert batches_of_like_size([4, 4, 5, 30], 3, max_atoms=8) == [[0, 1], [2], [3]]
    assert batches_of_like_size([], 3) == []


def test_a_failing_member_is_found_and_its_companions_are_answered():
    batches = []
    results, problems = run_in_batches([chain(n) for n in (1, 2, 3)], counting_model(batches, poison=2), batch_size=3)
    assert results == [1, None, 3]
    assert problems == ["", "ArithmeticError: poison among 1", ""]
    assert batches == [[1, 2, 3], [1], [2], [3]]


def test_a_structure_without_input_never_reaches_the_model():
    batches = []

    def prepare(structure):
        if len(structure) == 2:
            raise ArithmeticError("no input")
        return len(structure)

    model = counting_model(batches)._replace(prepare=prepare)
    results, problems = run_in_batches([chain(1), chain(2)], model, batch_size=2)
    assert (results, problems, batches) == ([1, None], ["", "ArithmeticError: no input"], [[1]])


def test_what_is_not_expected_goes_up():
    model = BatchModel(len, lambda inputs: [1 / 0 for _ in inputs], (ValueError,))
    with pytest.raises(ZeroDivisionError):
        run_in_batches([chain(1)], model, batch_size=1)
    with pytest.raises(ZeroDivisionError):
        run_in_batches([chain(1)], model._replace(prepare=lambda structure: 1 / 0), batch_size=1)


def test_impossible_crystals_are_refused_with_a_reason(impossible):
    batches = []
    results, problems = run_in_batches(list(impossible.values()), counting_model(batches), batch_size=4)
    assert results == [None] * len(impossible)
    assert all(word in problem for word, problem in zip(impossible, problems, strict=True))
    assert batches == []


@pytest.mark.parametrize(
    "result",
    [
        Prediction(np.nan, np.zeros((1, 3)), np.zeros((3, 3))),
        Prediction(1.0, np.full((1, 3), np.inf), np.zeros((3, 3))),
        Prediction(1.0, np.zeros((1, 3)), np.full((3, 3), np.nan)),
    ],
)
def test_numbers_that_are_not_finite_become_a_problem(result):
    good = Prediction(2.0, np.ones((1, 3)), np.eye(3))
    collected = collect_predictions([result, good, None], ["", "", "refused"])
    assert collected.problems == ["the model's result is not finite", "", "refused"]
    np.testing.assert_array_equal(collected.energy, [np.nan, 2, np.nan])
    assert [forces is None for forces in collected.forces] == [True, False, True]
    assert np.isnan(collected.stress).all(axis=(1, 2)).tolist() == [True, False, True]


def test_properties_that_are_not_finite_become_a_problem():
    collected = collect_properties([np.array([1.0, 2.0]), np.array([1.0, np.nan]), None], ["", "", "refused"], (2,))
    np.testing.assert_array_equal(collected.values, [[1, 2], [np.nan, np.nan], [np.nan, np.nan]])
    assert collected.problems == ["", "the model's result is not finite", "refused"]


def test_elements_are_known_by_symbol_or_number():
    labelled = Structure(Lattice.cubic(4), ["Na+"], [[0, 0, 0]])
    check_elements(labelled, ["Na"])
    check_elements(labelled, range(1, 12))
    with pytest.raises(ValueError, match=r"unknown to the model: Na \(Z = 11\)"):
        check_elements(labelled, range(1, 11))


def test_an_isolated_atom_is_named():
    check_neighbors(chain(3), np.array([0, 1, 1, 2]), 5.0)
    with pytest.raises(ValueError, match="isolated atom: site 1 has no neighbor within 5 Å"):
        check_neighbors(chain(3), np.array([0, 2]), 5.0)
