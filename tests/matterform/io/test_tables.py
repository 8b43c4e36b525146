"""CSV files: rows as they come, resuming, whole tables, and clear errors."""

import gzip
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from matterform.io.tables import iterate_chunks, open_rows, read_rows, read_table, write_table


def test_rows_are_in_the_file_as_they_come(tmp_path):
    path = tmp_path / "new" / "x.csv"
    with open_rows(path, ("step", "loss", "note")) as table:
        assert path.read_text() == "step,loss,note\n"
        table.write({"step": 1, "loss": np.float32(1) / 3, "note": 'a, "b"\nc'})
        assert path.read_text().endswith('1,0.3333333432674408,"a, ""b""\nc"\n')
        table.write({"step": 2, "loss": np.nan}, {"note": None, "step": True})
    assert path.read_text().endswith("2,,\nTrue,,\n")
    assert read_rows(path)[0] == {"step": "1", "loss": "0.3333333432674408", "note": 'a, "b"\nc'}


def test_a_program_that_dies_leaves_the_rows_before(tmp_path):
    code = (
        "import os, sys\nfrom matterform.io.tables import open_rows\n"
        "table = open_rows(sys.argv[1], ['a'])\ntable.write({'a': 'x' * 20_000}, {'a': 2})\nos._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.csv")], check=False)
    assert [row["a"] for row in read_rows(tmp_path / "x.csv")] == ["x" * 20_000, "2"]


@pytest.mark.parametrize("torn", ["3,0.1", '3,"data_a', '3,"data_a\n', '3,"é', "3"])
def test_a_continued_file_equals_the_uninterrupted_one(tmp_path, torn):
    with open_rows(tmp_path / "whole.csv", ("step", "cif")) as table:
        table.write(*({"step": step, "cif": f"data_{step}\nx"} for step in range(1, 5)))
    with open_rows(tmp_path / "cut.csv", ("step", "cif")) as table:
        table.write(*({"step": step, "cif": f"data_{step}\nx"} for step in range(1, 3)))
    with (tmp_path / "cut.csv").open("ab") as file:
        file.write(torn.encode()[: -1 if torn.endswith("é") else None])
    with open_rows(tmp_path / "cut.csv", ("step", "cif"), keep=lambda row: True) as table:
        table.write(*({"step": step, "cif": f"data_{step}\nx"} for step in range(3, 5)))
    assert (tmp_path / "cut.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_rows_after_a_step_are_dropped(tmp_path):
    with open_rows(tmp_path / "x.csv", ("step",)) as table:
        table.write(*({"step": step} for step in range(5)))
    open_rows(tmp_path / "x.csv", ("step",), keep=lambda row: int(row["step"]) < 2).close()
    assert (tmp_path / "x.csv").read_text() == "step\n0\n1\n"


def test_an_existing_file_is_replaced_or_continued_only_when_requested(tmp_path):
    path = tmp_path / "x.csv"
    open_rows(path, ("a",)).close()
    with pytest.raises(ValueError, match=r"x\.csv exists already; remove it or choose another name"):
        open_rows(path, ("a",))
    with pytest.raises(ValueError, match=r"must have the columns \['b'\] to be continued; found \['a'\]"):
        open_rows(path, ("b",), keep=lambda row: True)
    open_rows(path, ("b",), replace=True).close()
    assert path.read_text() == "b\n"


def test_a_name_that_is_no_column_is_an_error(tmp_path):
    with open_rows(tmp_path / "x.csv", ("a",)) as table, pytest.raises(ValueError, match=r"got \['b'\] as well"):
        table.write({"b": 1})


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_whole_tables_survive(tmp_path, name):
    frame = pd.DataFrame({"formula": ["NaN", "None"], "gap": [0.1 + 0.2, np.nan], "count": [1, 2]})
    write_table(tmp_path / name, frame)
    pd.testing.assert_frame_equal(read_table(tmp_path / name), frame)
    write_table(tmp_path / f"rows_{name}", frame.to_dict("records"), list(frame.columns))
    assert read_rows(tmp_path / f"rows_{name}") == read_rows(tmp_path / name)


def test_a_failed_write_leaves_the_old_table(tmp_path):
    write_table(tmp_path / "x.csv", [{"a": 1}], ["a"])
    with pytest.raises(ValueError, match=r"got \['b'\] as well"):
        write_table(tmp_path / "x.csv", [{"a": 2}, {"b": 3}], ["a"])
    with pytest.raises(ValueError, match="needs the names of its columns"):
        write_table(tmp_path / "x.csv", [{"a": 2}])
    assert read_rows(tmp_path / "x.csv") == [{"a": "1"}]


def test_types_are_inferred_from_whole_columns_and_memory_from_chunks(tmp_path):
    write_table(tmp_path / "x.csv", ({"a": i if i < 1500 else i + 0.5} for i in range(2500)), ["a"])
    assert read_table(tmp_path / "x.csv")["a"].dtype == np.float64
    assert [len(chunk) for chunk in iterate_chunks(tmp_path / "x.csv", ["a"])] == [1000, 1000, 500]
    (tmp_path / "header.csv").write_text("a,b\n")
    assert [len(chunk) for chunk in iterate_chunks(tmp_path / "header.csv")] == [0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty: expected a header line and rows"),
        ("a,b\n1,2\n", "lacks the column c; its columns are a, b"),
        ("a;b;c\n1;2;3\n", "lacks the column c; its columns are a;b;c"),
        (
            "a,c\n1,2\n3,4,5\n",
            "x.csv(, row 1: expected 2 cells as in the header; found 3| is not a table from row 0 on)",
        ),
        ('a,c\n1,"2\n', "x.csv is not "),
    ],
)
def test_a_wrong_table_is_named_with_its_file(tmp_path, text, words):
    (tmp_path / "x.csv").write_text(text)
    for read in (read_rows, read_table, lambda *arguments: list(iterate_chunks(*arguments))):
        with pytest.raises(ValueError, match=words):
            read(tmp_path / "x.csv", ["c"])
        with pytest.raises(FileNotFoundError, match="does not exist"):
            read(tmp_path / "y.csv", ["c"])


def test_a_damaged_gzip_file_says_so(tmp_path):
    packed = gzip.compress(b"a,b\n" + b"1,2\n" * 10_000)
    (tmp_path / "x.csv.gz").write_bytes(packed[: len(packed) // 2])
    for read in (read_rows, read_table):
        with pytest.raises(ValueError, match="is damaged or cut off"):
            read(tmp_path / "x.csv.gz")


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path):
    (tmp_path / "x.csv").write_bytes("\ufeffa,b\n1,2\n".encode())
    assert read_rows(tmp_path / "x.csv", ["a"]) == [{"a": "1", "b": "2"}]
    assert list(read_table(tmp_path / "x.csv", ["a"]).columns) == ["a", "b"]
