"""The same structures come out of every kind of source, and what cannot be used is named."""

import gzip
import json

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from atomformer.data import sources
from atomformer.data.dataset import atom_counts, from_rows, write_dataset
from atomformer.data.rows import row_from_atoms
from atomformer.data.sources import iterate_rows, load_dataset, prepare_dataset, write_parquet
from matterform.io.formats import write_structures

COORDS = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]]


@pytest.fixture
def structures():
    """Three ASE Atoms with energies, and forces in the first two."""
    made = []
    for index in range(3):
        atoms = Atoms("OH", [[0.0, 0.0, 0.0], [0.0, 0.25 * index, 1.0]], cell=[4.0, 5.0, 6.0], pbc=index == 1)
        results = {"energy": -1.5 - index} | ({"forces": np.full((2, 3), 0.5 * index)} if index < 2 else {})
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["gap"] = 0.5 * index
        made.append(atoms)
    return made


@pytest.fixture
def rows(structures):
    return [row_from_atoms(atoms) for atoms in structures]


def assert_same_rows(reads, expected):
    reads = list(reads)
    assert [(read.index, read.reason) for read in reads] == [(index, "") for index in range(len(expected))]
    for read, row in zip(reads, expected, strict=True):
        assert read.row.keys() == row.keys()
        for name, value in row.items():
            np.testing.assert_array_equal(read.row[name], value, err_msg=name)


def assert_one_line(error):
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["s.extxyz", "s.extxyz.gz", "s.traj", "s.aselmdb"])
def test_structure_files_give_the_rows_of_their_atoms(structures, rows, tmp_path, name):
    if name.endswith("lmdb"):
        pytest.importorskip("lmdb")
    write_structures(tmp_path / name, structures)
    assert_same_rows(iterate_rows(tmp_path / name), rows)


def test_crystals_are_rows_with_a_cell(tmp_path):
    write_structures(tmp_path / "nacl.cif", [bulk("NaCl", "rocksalt", a=5.64, cubic=True)])
    (read,) = iterate_rows(tmp_path / "nacl.cif")
    assert read.row is not None
    assert sorted(read.row["input_ids"]) == [11] * 4 + [17] * 4
    np.testing.assert_allclose(read.row["cell"], np.eye(3) * 5.64, atol=1e-6)
    assert read.row["pbc"].all()


@pytest.mark.parametrize("name", ["s.db", "s.json"])
def test_ase_databases_give_key_values_and_data_as_properties(structures, rows, tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "DB_ROWS_AT_ONCE", 2)
    structures[0].set_constraint(FixAtoms([1]))
    with ase.db.connect(tmp_path / name) as database:
        database.write(Atoms("H"))
        for atoms in structures:
            database.write(
                atoms, gap=atoms.info["gap"], source="test", data={"labels": np.arange(2.0), "log": {"a": 1}}
            )
        del database[1]
    expected = [row | {"source": "test", "labels": np.arange(2.0)} for row in rows]
    expected[0]["fixed"] = np.array([False, True])
    assert_same_rows(iterate_rows(tmp_path / name), expected)


def test_our_own_folder_gives_its_rows_back(rows, tmp_path):
    write_dataset(tmp_path / "set", rows)
    assert_same_rows(iterate_rows(tmp_path / "set"), rows)  # these numbers are exact in float32


