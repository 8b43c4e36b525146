import collections
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from pyxtal import pyxtal

from crystalformer.data.crystals import (
    Crystals,
    iterate_crystals,
    num_atoms,
    num_sites,
    to_cif,
    to_structure,
    wyckoff_sites,
)
from crystalformer.data.symmetrize import (
    Cell,
    crystal_from_structure,
    crystal_from_text,
    lattice_parameters,
    search_symmetry,
    symmetrize,
)
from crystalformer.symmetry.wyckoff import apply_operations, letter_index, wyckoff_operations
from matterform.io.formats import UnreadableStructure

# All rows of both tables were tried. In these, whose atoms nearly repeat, StructureMatcher's own reduction to primitive
# cells goes two ways; pymatgen's refined structures do not match these originals either.
MATCHER_REDUCES_TWO_WAYS = {
    "mp20_biternary": {178, 295, 3017, 3428, 6369, 6568},
    "mpts52_val": {3624, 3859, 3988, 4767, 4923},
}

ROCK_SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
QUARTZ = Structure.from_spacegroup(
    "P3_121", Lattice.hexagonal(4.91, 5.43), ["Si", "O"], [[0.471, 0, 1 / 3], [0.413, 0.266, 0.214]]
)


def cifs(data_dir, name: str) -> pd.Series:
    return pd.read_csv(data_dir / f"{name}.csv.gz", usecols=["cif"])["cif"]


def site_counts(crystal: Crystals) -> collections.Counter:
    """The multiset of (W, A)."""
    n = int(num_sites(crystal))
    return collections.Counter(zip(crystal.W[:n].tolist(), crystal.A[:n].tolist(), strict=True))


def read_with_pyxtal(cif: str) -> tuple[int, collections.Counter]:
    """Space group and multiset of (W, A), the slow way of the published sequences."""
    structure = SpacegroupAnalyzer(Structure.from_str(cif, fmt="cif"), symprec=0.01).get_refined_structure()
    crystal = pyxtal()
    crystal.from_seed(structure, tol=0.01)
    numbers = {str(species): species.Z for species in structure.types_of_species}
    sites = [(letter_index(site.wp.letter), numbers[site.specie]) for site in crystal.atom_sites]
    return crystal.group.number, collections.Counter(sites)


def matches(crystal: Crystals, cif: str) -> bool:
    return StructureMatcher().fit(to_structure(crystal), Structure.from_str(cif, fmt="cif"))


def test_agrees_with_every_golden_crystal(data_dir, golden_dir):
    texts = cifs(data_dir, "mp20_biternary")
    with np.load(golden_dir / "crystalformer" / "structures.npz", allow_pickle=True) as file:
        rows, golden = file["row"], Crystals(file["G"], file["L"], file["XYZ"], file["A"], file["W"])
    assert len(rows) == 160
    for row, expected in zip(rows, iterate_crystals(golden), strict=True):
        crystal = crystal_from_text(texts[row])
        assert crystal.G == expected.G
        assert site_counts(crystal) == site_counts(expected)
        np.testing.assert_allclose(crystal.L, expected.L, atol=5e-5, err_msg=f"row {row}")
        assert_same_orbits(crystal, expected)


def assert_same_orbits(crystal: Crystals, expected: Crystals) -> None:
    """Equal crystals, though another atom of an orbit may stand for it."""
    orbits = [(site.letter, site.number, site.orbit) for site in wyckoff_sites(crystal)]
    for letter, number, other in ((site.letter, site.number, site.orbit) for site in wyckoff_sites(expected)):
        same = [i for i, (w, a, orbit) in enumerate(orbits) if (w, a) == (letter, number) and near(other[0], orbit)]
        assert len(same) == 1
        del orbits[same[0]]


def near(point, orbit) -> bool:
    difference = orbit - point
    return bool(np.abs(difference - np.rint(difference)).max(-1).min() < 1e-4)


@pytest.mark.parametrize("name", ["mp20_biternary", "mpts52_val"])
def test_agrees_with_the_slow_reference(data_dir, name):
    for cif in cifs(data_dir, name)[5::499]:
        crystal = crystal_from_text(cif)
        assert read_with_pyxtal(cif) == (crystal.G, site_counts(crystal))


