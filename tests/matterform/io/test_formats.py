"""Structures survive every format, and what cannot be read is named."""

import gemmi
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from pymatgen.core import Lattice, Structure

from matterform.io.formats import (
    iterate_records,
    iterate_texts,
    parse_structure,
    read_structures,
    to_atoms,
    to_cif,
    to_structure,
    write_structures,
)

TEXT_SUFFIXES = (".extxyz", ".xyz", ".extxyz.gz")
EXACT_SUFFIXES = (".traj", ".lmdb", ".aselmdb")


@pytest.fixture
def molecules(rng):
    """Four structures with results, info and arrays: free, in a slab cell, in a crystal, without results."""
    molecules = []
    for index, pbc in enumerate((False, (True, True, False), True, False)):
        atoms = Atoms("CHOH"[: 4 - index], rng.normal(size=(4 - index, 3)), cell=3 * np.eye(3) * bool(index), pbc=pbc)
        atoms.info = {"config_type": "test", "weight": 1 / 3, "angles": rng.normal(size=3), "step": index}
        atoms.set_tags(range(len(atoms)))
        if index < 3:
            results = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3))}
            atoms.calc = SinglePointCalculator(atoms, **results)
        molecules.append(atoms)
    molecules[0].set_constraint(FixAtoms([0]))
    return molecules


@pytest.fixture
def crystals(rng):
    """Three crystals with properties, one of them triclinic."""
    lattices = (Lattice.cubic(4.2), Lattice.hexagonal(3.1, 5.0), Lattice.from_parameters(3, 4, 5, 80, 95, 103))
    return [
        Structure(lattice, ["Na", "Na", "N"], rng.random((3, 3)), properties={"formula": "NaN", "gap": 1 / 3, "id": i})
        for i, lattice in enumerate(lattices)
    ]


def assert_same_atoms(found, expected, atol):
    """Everything that a reader must bring back."""
    assert found.get_chemical_symbols() == expected.get_chemical_symbols()
    assert found.pbc.tolist() == expected.pbc.tolist()
    np.testing.assert_allclose(found.positions, expected.positions, rtol=0, atol=atol)
    np.testing.assert_allclose(found.cell, expected.cell, rtol=0, atol=atol)
    assert found.info.keys() == expected.info.keys()
    for key, value in expected.info.items():
        np.testing.assert_array_equal(found.info[key], value)
    assert (found.calc is None) == (expected.calc is None)
    if expected.calc is not None:
        assert found.calc.results.keys() == expected.calc.results.keys()
        assert found.calc.results["energy"] == expected.calc.results["energy"]
        for key, value in expected.calc.results.items():
            np.testing.assert_allclose(found.calc.results[key], value, rtol=0, atol=atol)


def assert_same_crystal(found, expected):
    """Equal to the 8 decimals of a CIF, in the same cell and order."""
    assert found.species == expected.species
    np.testing.assert_allclose(found.lattice.parameters, expected.lattice.parameters, rtol=0, atol=1e-7)
    difference = found.frac_coords - expected.frac_coords
    np.testing.assert_allclose(difference - np.round(difference), 0, rtol=0, atol=2e-8)


@pytest.mark.parametrize("suffix", [*TEXT_SUFFIXES, *EXACT_SUFFIXES])
def test_atoms_with_info_energy_and_forces_survive(tmp_path, molecules, suffix):
    path = tmp_path / f"atoms{suffix}"
    write_structures(path, molecules)
    found, refused = read_structures(path)
    assert refused == {}
    for one, other in zip(found, molecules, strict=True):
        assert_same_atoms(one, other, atol=0 if suffix in EXACT_SUFFIXES else 1e-8)
        assert one.get_tags().tolist() == other.get_tags().tolist()
    assert [path.name] == [file.name for file in tmp_path.iterdir()]


@pytest.mark.parametrize("suffix", EXACT_SUFFIXES)
def test_constraints_survive(tmp_path, molecules, suffix):
    write_structures(tmp_path / f"atoms{suffix}", molecules)
    found, _ = read_structures(tmp_path / f"atoms{suffix}")
    assert [atoms.todict().get("constraints") is not None for atoms in found] == [True, False, False, False]
    assert found[0].constraints[0].index.tolist() == [0]


