"""Crystals as the commands read them: what cannot be read is named, and columns are checked."""

import numpy as np
import pytest

from matterform.cli.crystals import number_column, read_crystals


def test_unreadable_crystals_are_named_with_their_places(folder, capsys):
    crystals = read_crystals(folder / "crystals.csv")
    assert crystals.indices == [0, 2, 3]
    assert list(crystals.refused) == [1]
    assert "structure 1 refused" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"broken\.csv holds no crystal"):
        read_crystals(folder / "broken.csv")


def test_a_limit_counts_from_the_start(folder):
    assert read_crystals(folder / "table.csv", limit=3).indices == [0, 1, 2]


def test_columns_hold_numbers_or_nothing(folder):
    crystals = read_crystals(folder / "holes.csv")
    found = number_column(crystals.structures, "G", folder / "holes.csv")
    np.testing.assert_array_equal(found, [225, np.nan])
    with pytest.raises(ValueError, match="no column 'H'; it has G, wrong"):
        number_column(crystals.structures, "H", folder / "holes.csv")
