import csv
import json

import numpy as np
import pytest

from crystalformer.data import convert
from crystalformer.data.convert import read_csv
from crystalformer.data.crystals import Crystals
from crystalformer.data.dataset import (
    open_dataset,
    open_properties,
    prepare,
)


def assert_equal(crystals: Crystals, expected: Crystals) -> None:
    for name, array, other in zip(Crystals._fields, crystals, expected, strict=True):
        np.testing.assert_array_equal(array, other, err_msg=name)
        assert array.dtype == other.dtype


def test_prepared_folder_opens_as_memory_mapped_arrays(table, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "ROWS_AT_ONCE", 4)
    summary = prepare(table, tmp_path / "out")
    crystals, (expected, refused) = open_dataset(tmp_path / "out"), read_csv(table)
    assert all(isinstance(array, np.memmap) for array in crystals)
    assert_equal(crystals, expected)
    assert summary == (5, refused)
    assert np.load(tmp_path / "out" / "row.npy").tolist() == [0, 1, 2, 5, 8]


def test_prepared_folder_tells_what_was_refused_and_where_it_came_from(table, tmp_path):
    _, refused = prepare(table, tmp_path / "out")
    with (tmp_path / "out" / "refused.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"row": str(i), "material_id": f"m-{i}", "reason": reason} for i, reason in refused.items()]
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta == {"format_version": 1, "source": "crystals.csv", "n_max": 21, "accepted": 5, "refused": 4}


def test_numeric_columns_are_kept_as_properties(table, tmp_path):
    prepare(table, tmp_path / "out")
    properties = open_properties(tmp_path / "out")
    assert set(properties) == {"band_gap"}
    np.testing.assert_array_equal(properties["band_gap"], [5.0, 7.8, 1.0, np.nan, 5.0])


def test_an_interrupted_preparation_leaves_nothing(table, tmp_path):
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(table, tmp_path / "out", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["crystals.csv"]


def test_a_folder_that_holds_something_is_not_overwritten(table, tmp_path):
    prepare(table, tmp_path / "out")
    with pytest.raises(ValueError, match="already holds something"):
        prepare(table, tmp_path / "out")


def test_a_table_without_usable_crystals_is_an_error(table, tmp_path):
    with pytest.raises(ValueError, match=r"holds no crystal that could be used.*row 0: too many sites"):
        prepare(table, tmp_path / "out", n_max=2)


def test_only_prepared_folders_of_this_version_open(table, tmp_path):
    with pytest.raises(ValueError, match=r"no meta\.json"):
        open_dataset(tmp_path)
    prepare(table, tmp_path / "out")
    (tmp_path / "out" / "meta.json").write_text('{"format_version": 2}')
    with pytest.raises(ValueError, match="format_version 1, found 2"):
        open_dataset(tmp_path / "out")
