"""SPICE: HDF5 in the real layout, written here by h5py."""

import h5py
import numpy as np
import pytest
from ase.build import molecule

from atomformer.data.converters import spice
from atomformer.data.sources import iterate_rows, write_parquet

# CODATA 2014, as ASE: 1 bohr in Å, 1 hartree in eV.
BOHR, HARTREE = 0.52917721067, 27.21138602


def add_molecule(file, name, rng, *, count=2, units=True, **changes):
    """A molecule as the makers of SPICE write it (arrays beside these are left)."""
    atoms = molecule(name)
    shape = (count, len(atoms), 3)
    group = file.create_group(name)
    arrays = {
        "conformations": (atoms.positions + 0.02 * rng.standard_normal(shape)).astype(np.float32) / np.float32(BOHR),
        "dft_total_energy": -40.0 + 0.01 * rng.standard_normal(count),
        "formation_energy": -0.6 + 0.01 * rng.standard_normal(count),
        "dft_total_gradient": (0.01 * rng.standard_normal(shape)).astype(np.float32),
    } | changes
    group.create_dataset("atomic_numbers", data=atoms.numbers.astype(np.int16))
    for key, values in arrays.items():
        if values is not None:
            dataset = group.create_dataset(key, data=values)
            if units:
                dataset.attrs["units"] = spice.DOCUMENTED_UNITS[key]
    group.create_dataset("mbis_charges", data=np.zeros((*shape[:2], 1), np.float32))
    group.create_dataset("subset", data=["SPICE PubChem Set 1 Single Points Dataset v1.2"], dtype=h5py.string_dtype())
    group.create_dataset("smiles", data=["[H:2][O:1][H:3]"], dtype=h5py.string_dtype())
    return group


@pytest.fixture
def path(tmp_path):
    return tmp_path / "SPICE-1.1.4.hdf5"


def rows_of(path):
    read = list(spice.iterate_rows(path))
    assert [entry.index for entry in read] == list(range(len(read)))
    return [entry.row for entry in read], {entry.index: entry.reason for entry in read if entry.row is None}


@pytest.mark.parametrize("units", [True, False])
def test_units_are_converted_by_hand_worked_factors(path, rng, units):
    conformations = np.array([[[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 10.0, 0.0]]], np.float32)
    gradient = np.array([[[1.0, 0.0, 0.0], [0.0, -2.0, 0.0], [0.0, 0.0, 0.5]]], np.float32)
    with h5py.File(path, "w") as file:
        changes = {"conformations": conformations, "dft_total_gradient": gradient}
        energies = {"dft_total_energy": np.array([-2.0]), "formation_energy": np.array([-0.5])}
        add_molecule(file, "H2O", rng, count=1, units=units, **changes, **energies)
    (row,), refused = rows_of(path)
    assert refused == {}
    # 2 bohr = 1.0583544 Å; 1 hartree/bohr = 51.4220671 eV/Å; -2 hartree = -54.4227720 eV.
    np.testing.assert_allclose(row["coords"], [[0, 0, 0], [1.0583544, 0, 0], [0, 5.2917721, 0]], rtol=1e-7)
    np.testing.assert_allclose(row["forces"], [[-51.4220671, 0, 0], [0, 102.844134, 0], [0, 0, -25.711034]], rtol=1e-7)
    assert row["total_energy"] == pytest.approx(-54.4227720, rel=1e-7)
    assert row["formation_energy"] == pytest.approx(-13.6056930, rel=1e-7)
    np.testing.assert_array_equal(row["input_ids"], [8, 1, 1])
    assert (row["molecule"], row["smiles"]) == ("H2O", "[H:2][O:1][H:3]")
    assert row["subset"] == "SPICE PubChem Set 1 Single Points Dataset v1.2"
    assert "cell" not in row


def test_units_that_the_file_states_are_respected(path, rng):
    positions = molecule("H2O").positions[None]
    with h5py.File(path, "w") as file:
        group = add_molecule(file, "H2O", rng, count=1, units=False, conformations=positions / 10)
        group["conformations"].attrs["units"] = "nanometer"
        group["dft_total_energy"].attrs["units"] = b"kcal/mol"
        group["dft_total_gradient"].attrs["units"] = "kJ/mol/nm"
        energy, gradient = group["dft_total_energy"][0], group["dft_total_gradient"][0]
    (row,), _ = rows_of(path)
    np.testing.assert_allclose(row["coords"], positions[0], atol=1e-12)
    # 1 kcal/mol = 0.0433641 eV; 1 kJ/mol/nm = 0.00103642697 eV/Å.
    assert row["total_energy"] == pytest.approx(0.0433641 * energy, rel=1e-6)
    np.testing.assert_allclose(row["forces"], -0.00103642697 * gradient, rtol=1e-6)


