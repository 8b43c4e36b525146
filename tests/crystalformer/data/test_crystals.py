import io

import ase.io
import gemmi
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystalformer.data.crystals import (
    Crystals,
    cell_parameters,
    check_crystals,
    formula,
    iterate_crystals,
    num_atoms,
    num_sites,
    num_slots,
    to_cif,
    to_structures,
    truncate,
)


@pytest.fixture(scope="module")
def golden(golden_dir) -> Crystals:
    """160 real crystals of the original's reader."""
    with np.load(golden_dir / "crystalformer" / "structures.npz") as file:
        return Crystals(file["G"], file["L"], file["XYZ"], file["A"], file["W"])


@pytest.fixture
def rock_salt() -> Crystals:
    """NaCl with two padding slots, a = 5.64 Å."""
    angles = np.full(3, np.pi / 2)
    return Crystals(
        G=np.array([225]),
        L=np.concatenate([np.full(3, 5.64 / 2), angles])[None],
        XYZ=np.array([[[0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0], [0, 0, 0]]], np.float32),
        A=np.array([[11, 17, 0, 0]]),
        W=np.array([[1, 2, 0, 0]]),
    )


def assert_same_atoms(structure: Structure, expected: Structure) -> None:
    """Same cell within 1e-5, and every atom within 1e-3 Å of one of its element, both ways."""
    np.testing.assert_allclose(structure.lattice.parameters, expected.lattice.parameters, atol=1e-5)
    assert len(structure) == len(expected)
    distances = expected.lattice.get_all_distances(expected.frac_coords, structure.frac_coords)
    same_element = np.equal.outer(expected.atomic_numbers, structure.atomic_numbers)
    distances = np.where(same_element, distances, np.inf)
    assert distances.min(0).max() < 1e-3
    assert distances.min(1).max() < 1e-3


def read_with_gemmi(cif: str) -> tuple[Structure, int]:
    """All atoms that gemmi makes of a CIF and its space group."""
    small = gemmi.make_small_structure_from_block(gemmi.cif.read_string(cif).sole_block())
    assert small.check_spacegroup() == ""
    atoms = small.get_all_unit_cell_sites()
    species, coordinates = [atom.element.name for atom in atoms], [atom.fract.tolist() for atom in atoms]
    return Structure(Lattice.from_parameters(*small.cell.parameters), species, coordinates), small.spacegroup.number


def test_rock_salt_is_rock_salt(rock_salt):
    (structure,) = to_structures(rock_salt)
    assert_same_atoms(
        structure, Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3])
    )
    assert formula(next(iterate_crystals(rock_salt))) == "Na4 Cl4"
    assert num_sites(rock_salt) == [2]
    assert num_atoms(rock_salt) == [8]


def test_cells_obey_their_group_exactly(rock_salt):
    lattice = np.array([[2.8, 2.9, 3.0, 1.5, 1.6, 1.7]])
    (crystal,) = iterate_crystals(rock_salt._replace(L=lattice))
    np.testing.assert_allclose(cell_parameters(crystal), [5.6, 5.6, 5.6, 90, 90, 90], rtol=1e-14)


def test_a_crystal_of_padding_only_is_refused(rock_salt):
    with pytest.raises(ValueError, match="only padding"):
        to_structures(rock_salt._replace(W=np.zeros((1, 4), int)))


def test_structures_have_the_multiplicities_and_the_space_group(golden):
    for crystal, structure in zip(iterate_crystals(golden), to_structures(golden), strict=True):
        assert len(structure) == num_atoms(crystal)
        assert SpacegroupAnalyzer(structure, symprec=0.01).get_space_group_number() == crystal.G


def test_cif_reads_back_in_gemmi_pymatgen_and_ase(golden):
    for crystal, structure in zip(iterate_crystals(golden), to_structures(golden), strict=True):
        cif = to_cif(crystal)
        from_gemmi, number = read_with_gemmi(cif)
        assert number == crystal.G
        assert_same_atoms(from_gemmi, structure)
        assert_same_atoms(Structure.from_str(cif, fmt="cif"), structure)
        atoms = ase.io.read(io.StringIO(cif), format="cif")
        assert atoms.info["spacegroup"].no == crystal.G
        assert_same_atoms(AseAtomsAdaptor.get_structure(atoms), structure)


def test_cif_lists_wyckoff_sites_only(golden):
    for crystal in iterate_crystals(golden):
        block = gemmi.cif.read_string(to_cif(crystal)).sole_block()
        assert len(block.find_values("_atom_site_label")) == num_sites(crystal)
        assert block.find_value("_space_group_IT_number") == str(crystal.G)


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("W", np.s_[2], 1, "crystal 2 fills all 7 slots"),
        ("W", np.s_[2], [0, 0, 0, 0, 0, 1, 0], "crystal 2 has a site after padding"),
        ("W", np.s_[2, 0], 28, "crystal 2 has W = 28; this network takes 0 to 27"),
        ("A", np.s_[3, 0], 119, "crystal 3 has A = 119; this network takes 0 to 118"),
        ("A", np.s_[3, 0], -1, "crystal 3 has A = -1"),
        ("G", np.s_[4], 0, "crystal 4 has G = 0; this network takes 1 to 230"),
        ("G", np.s_[4], 231, "crystal 4 has G = 231"),
    ],
)
def test_crystals_that_are_none_are_refused(tiny_config, random_crystals, name, index, value, message):
    crystals = random_crystals(40, 7)
    field = getattr(crystals, name).copy()
    field[index] = value
    with pytest.raises(ValueError, match=message):
        check_crystals(crystals._replace(**{name: field}), tiny_config)


def test_a_single_crystal_is_no_batch(tiny_config, random_crystals):
    with pytest.raises(ValueError, match="expected a batch"):
        check_crystals(next(iterate_crystals(random_crystals(1, 7))), tiny_config)


def test_truncation_keeps_every_site(random_crystals):
    crystals = random_crystals(20, 21)
    short = [i for i, slots in enumerate(num_slots(crystals)) if slots <= 5]
    assert 1 < len(short) < 20
    cut = truncate(Crystals(*(array[short] for array in crystals)), 5)
    assert (cut.XYZ.shape, cut.A.shape) == ((len(short), 5, 3), (len(short), 5))
    assert ((cut.W > 0).sum(1) == (crystals.W[short] > 0).sum(1)).all()
    with pytest.raises(ValueError, match=f"needs {num_slots(crystals).max()} slots"):
        truncate(crystals, 5)