@pytest.mark.parametrize("name", ["mp20_biternary", "mpts52_val"])
def test_crystals_converted_back_match_their_originals(data_dir, name):
    texts = cifs(data_dir, name)
    for row in range(11, len(texts), len(texts) // 60):
        assert matches(crystal_from_text(texts[row]), texts[row]), row


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mp20_biternary", "mpts52_val"])
def test_many_crystals_converted_back_match_their_originals(data_dir, name):
    texts, explained = cifs(data_dir, name), MATCHER_REDUCES_TWO_WAYS[name]
    rows = {*range(0, len(texts), 8), *explained}
    assert len(rows) > 600
    assert {row for row in rows if not matches(crystal_from_text(texts[row]), texts[row])} == explained


@pytest.mark.parametrize("name", ["mp20_biternary", "mpts52_val"])
def test_crystals_that_the_matcher_reduces_two_ways_match_in_one_cell(data_dir, name):
    texts, matcher = cifs(data_dir, name), StructureMatcher(primitive_cell=False)
    for row in MATCHER_REDUCES_TWO_WAYS[name]:
        original = SpacegroupAnalyzer(Structure.from_str(texts[row], fmt="cif"), symprec=0.01)
        back = SpacegroupAnalyzer(to_structure(crystal_from_text(texts[row])), symprec=0.01)
        assert matcher.get_rms_dist(original.find_primitive(), back.find_primitive())[1] < 1e-6
        assert not StructureMatcher().fit(original.get_refined_structure(), Structure.from_str(texts[row], fmt="cif"))


def test_representatives_are_exact_sorted_and_in_the_unit_cell(data_dir):
    for cif in cifs(data_dir, "mpts52_val")[::100]:
        crystal = crystal_from_text(cif)
        assert np.all((crystal.XYZ >= 0) & (crystal.XYZ < 1))
        keys = [(w, *xyz) for w, xyz in zip(crystal.W.tolist(), crystal.XYZ.tolist(), strict=True)]
        assert keys == sorted(keys)
        for w, xyz in zip(crystal.W.tolist(), crystal.XYZ.astype(float), strict=True):
            change = apply_operations(wyckoff_operations(int(crystal.G), w)[:1], xyz)[0] - xyz
            assert np.abs(change - np.rint(change)).max() < 1e-6


def test_shortcut_for_simple_prototypes_changes_nothing(data_dir):
    found = 0
    for cif in cifs(data_dir, "mp20_biternary")[::30]:
        structure = Structure.from_str(cif, fmt="cif")
        cell = Cell(structure.lattice.matrix, structure.frac_coords, np.array(structure.atomic_numbers))
        crystal, expected = symmetrize(cell), search_symmetry(cell)
        found += crystal.G >= 195
        np.testing.assert_allclose(crystal.L, expected.L, rtol=1e-6)
        for field in ("G", "XYZ", "A", "W"):
            np.testing.assert_array_equal(getattr(crystal, field), getattr(expected, field))
    assert found > 30


def test_tetragonal_and_distorted_cells_do_not_take_the_shortcut():
    stretched = Structure(Lattice.tetragonal(5.64, 5.70), ROCK_SALT.species, ROCK_SALT.frac_coords)
    assert crystal_from_structure(stretched).G == 139
    moved = ROCK_SALT.copy()
    moved.translate_sites([0], [0.01, 0, 0])
    assert crystal_from_structure(moved).G == 99


@pytest.mark.parametrize("structure", [ROCK_SALT, QUARTZ], ids=["rock salt", "quartz"])
def test_any_cell_of_a_crystal_gives_the_same_sites(structure, rng):
    expected = crystal_from_structure(structure)
    supercell = structure * (2, 1, 1)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(len(structure))
    shuffled = Structure(
        structure.lattice.matrix @ rotation,
        [structure.species[i] for i in order],
        structure.frac_coords[order] + rng.integers(-2, 3, (len(structure), 3)),
    )
    for other in (structure.get_primitive_structure(), supercell, shuffled):
        crystal = crystal_from_structure(other)
        assert crystal.G == expected.G
        assert sorted(crystal.A) == sorted(expected.A)
        np.testing.assert_allclose(crystal.L, expected.L, rtol=1e-5)
        assert StructureMatcher().fit(to_structure(crystal), structure)


def test_own_cifs_read_back_to_the_same_crystal(data_dir):
    """Up to the origin: in groups with two equivalent ones, such as 227, letters may be exchanged."""
    for cif in cifs(data_dir, "mp20_biternary")[3::150]:
        crystal = crystal_from_text(cif)
        again = crystal_from_text(to_cif(crystal))
        assert (again.G, num_atoms(again)) == (crystal.G, num_atoms(crystal))
        assert sorted(again.A) == sorted(crystal.A)
        np.testing.assert_allclose(again.L, crystal.L, rtol=1e-5)
        assert StructureMatcher().fit(to_structure(again), to_structure(crystal))


def test_stated_symmetry_is_applied():
    crystal, expected = crystal_from_text(str(CifWriter(QUARTZ, symprec=0.01))), crystal_from_structure(QUARTZ)
    assert (crystal.G, num_atoms(crystal)) == (expected.G, num_atoms(expected)) == (152, 9)
    assert site_counts(crystal) == site_counts(expected)


def test_symmetry_besides_all_atoms_is_refused():
    """pymatgen cannot read this either."""
    text = str(CifWriter(QUARTZ, symprec=0.01))
    atoms = (f"  {s.specie}  {s.specie}{i}  1  {s.a:.8f}  {s.b:.8f}  {s.c:.8f}  1\n" for i, s in enumerate(QUARTZ))
    with pytest.raises(UnreadableStructure, match="atoms coincide"):
        crystal_from_text(text[: text.index("  Si  Si0")] + "".join(atoms))


def test_structure_json_is_read():
    assert crystal_from_text(ROCK_SALT.to_json()).G == 225


def test_charged_species_count_as_their_element():
    assert crystal_from_structure(ROCK_SALT.copy().add_oxidation_state_by_guess()).A.tolist() == [11, 17]


def edited(old: str, new: str) -> str:
    text = str(CifWriter(ROCK_SALT))
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("no crystal", "no structures"),
        (edited("  0.00000000  0.00000000  1\n", "  0.00000000  0.00000000  0.5\n"), "partial occupancy"),
        (edited("Cl  Cl", "Xx  Xx"), "unknown element 'Xx'"),
        (edited("0.50000000  0.50000000  0.50000000", "?  0.5  0.5"), "Error"),
        (edited("_cell_length_a", "_cell_length_q"), "Error"),
        (edited("_cell_angle_gamma   90.", "_cell_angle_gamma   9z."), "Error"),
        (edited("_cell_length_a   5.", "_cell_length_a   0.00"), "volume"),
        (edited("0.50000000  0.50000000  0.50000000", "0.00001  0.00001  0.00001"), "atoms coincide"),
    ],
)
def test_unreadable_texts_are_refused_with_the_reason(text, reason):
    with pytest.raises(UnreadableStructure, match=reason):
        crystal_from_text(text)


