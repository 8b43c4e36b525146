"""Which rows are held out."""

import numpy as np
import pytest

from matterform.training.split import split_rows


def test_every_row_is_in_one_part_and_the_seed_decides_which():
    rows = split_rows(100, 0.25, 3, "rows")
    assert (len(rows.train), len(rows.held_out)) == (75, 25)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(100))
    for part, same, other in zip(rows, split_rows(100, 0.25, 3, "rows"), split_rows(100, 0.25, 4, "rows"), strict=True):
        np.testing.assert_array_equal(part, same)
        assert set(part.tolist()) != set(other.tolist())


def test_the_split_is_that_of_earlier_versions():
    # Runs that were begun before must go on with the same rows.
    assert split_rows(8, 0.25, 42, "rows").held_out.tolist() == [0, 4]


def test_nothing_may_be_held_out_but_not_everything():
    assert len(split_rows(5, 0.0, 0, "rows").held_out) == 0
    with pytest.raises(ValueError, match=r"validation_fraction 0\.99 leaves none of 5 crystals to train on"):
        split_rows(5, 0.99, 0, "crystals")
