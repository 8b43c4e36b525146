"""Row numbers, scores and refused rows of tables."""

import numpy as np
import pytest

from crystalformer.rl.dpo.rows import read_crystal_rows, read_scores, take_crystals

SLOTS = 4


def test_rows_of_a_table_of_sequences_are_its_index(random_crystals, write_samples, tmp_path):
    crystals = random_crystals(3, SLOTS)
    path = write_samples(tmp_path / "samples.csv", crystals, index=[7, 9, 8], problem=["", "too flat", ""])
    found = read_crystal_rows(path, n_max=SLOTS)
    assert (found.rows, found.refused, found.indexed) == ([7, 9, 8], {}, True)
    np.testing.assert_array_equal(found.crystals.A, crystals.A)
    possible = read_crystal_rows(path, n_max=SLOTS, possible=True)
    assert (possible.rows, possible.refused) == ([7, 8], {9: "too flat"})
    np.testing.assert_array_equal(possible.crystals.A, take_crystals(crystals, [0, 2]).A)


def test_an_index_must_be_unique_whole_numbers(random_crystals, write_samples, tmp_path):
    for index in ([3, 3], [1.5, 2], ["", "2"]):
        path = write_samples(tmp_path / "samples.csv", random_crystals(2, SLOTS), index=index)
        with pytest.raises(ValueError, match="index must name each row by another whole number"):
            read_crystal_rows(path, n_max=SLOTS)


def test_scores_that_are_no_numbers_are_nan(random_crystals, write_samples, tmp_path):
    path = write_samples(tmp_path / "samples.csv", random_crystals(3, SLOTS), index=[5, 6, 7], gap=[1.5, "", "NaN"])
    scores = read_scores(path, "gap")
    assert list(scores) == [5, 6, 7]
    np.testing.assert_array_equal(list(scores.values()), [1.5, np.nan, np.nan])
    with pytest.raises(ValueError, match=r"no column 'energy'; its columns are index, .*, gap"):
        read_scores(path, "energy")