def test_an_unknown_unit_is_an_error_with_its_place(path, rng):
    with h5py.File(path, "w") as file:
        add_molecule(file, "H2O", rng)["dft_total_energy"].attrs["units"] = "rydberg"
    with pytest.raises(ValueError, match=r"/H2O/dft_total_energy is in 'rydberg', .*expected one of hartree, ev"):
        rows_of(path)


def test_every_conformation_is_a_row_in_alphabetical_order_of_molecules(path, rng, monkeypatch):
    monkeypatch.setattr(spice, "CONFORMATIONS_AT_ONCE", 2)
    with h5py.File(path, "w") as file:
        add_molecule(file, "NH3", rng, count=5)
        group = add_molecule(file, "CH4", rng, count=3)
        energies = group["dft_total_energy"][:]
    rows, refused = rows_of(path)
    assert refused == {}
    assert [row["molecule"] for row in rows] == ["CH4"] * 3 + ["NH3"] * 5
    np.testing.assert_allclose([row["total_energy"] for row in rows[:3]], energies * HARTREE, rtol=1e-8)
    assert len({row["total_energy"] for row in rows}) == 8


def test_nan_refuses_the_conformation_alone_and_a_missing_formation_energy_none(path, rng):
    with h5py.File(path, "w") as file:
        group = add_molecule(file, "NH3", rng, count=5)
        group["dft_total_energy"][0] = np.nan
        group["dft_total_gradient"][1, 2] = np.nan
        group["conformations"][2, 3] = np.nan
        group["formation_energy"][3] = np.nan
    rows, refused = rows_of(path)
    assert refused.keys() == {0, 1, 2}
    assert refused[0] == "NH3: dft_total_energy is not finite"
    assert refused[1] == "NH3: dft_total_gradient is not finite"
    assert refused[2].startswith("coords: atom 3 has [nan, nan, nan]")
    assert "formation_energy" not in rows[3]
    assert {"total_energy", "forces"} <= rows[3].keys()
    assert "formation_energy" in rows[4]


def test_missing_arrays_keep_the_rows(path, rng):
    with h5py.File(path, "w") as file:
        group = add_molecule(file, "H2O", rng, formation_energy=None, dft_total_gradient=None)
        del group["smiles"], group["subset"]
        group["smiles"] = 3.0  # no text
    rows, refused = rows_of(path)
    assert refused == {}
    assert rows[0].keys() == {"input_ids", "coords", "total_energy", "molecule"}


def test_a_molecule_that_is_none_is_refused_and_the_others_read(path, rng):
    with h5py.File(path, "w") as file:
        add_molecule(file, "CH4", rng, dft_total_energy=np.zeros(3))
        file["COMMENT"] = "hello"
        del add_molecule(file, "H2", rng)["conformations"]
        add_molecule(file, "N2", rng, conformations=np.zeros((2, 3)), dft_total_gradient=None)
        add_molecule(file, "NH3", rng)
        file["OH/conformations/0"] = np.zeros((1, 3))  # a group where an array is expected
        add_molecule(file, "P2", rng, dft_total_energy=[b"-40", b"-41"], units=False)
        file["lost"] = h5py.SoftLink("/nowhere")
    rows, refused = rows_of(path)
    assert refused.keys() == {0, 1, 2, 3, 6, 7, 8}
    assert refused[0] == "CH4: dft_total_energy has shape (3,), expected (2,) for 5 atoms"
    assert refused[1] == "COMMENT: expected a group with atomic_numbers and conformations, found neither"
    assert refused[2].startswith("H2: expected a group with atomic_numbers and conformations, found atomic_numbers, ")
    assert refused[3] == "N2: conformations has shape (2, 3), expected (2, 2, 3) for 2 atoms"
    assert [row["molecule"] for row in rows[4:6]] == ["NH3", "NH3"]
    assert refused[6] == "OH: expected a group with atomic_numbers and conformations, found neither"
    assert refused[7] == "P2: dft_total_energy has entries of type object, expected numbers"
    assert refused[8] == "lost: expected a group with atomic_numbers and conformations, found neither"


def test_a_file_that_is_not_hdf5_or_cut_off_is_one_clear_error(path, rng):
    with h5py.File(path, "w") as file:
        for name in ("CH4", "H2O", "NH3"):
            add_molecule(file, name, rng, count=50)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"hello", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is not HDF5, or is damaged or cut off"):
            rows_of(path)


def test_rows_survive_parquet(tmp_path, path, rng):
    with h5py.File(path, "w") as file:
        add_molecule(file, "H2O", rng)["formation_energy"][0] = np.nan
    rows, _ = rows_of(path)
    write_parquet(tmp_path / "spice.parquet", rows)
    np.testing.assert_equal([entry.row for entry in iterate_rows(tmp_path / "spice.parquet")], rows)