@pytest.mark.parametrize(
    ("species", "reason"),
    [([{"Na": 0.5, "K": 0.5}, "Cl"], "partial occupancy"), (["X", "Cl"], "unknown element 'X'")],
)
def test_unusable_structures_are_refused_with_the_reason(species, reason):
    structure = Structure(Lattice.cubic(4.1), species, [[0, 0, 0], [0.5, 0.5, 0.5]])
    with pytest.raises(UnreadableStructure, match=reason):
        crystal_from_structure(structure)


def test_a_cell_that_is_not_finite_is_refused():
    """spglib would end the process."""
    with pytest.raises(UnreadableStructure, match="not finite"):
        symmetrize(Cell(np.full((3, 3), np.nan), np.zeros((1, 3)), np.array([11])))


def test_idealising_may_raise_the_symmetry_and_is_then_repeated(data_dir):
    """These four rows gain symmetry when their idealised cells are looked at again, as pyxtal does."""
    texts = cifs(data_dir, "mp20_biternary")
    for row, number in {5248: 227, 6240: 12, 6398: 225, 6606: 65}.items():
        crystal = crystal_from_text(texts[row])
        again = crystal_from_structure(to_structure(crystal))
        assert {int(crystal.G), int(again.G)} == {number}


def test_lattice_parameters_are_those_of_pymatgen():
    lattice = Lattice.from_parameters(3, 4, 5, 80, 95, 110)
    expected = [*lattice.abc, *np.radians(lattice.angles)]
    np.testing.assert_allclose(lattice_parameters(lattice.matrix), expected, rtol=1e-12)


def test_reading_imports_no_jax():
    """Worker processes import these modules and must neither load nor fork JAX."""
    code = "import sys, crystalformer.data.dataset, crystalformer.data.symmetrize; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