@pytest.fixture
def hugging_face(rows):
    """The rows as a `datasets.Dataset`, made by that package."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    columns = {name: [row.get(name) for row in rows] for name in ("input_ids", "coords", "forces", "cell", "pbc")}
    columns = {
        name: [None if value is None else value.tolist() for value in values] for name, values in columns.items()
    }
    scalars = {name: [row.get(name) for row in rows] for name in ("total_energy", "gap")}
    return datasets.Dataset.from_dict(columns | scalars)


def test_a_saved_hugging_face_data_set_is_read(hugging_face, rows, tmp_path):
    hugging_face.save_to_disk(tmp_path / "set", num_shards=2)
    assert len(list((tmp_path / "set").glob("*.arrow"))) == 2
    assert_same_rows(iterate_rows(tmp_path / "set"), rows)


def test_arrays_of_fixed_shape_are_read(hugging_face, rows, tmp_path):
    import datasets

    for name in ("coords", "forces"):
        hugging_face = hugging_face.cast_column(name, datasets.Array2D((None, 3), "float64"))
    hugging_face.save_to_disk(tmp_path / "set")
    assert_same_rows(iterate_rows(tmp_path / "set"), rows)


def test_a_split_is_chosen_by_name(hugging_face, rows, tmp_path):
    import datasets

    splits = {"train": hugging_face.select([0, 2]), "test": hugging_face.select([1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    assert_same_rows(iterate_rows(tmp_path / "set", split="train"), [rows[0], rows[2]])
    assert_same_rows(iterate_rows(tmp_path / "set", split="test"), [rows[1]])
    with pytest.raises(ValueError, match="expected one of the splits train, test; found none chosen"):
        load_dataset(tmp_path / "set")
    with pytest.raises(ValueError, match="expected one of the splits train, test; found split='valid'"):
        load_dataset(tmp_path / "set", split="valid")


def test_a_repository_with_parquet_shards_is_read(hugging_face, rows, tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    for shard, indices in enumerate([[0, 1], [2]]):
        hugging_face.select(indices).to_parquet(tmp_path / "set" / "data" / f"train-{shard:05d}-of-00002.parquet")
    assert_same_rows(iterate_rows(tmp_path / "set"), rows)
    hugging_face.select([1]).to_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet")
    assert_same_rows(iterate_rows(tmp_path / "set", split="train"), rows)
    assert_same_rows(iterate_rows(tmp_path / "set", split="test"), [rows[1]])


def test_older_shards_with_checksums_in_their_names_are_not_mixed(hugging_face, rows, tmp_path):
    for name, indices in (("train-00000-of-00001-a09b74b3ef9c3b56", [0, 2]), ("test-00000-of-00001-0c21b4", [1])):
        hugging_face.select(indices).to_parquet(tmp_path / f"{name}.parquet")
    assert_same_rows(iterate_rows(tmp_path, split="train"), [rows[0], rows[2]])
    with pytest.raises(ValueError, match="expected one of the splits test, train; found none chosen"):
        load_dataset(tmp_path)


def test_a_plain_folder_of_parquet_is_read_in_the_order_of_names(rows, tmp_path):
    write_parquet(tmp_path / "b.parquet", rows[2:])
    write_parquet(tmp_path / "a.parquet", rows[:2])
    assert_same_rows(iterate_rows(tmp_path), rows)


def test_loading_reads_into_memory_and_opens_a_prepared_folder(structures, rows, tmp_path):
    write_structures(tmp_path / "s.extxyz", structures)
    loaded, refused = load_dataset(tmp_path / "s.extxyz")
    assert refused == {}
    assert not isinstance(loaded.atoms["coords"], np.memmap)
    assert prepare_dataset(tmp_path / "s.extxyz", tmp_path / "set") == (3, {})
    opened, _ = load_dataset(tmp_path / "set")
    assert isinstance(opened.atoms["coords"], np.memmap)
    for dataset in (loaded, opened):
        np.testing.assert_array_equal(dataset.atoms["coords"], from_rows(rows).atoms["coords"])
        np.testing.assert_array_equal(dataset.structures["total_energy"], [-1.5, -2.5, -3.5])


@pytest.mark.parametrize(("name", "count"), [("acac_train_300K", 500), ("mlearn_Si_train", 214)])
def test_real_files_are_read_whole(data_dir, name, count):
    dataset, refused = load_dataset(data_dir / f"{name}.extxyz.gz")
    assert (len(atom_counts(dataset)), refused) == (count, {})
    assert np.isfinite(dataset.structures["total_energy"]).all()
    assert np.isfinite(dataset.atoms["forces"]).all()
    assert dataset.structures["pbc"].all() == (name == "mlearn_Si_train")


def test_refused_rows_are_named_and_do_not_end_the_reading(structures, tmp_path):
    structures[1].positions[1] = structures[1].positions[0]
    write_structures(tmp_path / "s.extxyz", structures)
    broken = "2\nProperties=species:S:1:pos:R:3\nH 0 0 0\nQq 0 0 1\n"
    (tmp_path / "s.extxyz").write_text((tmp_path / "s.extxyz").read_text() + broken)
    dataset, refused = load_dataset(tmp_path / "s.extxyz")
    assert len(atom_counts(dataset)) == 2
    assert refused.keys() == {1, 3}
    assert refused[1].startswith("coords: atoms 0 and 1 are at the same place")
    assert "Qq" in refused[3]
    assert prepare_dataset(tmp_path / "s.extxyz", tmp_path / "set") == (2, refused)


def test_in_a_folder_of_tables_the_reason_names_the_file(rows, tmp_path):
    write_parquet(tmp_path / "a.parquet", rows)
    write_parquet(tmp_path / "b.parquet", [rows[0], rows[1] | {"input_ids": np.array([8, 0], np.int32)}])
    _, refused = load_dataset(tmp_path)
    assert refused.keys() == {4}
    assert refused[4].startswith("b.parquet, row 1: input_ids: atom 1 has token 0")


def test_a_source_without_usable_structures_says_why(tmp_path):
    write_structures(tmp_path / "s.extxyz", [Atoms("X"), Atoms("H2")])
    for read in (load_dataset, lambda path: prepare_dataset(path, tmp_path / "set")):
        with pytest.raises(ValueError, match=r"no structure that can be used.*row 0: .*atom 0 has token 0.*row 1") as e:
            read(tmp_path / "s.extxyz")
        assert_one_line(e)
    assert not (tmp_path / "set").exists()


def text(content):
    return lambda path: path.write_text(content)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("s.xlsx", text(""), "unknown suffix; expected one of .parquet, .db, .json, .cif"),
        ("s.parquet", text("no table"), "s.parquet cannot be read as a table"),
        ("s.db", text(""), "s.db is no SQLite database"),
        ("s.db", lambda path: path.write_bytes(sources.SQLITE_MARK + b"x" * 200), "cannot be read as an ASE database"),
        ("s.json", text("[]"), "s.json cannot be read as an ASE database"),
        ("s.json", text("{"), "s.json cannot be read as an ASE database"),
        ("s.extxyz", text(""), "s.extxyz holds no structures"),
        ("s.extxyz.gz", lambda path: path.write_bytes(gzip.compress(b"2\n" * 99)[:-9]), "is damaged or cut off"),
        ("s", lambda path: path.mkdir(), "holds no"),
    ],
)
def test_what_is_no_source_is_explained_in_one_line(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message) as refused:
        load_dataset(tmp_path / name)
    assert_one_line(refused)


def test_nothing_at_the_path_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"s\.extxyz does not exist"):
        load_dataset(tmp_path / "s.extxyz")


def test_a_split_of_what_has_none_is_refused(structures, rows, tmp_path):
    write_structures(tmp_path / "s.extxyz", structures)
    write_dataset(tmp_path / "set", rows)
    for path in (tmp_path / "s.extxyz", tmp_path / "set"):
        with pytest.raises(ValueError, match="has no split 'train'"):
            load_dataset(path, split="train")


def test_a_hugging_face_folder_with_missing_parts_is_explained(hugging_face, tmp_path):
    hugging_face.save_to_disk(tmp_path / "set")
    (file,) = (tmp_path / "set").glob("*.arrow")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as a table") as cut:
        load_dataset(tmp_path / "set")
    assert_one_line(cut)
    file.unlink()
    with pytest.raises(ValueError, match="cannot be read as a table"):
        load_dataset(tmp_path / "set")
    (tmp_path / "set" / "state.json").write_text(json.dumps({"_split": None}))
    with pytest.raises(ValueError, match="has no '_data_files'"):
        load_dataset(tmp_path / "set")
