"""The table of crystals: rows, sorting, and the way back."""

import csv

import numpy as np
import pytest

from crystalformer.likelihood import LogProb
from crystalformer.table import COLUMNS, TableWriter, cell_problem, read_table, table_rows


def made_up_log_prob(count: int) -> LogProb:
    rng = np.random.default_rng(3)
    return LogProb(*rng.normal(size=(4, count)).astype(np.float32))


def test_a_table_gives_its_crystals_back(tmp_path, random_crystals):
    crystals = random_crystals(30, 7)
    table = TableWriter(tmp_path / "table.csv")
    table.write(table_rows(crystals, made_up_log_prob(30), range(30)))
    rows = table.finish()
    order = [row["index"] for row in rows]
    back = read_table(tmp_path / "table.csv", n_max=7)
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


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ((3, 4, 5, 90, 90, 120), ""),
        ((3, -4, 5, 90, 90, 90), "length is -4"),
        ((3, 4, 5, 60, 60, 130), "angles"),  # alpha + beta < gamma
        ((3, 4, 5, 90, 190, 90), "angles"),
        ((3, np.nan, 5, 90, 90, 90), "finite"),
    ],
)
def test_impossible_cells_are_named(cell, words):
    problem = cell_problem(np.array(cell, float))
    assert bool(problem) == bool(words)
    assert words in problem


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
        read_table(path)
    path.write_text("G,L,X,A,W,M\n1,nonsense,[],[],[],[]\n")
    with pytest.raises(ValueError, match="row 0: column L should be a list"):
        read_table(path)
