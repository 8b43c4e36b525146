"""Parquet keeps rows exactly, and files in the published layout are read as they were written."""

import sys

import numpy as np
import pytest

from atomformer.data import tables
from atomformer.data.rows import check_row
from atomformer.data.sources import iterate_rows, write_parquet

pytest.importorskip("pyarrow")
import pyarrow as pa
from pyarrow import parquet

PUBLISHED = {
    "input_ids": [[8, 1, 1], [6], [1, 1]],
    "coords": [[[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]], [[0, 0, 0]], [[0, 0, 0], [0, 0, 0.74]]],
    "forces": [[[0.1, 0, 0], [0, 0, 0], [-0.1, 0, 0]], None, [[0, 0, 1], [0, 0, -1]]],
    "formation_energy": [-1.5, 0.0, float("nan")],
    "has_formation_energy": [True, False, True],
    "total_energy": [-76.0, None, -1.17],
    "token_type_ids": [[0, 0, 0], None, [2, 2]],
}


def molecule(rng, n, **columns):
    return check_row({"input_ids": rng.integers(1, 119, n), "coords": rng.normal(size=(n, 3)) * 10} | columns)


def full_rows(rng):
    """Every column of the schema, in different rows."""
    return [
        molecule(rng, 3, total_energy=0.1 + 0.2, id="first", gap=1.25, labels=[1.0, np.nan]),
        molecule(rng, 1, formation_energy=0.1, cell=np.eye(3) / 3, pbc=[True, False, True]),
        molecule(rng, 4, forces=rng.normal(size=(4, 3)), fixed=[0, 1, 0, 1]),
        molecule(rng, 2, token_type_ids=[1, 2], relaxed_coords=rng.normal(size=(2, 3))),
    ]


def assert_same_rows(reads, expected):
    reads = list(reads)
    assert [(read.index, read.reason) for read in reads] == [(index, "") for index in range(len(expected))]
    for read, row in zip(reads, expected, strict=True):
        assert read.row.keys() == row.keys()
        for name, value in row.items():
            np.testing.assert_array_equal(read.row[name], value, err_msg=name)


@pytest.mark.parametrize("rows_at_once", [2, 1000])
def test_rows_come_back_from_parquet_exactly(rng, tmp_path, monkeypatch, rows_at_once):
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", rows_at_once)
    rows = full_rows(rng)
    assert write_parquet(tmp_path / "rows.parquet", iter(rows)) == 4
    assert_same_rows(iterate_rows(tmp_path / "rows.parquet"), rows)


def test_written_files_have_the_published_columns(rng, tmp_path):
    write_parquet(tmp_path / "rows.parquet", full_rows(rng))
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert PUBLISHED.keys() <= set(table.column_names)
    assert table["has_formation_energy"].to_pylist() == [False, True, False, False]
    assert table["formation_energy"].to_pylist() == [None, 0.1, None, None]
    assert table["coords"].type == pa.list_(pa.list_(pa.float64()))


def test_the_published_layout_keeps_rows_without_formation_energy(tmp_path):
    parquet.write_table(pa.table(PUBLISHED), tmp_path / "rows.parquet")
    expected = [{name: values[i] for name, values in PUBLISHED.items()} for i in range(3)]
    rows = [check_row(row) for row in expected]
    assert ["formation_energy" in row for row in rows] == [True, False, False]
    assert ["total_energy" in row for row in rows] == [True, False, True]
    assert_same_rows(iterate_rows(tmp_path / "rows.parquet"), rows)


@pytest.mark.parametrize(
    "types",
    [
        {"input_ids": pa.large_list(pa.int8()), "coords": pa.large_list(pa.list_(pa.float64(), 3))},
        {"input_ids": pa.list_(pa.uint16()), "forces": pa.list_(pa.large_list(pa.float64()))},
    ],
)
def test_other_kinds_of_lists_are_the_same_to_us(tmp_path, types):
    columns = {name: pa.array(values, types.get(name)) for name, values in PUBLISHED.items()}
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    expected = [check_row({name: values[i] for name, values in PUBLISHED.items()}) for i in range(3)]
    assert_same_rows(iterate_rows(tmp_path / "rows.parquet"), expected)


