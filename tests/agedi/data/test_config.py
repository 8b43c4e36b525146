"""Settings of a data set."""

import pytest

from agedi.data.config import DatasetConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeat": 2}, "repeat needs repeat_epoch"),
        ({"repeat_epoch": 2}, "repeat_epoch needs repeat"),
        ({"repeat": 1, "repeat_epoch": 2}, "repeat must be at least 2"),
        ({"repeat": 2, "repeat_epoch": 0}, "repeat_epoch must be at least 1"),
    ],
)
def test_repeated_cells_need_both_numbers(settings, message):
    with pytest.raises(ValueError, match=message):
        DatasetConfig(**settings)
