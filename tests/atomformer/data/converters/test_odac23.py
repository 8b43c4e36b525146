"""ODAC23: extxyz and ASE's LMDB as distributed; CO2 in a small stand-in of a framework, energies and forces of EMT."""

import lzma
import pickle

import ase
import ase.io
import lmdb
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from atomformer.data.converters import odac23
from atomformer.data.sources import iterate_rows, write_parquet
from matterform.io.formats import write_structures


def loaded_framework(rng, **info):
    """CO2 in a periodic box of copper and oxygen; tag 2 marks the molecule."""
    framework = ase.Atoms("Cu2O2", [(0, 0, 0), (2, 2, 2), (2, 0, 0), (0, 2, 2)], cell=[8, 9, 10], pbc=True)
    framework.positions += 0.1 * rng.standard_normal((4, 3))
    guest = molecule("CO2")
    guest.positions += [5.0, 5.0, 5.0]
    atoms = framework + guest
    atoms.set_tags([0] * 4 + [2] * 3)
    atoms.calc = EMT()
    atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
    atoms.info |= {"mof_name": "ABAVIJ", "n_CO2": 1, "n_H2O": 0, **info}
    return atoms


def rows_of(path, **options):
    read = list(odac23.iterate_rows(path, **options))
    assert [entry.index for entry in read] == list(range(len(read)))
    return [entry.row for entry in read], {entry.index: entry.reason for entry in read if entry.row is None}


def write_xz(path, frames):
    plain = path.with_suffix("")
    ase.io.write(plain, frames, format="extxyz")
    path.write_bytes(lzma.compress(plain.read_bytes()))
    plain.unlink()


@pytest.mark.parametrize("name", ["0.extxyz", "0.extxyz.xz", "0.aselmdb"])
def test_frames_give_energies_forces_tags_and_info(tmp_path, rng, name):
    atoms = loaded_framework(rng, adsorption_energy=-0.31)
    if name.endswith(".xz"):
        write_xz(tmp_path / name, [atoms])
    else:
        write_structures(tmp_path / name, [atoms])
    (row,), refused = rows_of(tmp_path)
    assert refused == {}
    assert row["formation_energy"] == -0.31
    assert row["total_energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
    np.testing.assert_array_equal(row["input_ids"], [29, 29, 8, 8, 6, 8, 8])
    np.testing.assert_array_equal(row["token_type_ids"], [0] * 4 + [2] * 3)
    np.testing.assert_allclose(row["coords"], atoms.positions, atol=1e-7)
    np.testing.assert_allclose(row["forces"], atoms.get_forces(), atol=1e-7)
    np.testing.assert_allclose(row["cell"], np.diag([8.0, 9.0, 10.0]))
    assert (row["mof_name"], row["n_CO2"], row["n_H2O"]) == ("ABAVIJ", 1, 0)


def test_adsorption_energy_is_total_less_reference(tmp_path, rng):
    atoms = loaded_framework(rng, reference_energy=2.5)
    write_xz(tmp_path / "0.extxyz.xz", [atoms])
    (row,), _ = rows_of(tmp_path)
    assert row["formation_energy"] == pytest.approx(atoms.get_potential_energy() - 2.5, abs=1e-7)


def test_without_reference_the_formation_energy_is_missing(tmp_path, rng):
    write_xz(tmp_path / "0.extxyz.xz", [loaded_framework(rng)])
    (row,), refused = rows_of(tmp_path)
    assert refused == {}
    assert "formation_energy" not in row
    assert "total_energy" in row


def test_energies_can_be_declared_adsorption_energies(tmp_path, rng):
    atoms = loaded_framework(rng)
    write_structures(tmp_path / "data.aselmdb", [atoms])
    (row,), _ = rows_of(tmp_path, energy="adsorption")
    assert row["formation_energy"] == atoms.get_potential_energy()
    assert "total_energy" not in row
    with pytest.raises(ValueError, match="energy: expected 'total' or 'adsorption', found 'free'"):
        odac23.iterate_rows(tmp_path, energy="free")


def test_sub_folders_are_read_in_numerical_order(tmp_path, rng):
    for place in ("part10/0", "part2/11", "part2/3"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        write_xz(tmp_path / f"{place}.extxyz.xz", [loaded_framework(rng, place=place)])
    (tmp_path / "part2" / "._3.extxyz.xz").write_bytes(b"what macOS leaves in archives")
    assert [row["place"] for row in rows_of(tmp_path)[0]] == ["part2/3", "part2/11", "part10/0"]


def test_bad_frames_are_refused_and_the_others_read(tmp_path, rng):
    frames = [loaded_framework(rng) for _ in range(3)]
    frames[0].set_tags([7] * 7)
    frames[1].positions[6] = frames[1].positions[5]
    write_structures(tmp_path / "0.aselmdb", frames)
    rows, refused = rows_of(tmp_path)
    assert refused.keys() == {0, 1}
    assert refused[0] == "token_type_ids: atom 0 has type 7; expected 0 to 2"
    assert "atoms 5 and 6 are at the same place" in refused[1]
    assert rows[2] is not None


def test_pickles_are_refused_with_advice(tmp_path):
    with lmdb.open(str(tmp_path / "data.0000.lmdb"), subdir=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"0", pickle.dumps({"pos": [0.0]}))
        transaction.put(b"length", pickle.dumps(1))
    with pytest.raises(
        ValueError, match=r"it holds pickles, which can run any code .* save the structures as ase\.Atoms"
    ):
        rows_of(tmp_path)


def test_empty_folders_and_cut_off_files_are_clear_errors(tmp_path, rng):
    with pytest.raises(ValueError, match=r"has no \.extxyz or \.aselmdb or \.lmdb files"):
        rows_of(tmp_path)
    write_xz(tmp_path / "0.extxyz.xz", [loaded_framework(rng) for _ in range(20)])
    whole = (tmp_path / "0.extxyz.xz").read_bytes()
    (tmp_path / "0.extxyz.xz").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"0\.extxyz\.xz is damaged or cut off"):
        rows_of(tmp_path)


def test_rows_survive_parquet(tmp_path, rng):
    frames = [loaded_framework(rng, adsorption_energy=-0.31), loaded_framework(rng)]
    write_xz(tmp_path / "0.extxyz.xz", frames)
    rows, _ = rows_of(tmp_path)
    write_parquet(tmp_path / "odac23.parquet", rows)
    np.testing.assert_equal([entry.row for entry in iterate_rows(tmp_path / "odac23.parquet")], rows)
