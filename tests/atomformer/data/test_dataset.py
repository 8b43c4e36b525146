"""A folder gives back what was written bit for bit, whole or not at all, however the rows came in chunks."""

import logging
import tracemalloc

import numpy as np
import pytest

from atomformer.data import dataset as dataset_module
from atomformer.data.dataset import atom_counts, fingerprint, from_rows, is_dataset, open_dataset, select, write_dataset
from atomformer.data.rows import check_row
from atomformer.data.sources import iterate_rows


def molecule(rng, n, **columns):
    return check_row({"input_ids": rng.integers(1, 119, n), "coords": rng.normal(size=(n, 3)) * 10} | columns)


@pytest.fixture
def rows(rng):
    """Five structures that share no column beyond the required ones."""
    return [
        molecule(rng, 3, total_energy=-1.0, id="first"),
        molecule(rng, 1, formation_energy=0.1, cell=np.eye(3), pbc=[True, False, True]),
        molecule(rng, 4, forces=rng.normal(size=(4, 3)), fixed=[0, 1, 0, 1]),
        molecule(rng, 2, token_type_ids=[1, 2], relaxed_coords=rng.normal(size=(2, 3))),
        molecule(rng, 5, **{"energy/atom": 2.0, "labels": [1.0, np.nan]}),
    ]


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    for part, expected_part in ((found.atoms, expected.atoms), (found.structures, expected.structures)):
        assert part.keys() == expected_part.keys()
        for name, column in expected_part.items():
            assert part[name].dtype == column.dtype, name
            np.testing.assert_array_equal(part[name], column, err_msg=name)


def test_columns_have_the_stated_types(rows):
    dataset = from_rows(rows)
    assert {name: (column.dtype, column.shape) for name, column in dataset.atoms.items()} == {
        "input_ids": (np.uint8, (15,)),
        "coords": (np.float32, (15, 3)),
        "forces": (np.float32, (15, 3)),
        "fixed": (np.bool_, (15,)),
        "token_type_ids": (np.uint8, (15,)),
        "relaxed_coords": (np.float32, (15, 3)),
    }
    assert {name: (column.dtype, column.shape) for name, column in dataset.structures.items()} == {
        "cell": (np.float32, (5, 3, 3)),
        "pbc": (np.bool_, (5, 3)),
        "total_energy": (np.float64, (5,)),
        "formation_energy": (np.float64, (5,)),
        "energy/atom": (np.float64, (5,)),
        "labels": (np.float64, (5, 2)),
    }
    np.testing.assert_array_equal(atom_counts(dataset), [3, 1, 4, 2, 5])


def test_what_a_row_lacks_is_marked_as_missing(rows):
    dataset = from_rows(rows)
    np.testing.assert_array_equal(np.isnan(dataset.structures["total_energy"]), [False, True, True, True, True])
    np.testing.assert_array_equal(np.isnan(dataset.structures["labels"]).sum(axis=1), [2, 2, 2, 2, 1])
    np.testing.assert_array_equal(np.isnan(dataset.atoms["forces"]).all(axis=1), [True] * 4 + [False] * 4 + [True] * 7)
    assert not dataset.structures["cell"][0].any()
    assert dataset.atoms["fixed"].sum() == 2


def test_small_molecules_have_only_the_columns_that_all_have(rng):
    dataset = from_rows([molecule(rng, 2)])
    assert (set(dataset.atoms), set(dataset.structures)) == ({"input_ids", "coords"}, {"cell", "pbc"})