def test_labels_may_be_numbers_or_lists_and_structs_are_left_out(tmp_path):
    base = {name: PUBLISHED[name] for name in ("input_ids", "coords")}
    extra = {"labels": [[1, 2], [3, 4], None], "gap": [0.5, None, 1.0], "where": [{"id": 1}] * 3}
    parquet.write_table(pa.table(base | extra), tmp_path / "rows.parquet")
    rows = [read.row for read in iterate_rows(tmp_path / "rows.parquet")]
    assert [row.get("gap") for row in rows] == [0.5, None, 1.0]
    assert [row["labels"].tolist() for row in rows[:2]] == [[1, 2], [3, 4]]
    assert all(row.keys() & {"labels", "gap", "where"} <= {"labels", "gap"} for row in rows)


def test_reading_takes_one_batch_at_a_time(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 10)
    write_parquet(tmp_path / "rows.parquet", (molecule(rng, 2) for _ in range(100)))
    sizes = []
    rows_of = tables._rows_of
    monkeypatch.setattr(tables, "_rows_of", lambda batch, names: sizes.append(len(batch)) or rows_of(batch, names))
    reads = iterate_rows(tmp_path / "rows.parquet")
    for _ in range(11):
        next(reads)
    assert sizes == [10, 10]


def test_a_bad_row_is_refused_and_the_others_are_read(tmp_path):
    columns = {name: PUBLISHED[name] for name in ("input_ids", "coords")}
    columns["coords"] = [columns["coords"][0], [[0, 0]], [[0, 0, 0], [0, None, 0.74]]]
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    reads = list(iterate_rows(tmp_path / "rows.parquet"))
    assert [read.row is None for read in reads] == [False, True, True]
    assert "expected shape (1, 3) for 1 atoms, found (1, 2)" in reads[1].reason
    assert "coords" in reads[2].reason


def test_an_interrupted_write_leaves_nothing(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 1)

    def interrupted():
        yield from full_rows(rng)[:1] * 3
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_parquet(tmp_path / "rows.parquet", interrupted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"gap": 1.0}, "column gap comes late: row 1 has it"),
        ({"gap": 1.0}, {"gap": "wide"}, "column gap in rows 1 to 1 must be double"),
        ({"labels": 1.0}, {"labels": [1.0]}, "column labels in rows 1 to 1 must be double"),
    ],
)
def test_columns_must_stay_as_they_began(rng, tmp_path, monkeypatch, first, second, message):
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 1)
    with pytest.raises(ValueError, match=message) as refused:
        write_parquet(tmp_path / "rows.parquet", [molecule(rng, 2, **first), molecule(rng, 2, **second)])
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_no_rows_make_no_file(tmp_path):
    with pytest.raises(ValueError, match="at least one row to write, found none"):
        write_parquet(tmp_path / "rows.parquet", [])
    assert list(tmp_path.iterdir()) == []


def test_a_table_without_coordinates_is_refused_at_once(tmp_path):
    parquet.write_table(pa.table({"input_ids": [[1]], "xyz": [[[0.0, 0.0, 0.0]]]}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="has no column 'coords'; it has input_ids, xyz"):
        next(iterate_rows(tmp_path / "rows.parquet"))


def test_a_cut_file_is_explained_in_one_line(rng, tmp_path):
    path = tmp_path / "rows.parquet"
    write_parquet(path, full_rows(rng))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"rows.parquet cannot be read as a table") as refused:
        list(iterate_rows(path))
    assert "\n" not in str(refused.value)


def test_without_pyarrow_the_error_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'matterform\[datasets\]'"):
        write_parquet(tmp_path / "rows.parquet", [])