@pytest.mark.parametrize("suffix", [".extxyz", ".lmdb"])
def test_arrays_of_ones_own_survive(tmp_path, molecules, suffix):
    molecules[0].set_array("spin", np.arange(4) / 8)
    write_structures(tmp_path / f"atoms{suffix}", molecules)
    found, _ = read_structures(tmp_path / f"atoms{suffix}")
    assert found[0].get_array("spin").tolist() == [0, 0.125, 0.25, 0.375]
    assert not found[1].has("spin")


@pytest.mark.parametrize("name", ["x.cif", "x.cif.gz", "x.csv", "x.csv.gz", "folder"])
def test_crystals_survive(tmp_path, crystals, name):
    write_structures(tmp_path / name, crystals)
    found, refused = read_structures(tmp_path / name)
    assert refused == {}
    for one, other in zip(found, crystals, strict=True):
        assert_same_crystal(one, other)
    if ".csv" in name:
        assert [crystal.properties for crystal in found] == [crystal.properties for crystal in crystals]


def test_blocks_of_one_file_have_names_of_their_own(tmp_path, crystals):
    write_structures(tmp_path / "x.cif", crystals)
    document = gemmi.cif.read(str(tmp_path / "x.cif"))  # refuses equal names
    assert [block.name for block in document] == ["0_Na2N", "1_Na2N", "2_Na2N"]


def test_converters_lose_nothing_between_the_two_kinds(crystals, molecules):
    for crystal in crystals:
        atoms = to_atoms(crystal)
        np.testing.assert_array_equal(atoms.cell, crystal.lattice.matrix)
        assert atoms.info == crystal.properties
        np.testing.assert_allclose(to_structure(atoms).cart_coords, crystal.cart_coords, atol=1e-12)
    assert to_atoms(molecules[0]) is molecules[0]
    assert to_structure(crystals[0]) is crystals[0]
    with pytest.raises(ValueError, match="no 3-D cell"):
        to_structure(molecules[0])


def test_deuterium_and_tritium_are_hydrogen(tmp_path, crystals):
    frame = '2\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\n{} 0 0 0\nDy 0 0 1\n'
    (tmp_path / "x.xyz").write_text(frame.format("D") + frame.format(" T"))
    found, refused = read_structures(tmp_path / "x.xyz")
    assert [atoms.get_chemical_symbols() for atoms in found] == [["H", "Dy"]] * 2
    assert refused == {}
    assert parse_structure(to_cif(crystals[0]).replace("  N  N", "  D  D"))[2].specie.Z == 1


def test_bad_rows_of_a_table_are_refused_with_reasons(tmp_path, crystals):
    good = to_cif(crystals[0])
    texts = [good, "hello", good.replace("_atom_site_label", "_nonsense"), "", '{"lattice": 3}', good + good, good]
    pd.DataFrame({"cif": texts}).to_csv(tmp_path / "x.csv")
    records = list(iterate_records(tmp_path / "x.csv"))
    assert [record.index for record in records] == list(range(7))
    assert [record.structure is not None for record in records] == [True, False, False, False, False, False, True]
    reasons = [record.reason for record in records]
    for reason, expected in zip(
        reasons, ["", "Invalid CIF", "_atom_site_label", "empty", "", "found 2", ""], strict=True
    ):
        assert expected in reason
    assert all(bool(record.reason) == (record.structure is None) for record in records)
    assert not any("\n" in reason for reason in reasons)


def test_bad_frame_spares_the_others(tmp_path, molecules):
    path = tmp_path / "x.extxyz"
    write_structures(path, molecules[:2])
    text = path.read_text()
    (tmp_path / "y.extxyz").write_text(f"{text}\n1\n\nXx 0 0 0\n2\n\nH 0 0\nH 0 0 0\n{text}3\n\nH 0 0 0\n")
    found, refused = read_structures(tmp_path / "y.extxyz")
    assert [len(atoms) for atoms in found] == [4, 3, 4, 3]
    assert list(refused) == [2, 3, 6]
    assert "Xx" in refused[2]
    assert "Frame has 1 atoms, expected 3" in refused[6]


def test_limit_stops_reading_early(tmp_path, molecules):
    write_structures(tmp_path / "x.extxyz", molecules[:2])
    with (tmp_path / "x.extxyz").open("a") as file:
        file.write("this is not a frame\n")
    assert len(read_structures(tmp_path / "x.extxyz", limit=2)[0]) == 2
    with pytest.raises(ValueError, match="frame 2 must begin with its number of atoms, found 'this is not a frame'"):
        read_structures(tmp_path / "x.extxyz")


