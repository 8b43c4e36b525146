"""The table of crystals: rows, sorting, and the way back."""

import csv

import numpy as np
import pytest

from crystalformer.loss import LogProb
from crystalformer.table import COLUMNS, TableWriter, read_crystal_table, table_rows


def made_up_log_prob(count: int) -> LogProb:
    rng = np.random.default_rng(3)
    return LogProb(*rng.normal(size=(4, count)).astype(np.float32))


def test_a_table_gives_its_crystals_back(tmp_path, random_crystals):
    crystals = random_crystals(30, 7)
    table = TableWriter(tmp_path / "table.csv")
    table.write(table_rows(crystals, made_up_log_prob(30), range(30)))
    rows = table.finish()
    order = [row["index"] for row in rows]
    back = read_crystal_table(tmp_path / "table.csv", n_max=7)
    for name in ("G", "A", "W"):
        np.testing.assert_array_equal(getattr(back, name), getattr(crystals, name)[order])
    np.testing.assert_allclose(back.XYZ, crystals.XYZ[order], atol=1e-6)
    # Six decimals, and the group's constraints imposed: compare what the table says, not what is not free.
    np.testing.assert_allclose(back.L[:, 0], crystals.L[order, 0], atol=2e-6)


def test_rows_stand_in_the_file_before_it_is_finished_and_sorted_after(tmp_path, random_crystals):
    crystals, log_prob = random_crystals(5, 7), made_up_log_prob(5)
    table = TableWriter(tmp_path / "table.csv")
    table.write(table_rows(crystals, log_prob, range(10, 15)))
    with (tmp_path / "table.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [int(row["index"]) for row in written] == [10, 11, 12, 13, 14]
    assert tuple(written[0]) == COLUMNS
    table.finish()
    with (tmp_path / "table.csv").open(newline="") as file:
        logp = [float(row["logp"]) for row in csv.DictReader(file)]
    assert logp == sorted(logp, reverse=True)
    np.testing.assert_allclose(sorted(logp), np.sort(log_prob.total), rtol=1e-6)


def test_an_interrupted_table_is_continued_from_its_complete_rows(tmp_path, random_crystals):
    rows = table_rows(random_crystals(6, 7), made_up_log_prob(6), range(6))
    whole, parts = tmp_path / "whole.csv", tmp_path / "parts.csv"
    table = TableWriter(whole)
    table.write(rows)
    expected = table.finish()
    TableWriter(parts).write(rows[:4])
    parts.write_text(parts.read_text()[:-30])  # a crash in the middle of row 3
    table = TableWriter(parts, resume=True)
    assert table.count == 3
    table.write(rows[3:])
    assert table.count == 6
    assert [float(row["logp"]) for row in table.finish()] == [row["logp"] for row in expected]
    assert parts.read_bytes() == whole.read_bytes()


def test_an_existing_table_is_replaced_only_if_that_is_wanted(tmp_path):
    TableWriter(tmp_path / "table.csv").finish()
    TableWriter(tmp_path / "table.csv").finish()
    with pytest.raises(ValueError, match="exists already"):
        TableWriter(tmp_path / "table.csv", replace=False)
    TableWriter(tmp_path / "other.csv", ("logp", "x")).finish()
    with pytest.raises(ValueError, match="must have the columns"):
        TableWriter(tmp_path / "other.csv", resume=True)


def test_a_crystal_without_a_cell_has_no_cif(random_crystals):
    crystals = random_crystals(2, 7)
    crystals.L[1, 0] = -1.0
    good, bad = table_rows(crystals, made_up_log_prob(2), range(2))
    assert "_space_group_IT_number" in good["cif"]
    assert not bad["cif"]
    assert "length" in bad["problem"]


def test_other_tables_are_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("G,L\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns A, M, W, X"):
        read_crystal_table(path)
    path.write_text("G,L,X,A,W,M\n1,nonsense,[],[],[],[]\n")
    with pytest.raises(ValueError, match="row 0: column L should be a list"):
        read_crystal_table(path)


GOOD = {"G": "221", "L": "[3, 3, 3, 90, 90, 90]", "X": "[[0, 0, 0]]", "A": "[29]", "W": "[1]", "M": "[1]"}


@pytest.mark.parametrize(
    ("column", "text", "words"),
    [
        ("G", "cubic", "column G should be a space group's number, 1 to 230: 'cubic'"),
        ("G", "231", "column G should be a space group's number, 1 to 230: '231'"),
        ("L", "[1, 2]", r"column L should hold 6 numbers; found 2: \[1, 2\]"),
        ("L", "3.5", "column L should hold 6 numbers; found no list: 3.5"),
        ("X", "[[0, 0]]", "column X should hold 1 x 3 numbers; found 1 x 2"),
        ("X", "[[0, 0, 0], [0, 0]]", "column X should be a list of numbers"),
        ("A", "[29, 8]", "column A should hold 1 numbers; found 2"),
        ("M", "{'a': 1}", "column M should be a list of numbers"),
        ("W", "1", "column W should hold a list of numbers; found no list: 1"),
    ],
)
def test_a_malformed_cell_is_named_with_its_file_and_row(tmp_path, column, text, words):
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, GOOD)
        writer.writeheader()
        writer.writerows([GOOD, GOOD | {column: text}])
    with pytest.raises(ValueError, match=rf"table\.csv, row 1: {words}"):
        read_crystal_table(path)
