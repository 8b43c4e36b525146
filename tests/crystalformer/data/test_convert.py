import multiprocessing

import numpy as np
import pandas as pd
import pytest

from crystalformer.data import convert
from crystalformer.data.convert import from_structures, read_any, read_csv
from crystalformer.data.crystals import Crystals
from matterform.io.formats import write_structures


def assert_equal(crystals: Crystals, expected: Crystals) -> None:
    for name, array, other in zip(Crystals._fields, crystals, expected, strict=True):
        np.testing.assert_array_equal(array, other, err_msg=name)
        assert array.dtype == other.dtype


def test_rows_are_accepted_in_order_or_refused_with_a_reason(table):
    crystals, refused = read_csv(table)
    assert crystals.G.tolist() == [225, 225, 1, 221, 225]
    assert [dtype.name for dtype in (array.dtype for array in crystals)] == [
        "int32",
        "float32",
        "float32",
        "int32",
        "int32",
    ]
    assert crystals.W[:, :2].tolist() == [[1, 2], [1, 2], [1, 1], [1, 2], [1, 2]]
    assert crystals.XYZ.shape == (5, 21, 3)
    assert set(refused) == {3, 4, 6, 7}
    assert refused[3] == "too many sites: 21, and n_max = 21 holds 20"
    assert refused[4] == "partial occupancy"
    assert "empty" in refused[6]


def test_n_max_leaves_room_for_the_slot_that_ends_a_crystal(table):
    assert set(read_csv(table, n_max=22)[1]) == {4, 6, 7}
    crystals, refused = read_csv(table, n_max=3)
    assert (crystals.W.shape, set(refused)) == ((4, 3), {2, 3, 4, 6, 7})
    assert set(read_csv(table, n_max=2)[1]) == set(range(9))


def test_structures_give_the_same_crystals_as_their_cifs(table, structures):
    crystals, refused = from_structures(structures)
    expected, _ = read_csv(table)
    np.testing.assert_allclose(crystals.XYZ, expected.XYZ[:4], atol=1e-6)
    np.testing.assert_allclose(crystals.L, expected.L[:4], rtol=1e-6)
    np.testing.assert_array_equal(crystals.A, expected.A[:4])
    assert set(refused) == {3, 4}


def test_no_structures_give_an_empty_batch():
    crystals, refused = from_structures([])
    assert ([array.shape for array in crystals], refused) == ([(0,), (0, 6), (0, 21, 3), (0, 21), (0, 21)], {})


def test_result_does_not_depend_on_workers_or_chunks(table, monkeypatch):
    expected, expected_refused = read_csv(table)
    monkeypatch.setattr(convert, "ROWS_AT_ONCE", 2)
    for workers in (1, 2):
        done = []
        crystals, refused = read_csv(table, workers=workers, progress=done.append)
        assert_equal(crystals, expected)
        assert list(refused.items()) == list(expected_refused.items())
        assert done == [2, 4, 6, 8, 9]


def test_a_dead_worker_is_one_clear_error(table, monkeypatch):
    monkeypatch.setattr(convert, "ROWS_AT_ONCE", 1)

    def kill_workers(done: int) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    with pytest.raises(ChildProcessError, match="a process that converts crystals died; use fewer workers"):
        read_csv(table, workers=2, progress=kill_workers)


@pytest.mark.parametrize(("field", "sizes"), [("n_max", {"n_max": 1}), ("workers", {"workers": 0})])
def test_impossible_sizes_are_refused(table, field, sizes):
    with pytest.raises(ValueError, match=field):
        read_csv(table, **sizes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "long"), [("mp20_biternary", 0), ("mpts52_val", 155)])
def test_real_tables_lose_only_crystals_with_too_many_sites(data_dir, name, long):
    crystals, refused = read_csv(data_dir / f"{name}.csv.gz", workers=2)
    rows = len(pd.read_csv(data_dir / f"{name}.csv.gz", usecols=["cif"]))
    assert (len(crystals.G), len(refused)) == (rows - long, long)
    assert all(reason.startswith("too many sites") for reason in refused.values())


def test_any_format_gives_the_crystals_of_a_table_with_their_places(table, structures, tmp_path):
    expected = read_any(table)
    assert (expected.places, set(expected.refused)) == ([0, 1, 2, 5, 8], {3, 4, 6, 7})
    write_structures(tmp_path / "some.extxyz", [structures[0], structures[3], structures[5]])
    found = read_any(tmp_path / "some.extxyz")
    assert (found.places, set(found.refused)) == ([0, 2], {1})
    np.testing.assert_array_equal(found.crystals.A, expected.crystals.A[[0, 3]])