def test_missing_file_says_where_it_was_looked_for(tmp_path):
    for read in (read_structures, lambda path: next(iterate_texts(path))):
        with pytest.raises(FileNotFoundError, match=r"x\.csv does not exist \(looked from "):
            read(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pdb", b"x", "unknown suffix; expected one of .cif, .csv"),
        ("x", b"x", "unknown suffix"),
        ("x.traj.gz", b"x", "a compressed traj file cannot be used in place"),
        ("x.csv", b"", "is empty: expected a header line"),
        ("x.csv", b"id,cif\n", "holds no structures"),
        ("x.csv", b"id,text\n1,2\n", "no column 'cif' or 'structure'; its columns are id, text"),
        ("x.csv", b"id,cif\n1,2\n1,2,3,4\n", "is not a table from row 0 on"),
        ("x.csv", b'id,cif\n1,"2\n', "is not a table from row 0 on"),
        ("x.cif", b"", "holds no structures"),
        ("x.cif", b"hello\n", "holds no structures"),
        ("x.extxyz", b"", "holds no structures"),
        ("x.traj", b"", "is not a trajectory"),
        ("x.traj", b"not a trajectory at all", "is not a trajectory"),
        ("x.lmdb", b"", "cannot be opened as LMDB"),
        ("x.lmdb", b"not a database", "cannot be opened as LMDB"),
        ("x.cif.gz", b"plain text", "is damaged or cut off"),
    ],
)
def test_unusable_file_says_what_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="^" + str(tmp_path / name)) as caught:
        read_structures(tmp_path / name)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["x.csv.gz", "x.cif.gz", "x.extxyz.gz"])
def test_truncated_gzip_file_is_an_error_even_if_entries_were_read(tmp_path, crystals, rng, name):
    many = [crystal.copy().translate_sites([0, 1, 2], rng.random(3)) for crystal in crystals * 30]
    write_structures(tmp_path / name, many)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(ValueError, match="is damaged or cut off"):
        read_structures(tmp_path / name)


def test_truncated_trajectory_is_an_error(tmp_path, molecules):
    path = tmp_path / "x.traj"
    write_structures(path, molecules)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match="is cut off"):
        read_structures(path)


def test_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no structures"):
        read_structures(tmp_path)


@pytest.mark.parametrize("name", ["x.cif", "x.csv.gz", "x.extxyz", "x.traj", "x.lmdb", "folder"])
def test_failed_writing_leaves_nothing(tmp_path, crystals, name):
    def interrupted():
        yield crystals[0]
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_structures(tmp_path / name, interrupted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["acac_train_300K.extxyz.gz", "mlearn_Si_test.extxyz.gz", "3bpa_isolated_atoms.extxyz"]
)
@pytest.mark.parametrize("suffix", [".extxyz.gz", ".traj", ".lmdb"])
def test_real_trajectories_survive(data_dir, tmp_path, name, suffix):
    expected, refused = read_structures(data_dir / name, limit=60)
    assert refused == {}
    assert all(np.isfinite(atoms.get_potential_energy()) for atoms in expected)
    write_structures(tmp_path / f"x{suffix}", expected)
    for one, other in zip(read_structures(tmp_path / f"x{suffix}")[0], expected, strict=True):
        assert_same_atoms(one, other, atol=1e-8 if "xyz" in suffix else 0)


def test_real_trajectory_reads_as_ase_reads_it(data_dir):
    import ase.io

    name = data_dir / "mlearn_Mo_test.extxyz.gz"
    found, _ = read_structures(name)
    for one, other in zip(found, ase.io.iread(name, index=":", format="extxyz"), strict=True):
        assert_same_atoms(one, other, atol=0)


@pytest.mark.parametrize(
    "name", ["mp20_biternary.csv.gz", "mpts52_val.csv.gz", "perov5_val.csv.gz", "carbon24_val.csv.gz"]
)
def test_real_tables_survive(data_dir, tmp_path, name):
    expected, refused = read_structures(data_dir / name, limit=50)
    assert refused == {}
    for suffix in (".csv.gz", ".cif"):
        write_structures(tmp_path / f"x{suffix}", expected)
        for one, other in zip(read_structures(tmp_path / f"x{suffix}")[0], expected, strict=True):
            assert_same_crystal(one, other)
    assert [crystal.properties for crystal in read_structures(tmp_path / "x.csv.gz")[0]] == [
        crystal.properties for crystal in expected
    ]
