import csv
import json
import multiprocessing

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from crystalformer.data import dataset
from crystalformer.data.crystals import Crystals, num_slots, truncate
from crystalformer.data.dataset import (
    from_structures,
    open_dataset,
    open_properties,
    prepare,
    read_csv,
)


def rock_salt(cation: str, anion: str, edge: float) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(edge), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def many_sites(count: int) -> Structure:
    """A P1 crystal with `count` different sites."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)[:count]
    return Structure(
        Lattice.from_parameters(9, 10, 11, 80, 95, 100), ["O"] * count, (grid + 0.4 * rng.random((count, 3))) / 3
    )


STRUCTURES = [
    rock_salt("Na", "Cl", 5.64),
    rock_salt("Mg", "O", 4.21),
    many_sites(20),
    many_sites(21),
    Structure(Lattice.cubic(4.1), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
]


@pytest.fixture
def table(tmp_path):
    """A CSV with 9 rows, of which 4, 3 (too long), 6 (empty) and 7 (no CIF) are refused."""
    cifs = [str(CifWriter(structure)) for structure in STRUCTURES] + ["", "no crystal", str(CifWriter(STRUCTURES[0]))]
    columns = {
        "material_id": [f"m-{i}" for i in range(9)],
        "cif": cifs,
        "band_gap": [5.0, 7.8, 1.0, 1.0, 1.0, np.nan, 1.0, 1.0, 5.0],
        "formula": ["NaCl"] * 9,
    }
    path = tmp_path / "crystals.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


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


def test_structures_give_the_same_crystals_as_their_cifs(table):
    crystals, refused = from_structures(STRUCTURES)
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
    monkeypatch.setattr(dataset, "ROWS_AT_ONCE", 2)
    for workers in (1, 2):
        done = []
        crystals, refused = read_csv(table, workers=workers, progress=done.append)
        assert_equal(crystals, expected)
        assert list(refused.items()) == list(expected_refused.items())
        assert done == [2, 4, 6, 8, 9]


def test_a_dead_worker_is_one_clear_error(table, monkeypatch):
    monkeypatch.setattr(dataset, "ROWS_AT_ONCE", 1)

    def kill_workers(done: int) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    with pytest.raises(ChildProcessError, match="a process that converts crystals died; use fewer workers"):
        read_csv(table, workers=2, progress=kill_workers)


def test_prepared_folder_opens_as_memory_mapped_arrays(table, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "ROWS_AT_ONCE", 4)
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


@pytest.mark.parametrize(("field", "sizes"), [("n_max", {"n_max": 1}), ("workers", {"workers": 0})])
def test_impossible_sizes_are_refused(table, field, sizes):
    with pytest.raises(ValueError, match=field):
        read_csv(table, **sizes)


def test_truncation_keeps_every_site(table):
    crystals, _ = read_csv(table)
    assert num_slots(crystals).tolist() == [3, 3, 21, 3, 3]
    short = truncate(Crystals(*(array[[0, 1, 3]] for array in crystals)), 3)
    assert (short.XYZ.shape, short.A.shape, short.W.tolist()) == ((3, 3, 3), (3, 3), [[1, 2, 0]] * 3)
    with pytest.raises(ValueError, match="needs 21 slots"):
        truncate(crystals, 20)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "long"), [("mp20_biternary", 0), ("mpts52_val", 155)])
def test_real_tables_lose_only_crystals_with_too_many_sites(data_dir, name, long):
    crystals, refused = read_csv(data_dir / f"{name}.csv.gz", workers=2)
    rows = len(pd.read_csv(data_dir / f"{name}.csv.gz", usecols=["cif"]))
    assert (len(crystals.G), len(refused)) == (rows - long, long)
    assert all(reason.startswith("too many sites") for reason in refused.values())