@pytest.mark.parametrize("rows_at_once", [1, 2, 1000])
def test_a_folder_equals_the_data_set_in_memory_however_rows_are_grouped(rows, tmp_path, monkeypatch, rows_at_once):
    monkeypatch.setattr(dataset_module, "ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(dataset_module, "PIECE", 2)
    assert write_dataset(tmp_path / "set", iter(rows)) == 5
    assert_equal(open_dataset(tmp_path / "set"), from_rows(rows))


@pytest.mark.parametrize("name", ["acac_train_300K", "mlearn_Si_train"])
def test_real_structures_are_the_same_in_memory_and_on_disk(data_dir, tmp_path, name):
    rows = [read.row for read in iterate_rows(data_dir / f"{name}.extxyz.gz")]
    write_dataset(tmp_path / "set", rows)
    opened = open_dataset(tmp_path / "set")
    assert_equal(opened, from_rows(rows))
    start, stop = opened.offsets[7:9]
    np.testing.assert_array_equal(opened.atoms["coords"][start:stop], rows[7]["coords"].astype(np.float32))
    assert opened.structures["total_energy"][7] == rows[7]["total_energy"]


def test_opening_reads_no_column(rows, tmp_path):
    write_dataset(tmp_path / "set", rows)
    opened = open_dataset(tmp_path / "set")
    columns = [opened.offsets, *opened.atoms.values(), *opened.structures.values()]
    assert all(isinstance(column, np.memmap) and not column.flags.writeable for column in columns)


def test_memory_does_not_grow_with_the_rows_written(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "ROWS_AT_ONCE", 50)
    row = molecule(rng, 200)

    def peak(count):
        tracemalloc.start()
        write_dataset(tmp_path / str(count), (dict(row) for _ in range(count)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    peak(100)  # fills caches
    assert peak(2000) < 1.5 * peak(200)


def test_vectors_of_varying_length_are_left_out_with_a_warning(rng, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(dataset_module, "ROWS_AT_ONCE", 1)
    rows = [molecule(rng, 2, bonds=np.ones(k), gap=1.0) for k in (1, 2, 1)]
    with caplog.at_level(logging.WARNING):
        write_dataset(tmp_path / "set", rows)
    assert caplog.messages == ["column bonds is left out: its vectors differ in length from row to row"]
    opened = open_dataset(tmp_path / "set")
    assert set(opened.structures) == {"cell", "pbc", "gap"}
    assert_equal(opened, from_rows(rows))
    assert not list((tmp_path / "set").rglob("bonds*"))


def test_selected_structures_are_those_of_the_rows(rows, tmp_path):
    write_dataset(tmp_path / "set", rows)
    for dataset in (from_rows(rows), open_dataset(tmp_path / "set")):
        chosen = select(dataset, [4, 0, 0])
        np.testing.assert_array_equal(atom_counts(chosen), [5, 3, 3])
        expected = np.concatenate([rows[i]["coords"] for i in (4, 0, 0)]).astype(np.float32)
        np.testing.assert_array_equal(chosen.atoms["coords"], expected)
        np.testing.assert_array_equal(chosen.structures["total_energy"], [np.nan, -1.0, -1.0])
        assert not isinstance(chosen.atoms["coords"], np.memmap)
    assert_equal(select(dataset, np.arange(5)), dataset)


def test_the_fingerprint_is_of_the_contents(rows, tmp_path):
    write_dataset(tmp_path / "set", rows)
    original = fingerprint(from_rows(rows))
    assert original == fingerprint(open_dataset(tmp_path / "set"))
    assert original["structures"] == 5
    moved = [rows[0] | {"coords": rows[0]["coords"] + 1e-3}, *rows[1:]]
    renamed = [*rows[:4], {("gap" if name == "labels" else name): value for name, value in rows[4].items()}]
    for other in (moved, renamed, rows[:4], rows[::-1]):
        assert fingerprint(from_rows(other))["crc32"] != original["crc32"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_nothing(rows, tmp_path, monkeypatch, error):
    monkeypatch.setattr(dataset_module, "ROWS_AT_ONCE", 1)

    def interrupted():
        yield from rows
        raise error

    with pytest.raises(error):
        write_dataset(tmp_path / "set", interrupted())
    assert list(tmp_path.iterdir()) == []


def test_no_rows_make_no_data_set(tmp_path):
    with pytest.raises(ValueError, match="at least one structure, found none"):
        write_dataset(tmp_path / "set", [])
    with pytest.raises(ValueError, match="at least one structure, found none"):
        from_rows([])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_overwritten(rows, tmp_path):
    write_dataset(tmp_path / "set", rows[:1])
    with pytest.raises(ValueError, match="already holds something"):
        write_dataset(tmp_path / "set", rows)
    assert len(atom_counts(open_dataset(tmp_path / "set"))) == 1


def cut(folder):
    path = folder / "atoms" / "coords.npy"
    path.write_bytes(path.read_bytes()[:-8])


def replace_column(folder):
    np.save(folder / "structures" / "total_energy.npy", np.zeros(7))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "coords.npy is damaged or cut off"),
        (lambda folder: (folder / "atoms" / "coords.npy").write_bytes(b""), "coords.npy is damaged or cut off"),
        (lambda folder: (folder / "atoms" / "coords.npy").unlink(), "coords.npy is missing"),
        (replace_column, "total_energy.npy has 7 entries, expected 5"),
        (lambda folder: (folder / "meta.json").write_text("{"), "meta.json is damaged"),
        (lambda folder: (folder / "meta.json").write_text('{"format": "x"}'), "expected the format .*, found x"),
        (lambda folder: (folder / "meta.json").unlink(), "is not a prepared data set"),
    ],
)
def test_a_damaged_folder_is_explained_in_one_line(rows, tmp_path, damage, message):
    write_dataset(tmp_path / "set", rows)
    assert is_dataset(tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(ValueError, match=message) as refused:
        open_dataset(tmp_path / "set")
    assert "\n" not in str(refused.value)
