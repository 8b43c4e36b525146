"""LMDB: the layout of ASE's databases, nothing unpickled, bad rows refused."""

import json
import pickle
import zlib

import lmdb
import numpy as np
import pytest
from ase import Atoms

from matterform.io.formats import read_structures, write_structures

WATERS = (Atoms("H2O"), Atoms("HO"), Atoms("O"))


def test_lmdb_of_pickles_is_refused_unread(tmp_path):
    class Trap:  # unpickling it would make a folder
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").mkdir, ())

    for key in (b"0", b"nextid"):
        path = tmp_path / f"{key.decode()}.lmdb"
        with lmdb.open(str(path), subdir=False) as env, env.begin(write=True) as transaction:
            transaction.put(key, pickle.dumps(Trap()))
        with pytest.raises(ValueError, match="it holds pickles, which can run any code"):
            read_structures(path)
    write_structures(tmp_path / "x.lmdb", [Atoms("H"), Atoms("O")])
    with lmdb.open(str(tmp_path / "x.lmdb"), subdir=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"1", pickle.dumps(Trap()))
    found, refused = read_structures(tmp_path / "x.lmdb")
    assert [atoms.get_chemical_formula() for atoms in found] == ["O"]
    assert "it holds pickles" in refused[0]
    assert not (tmp_path / "sprung").exists()


def test_lmdb_in_a_folder_with_a_deleted_row_is_read(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    write_structures(path / "data.mdb.lmdb", WATERS)
    (path / "data.mdb.lmdb").rename(path / "data.mdb")
    with lmdb.open(str(path)) as env, env.begin(write=True) as transaction:
        transaction.delete(b"2")
    found, _ = read_structures(path)
    assert [len(atoms) for atoms in found] == [3, 1]


def test_bad_lmdb_row_spares_the_others(tmp_path):
    path = tmp_path / "x.lmdb"
    write_structures(path, WATERS)
    with lmdb.open(str(path), subdir=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"2", zlib.compress(b'{"numbers": [1]}'))
        transaction.put(b"3", b"junk")
    found, refused = read_structures(path)
    assert [len(atoms) for atoms in found] == [3]
    assert refused[1] == "ValueError: the row lacks positions; it has numbers"
    assert "is not compressed JSON" in refused[2]


def test_rows_of_plain_lists_are_read(tmp_path):
    row = {
        "numbers": [8, 1],
        "positions": [[0, 0, 0.5], [0, 0, 1]],
        "cell": [[3, 0, 0], [0, 3, 0], [0, 0, 3]],
        "pbc": [True, True, False],
        "energy": -1.5,
        "forces": [[0, 0, 1], [0, 0, -1]],
        "key_value_pairs": {"source": "test"},
        "data": {"weight": 2},
    }
    with lmdb.open(str(tmp_path / "x.aselmdb"), subdir=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"1", zlib.compress(json.dumps(row).encode()))
        transaction.put(b"nextid", zlib.compress(b"2"))
    (atoms,), refused = read_structures(tmp_path / "x.aselmdb")
    assert refused == {}
    assert atoms.get_chemical_formula() == "HO"
    assert atoms.info == {"source": "test", "weight": 2}
    assert atoms.get_potential_energy() == -1.5
    np.testing.assert_array_equal(atoms.get_forces(), row["forces"])
    np.testing.assert_array_equal(atoms.positions, row["positions"])
    np.testing.assert_array_equal(atoms.cell, row["cell"])
    assert atoms.pbc.tolist() == row["pbc"]
