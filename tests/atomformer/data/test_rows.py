"""Rows keep what a structure has, leave out what is missing, and say in one line what is wrong with it."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from atomformer.data.rows import check_row, row_from_atoms, row_to_atoms

WATER = {"input_ids": [8, 1, 1], "coords": [[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]]}


def assert_same(row, expected):
    assert row.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(row[name], value, err_msg=name)


def test_a_checked_row_has_the_stated_types():
    row = check_row(
        WATER
        | {
            "forces": np.ones((3, 3), np.float32),
            "fixed": [1, 0, 0],
            "token_type_ids": [0.0, 1.0, 2.0],
            "total_energy": 7,
        }
        | {"cell": np.eye(3).tolist(), "pbc": [True, True, False], "relaxed_coords": WATER["coords"]}
    )
    types = {name: (getattr(value, "dtype", type(value)), np.shape(value)) for name, value in row.items()}
    assert types == {
        "input_ids": (np.int32, (3,)),
        "coords": (np.float64, (3, 3)),
        "forces": (np.float64, (3, 3)),
        "token_type_ids": (np.int32, (3,)),
        "fixed": (np.bool_, (3,)),
        "relaxed_coords": (np.float64, (3, 3)),
        "cell": (np.float64, (3, 3)),
        "pbc": (np.bool_, (3,)),
        "total_energy": (float, ()),
    }
    assert_same(check_row(row), row)


def test_missing_values_are_left_out():
    nothing = {
        "forces": np.full((3, 3), np.nan),
        "total_energy": np.nan,
        "gap": None,
        "labels": [np.nan, np.nan],
        "v": [],
    }
    assert check_row(WATER | nothing).keys() == WATER.keys()


@pytest.mark.parametrize(("present", "kept"), [(True, True), (None, True), (False, False)])
def test_has_formation_energy_decides_whether_there_is_one(present, kept):
    row = check_row(WATER | {"formation_energy": 0.0, "has_formation_energy": present})
    assert ("formation_energy" in row, "has_formation_energy" in row) == (kept, False)


def test_properties_become_floats_vectors_and_text():
    properties = {"gap": np.float32(1.5), "metal": True, "labels": [1, 0], "partly": [1.0, np.nan], "id": "mp-1"}
    row = check_row(WATER | properties | {"virial": [[1, 2], [3, 4]], "tree": {"a": 1}, "ragged": [[1], [2, 3]]})
    expected = {"gap": 1.5, "metal": 1.0, "labels": [1.0, 0.0], "partly": [1.0, np.nan], "id": "mp-1"}
    assert_same({name: row[name] for name in row.keys() - WATER.keys()}, expected | {"virial": [1.0, 2.0, 3.0, 4.0]})
    assert row["labels"].dtype == np.float64


def changed(column, atom, value):
    array = np.array(WATER[column], float)
    array[atom] = value
    return {column: array}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("input_ids", 1, 0), "input_ids: atom 1 has token 0, which is no element; expected .* 1 to 118"),
        (changed("input_ids", 2, 119), "input_ids: atom 2 has token 119"),
        (changed("input_ids", 1, 1.5), "input_ids: atom 1 has 1.5; expected an integer"),
        (changed("input_ids", 1, 2**32 + 1), "input_ids: atom 1 has .*; expected an integer"),
        ({"input_ids": "OHH"}, "input_ids: expected numbers, found .*OHH"),
        ({"input_ids": [], "coords": []}, "input_ids: the structure has no atoms"),
        (changed("coords", 2, np.nan), r"coords: atom 2 has \[nan, nan, nan\]; expected finite numbers \(Å\)"),
        (changed("coords", 1, np.inf), "coords: atom 1 has .*inf"),
        (changed("coords", 2, [0, 0, 0.1205]), "coords: atoms 0 and 2 are at the same place, 0.0005 Å apart"),
        ({"coords": [[0, 0, 0], [1, 0, 0]]}, r"coords: expected shape \(3, 3\) for 3 atoms, found \(2, 3\)"),
        ({"coords": [[0, 0], [1, 0, 0], [2]]}, "coords: .* lists of unequal length"),
        ({"coords": None}, "the row has no column 'coords', only input_ids"),
        ({"forces": np.zeros((2, 3))}, r"forces: expected shape \(3, 3\) for 3 atoms, found \(2, 3\)"),
        ({"forces": [[0, 0, 0], [0, np.nan, 0], [0, 0, 0]]}, r"forces: atom 1 has .* \(eV/Å\)"),
        ({"relaxed_coords": np.zeros((3, 3))}, "relaxed_coords: atoms 0 and 1 are at the same place"),
        ({"token_type_ids": [0, 3, 0]}, "token_type_ids: atom 1 has type 3; expected 0 to 2"),
        ({"fixed": [0, 2, 0]}, "fixed: atom 1 has 2; expected a truth value"),
        ({"total_energy": np.inf}, "total_energy: expected one finite number .* found inf"),
        ({"formation_energy": [1.0, 2.0]}, "formation_energy: expected one finite number"),
        ({"formation_energy": "low"}, "formation_energy: expected numbers, found .*low"),
        ({"gap": -np.inf}, "gap: expected finite numbers"),
        ({"cell": np.eye(3)}, "pbc is missing: expected both cell and pbc, or neither"),
        ({"pbc": [True] * 3}, "cell is missing"),
        ({"cell": np.eye(2), "pbc": [True] * 3}, r"expected shapes \(3, 3\) and \(3,\), found \(2, 2\)"),
        ({"cell": np.full((3, 3), np.nan), "pbc": [True] * 3}, "cell: expected finite numbers"),
        ({"cell": np.ones((3, 3)), "pbc": [True] * 3}, "cell: the periodic vectors span no 3-dimensional lattice"),
    ],
)
def test_a_bad_row_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as refused:
        check_row(WATER | change)
    assert "\n" not in str(refused.value)


def test_atoms_with_everything_come_back():
    atoms = Atoms("OH2", WATER["coords"], cell=[4, 5, 6], pbc=[True, True, False], info={"gap": 1.0, "id": "w"})
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=np.ones((3, 3)), stress=np.arange(6.0))
    atoms.set_constraint(FixAtoms([2]))
    atoms.set_array("token_type_ids", np.array([0, 1, 1]))
    row = row_from_atoms(atoms, properties={"gap": 2.0, "formation_energy": -0.5})
    assert_same(
        row,
        {"input_ids": [8, 1, 1], "coords": WATER["coords"], "forces": np.ones((3, 3)), "fixed": [False, False, True]}
        | {"token_type_ids": [0, 1, 1], "cell": np.diag([4, 5, 6]), "pbc": [True, True, False]}
        | {"total_energy": -3.0, "stress": np.arange(6.0), "gap": 2.0, "formation_energy": -0.5, "id": "w"},
    )
    assert_same(row_from_atoms(row_to_atoms(row)), row)


def test_bare_atoms_have_only_elements_and_places():
    atoms = Atoms("OH2", WATER["coords"])
    atoms.calc = EMT()  # has computed nothing
    assert_same(row_from_atoms(atoms), WATER)


def test_the_unknown_element_of_ase_is_refused():
    with pytest.raises(ValueError, match="atom 1 has token 0, which is no element"):
        row_from_atoms(Atoms("OX", [[0, 0, 0], [0, 0, 1]]))


@pytest.mark.parametrize("name", ["acac_train_300K", "mlearn_Si_train"])
def test_real_structures_survive_the_way_to_rows_and_back(data_dir, name):
    for atoms in ase.io.read(data_dir / f"{name}.extxyz.gz", index=":20"):
        row = row_from_atoms(atoms)
        again = row_to_atoms(row)
        assert again == atoms
        assert again.get_potential_energy() == atoms.get_potential_energy()
        np.testing.assert_array_equal(again.get_forces(), atoms.get_forces())
        assert_same(row_from_atoms(again), row)


@pytest.mark.parametrize(
    "cell", [np.diag([4.0, 5.0, 6.0]), np.array([[4.0, 0.0, 0.0], [11.0, 5.0, 0.0], [-3.0, 9.0, 6.0]])]
)
def test_atoms_at_the_place_of_an_image_are_refused(cell, rng):
    start = rng.normal(0, 3, 3)
    for step in (cell[0] - 2 * cell[1], cell[2]):
        row = {"input_ids": [14, 14], "coords": [start, start + step + 1e-4], "cell": cell, "pbc": [True] * 3}
        with pytest.raises(ValueError, match="atom 0 and an image of atom 1 are at the same place"):
            check_row(row)
    check_row(row | {"pbc": [True, True, False]})  # the third direction does not repeat
    check_row(row | {"coords": [start, start + 0.5 * cell[0]]})
