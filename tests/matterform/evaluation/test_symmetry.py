import pytest
from pymatgen.core import Lattice, Structure

from matterform.evaluation.symmetry import find_symmetry, is_requested


def test_rock_salt_is_recognised_in_every_cell(rock_salt):
    conventional = rock_salt()
    found = find_symmetry([conventional, conventional.get_primitive_structure(), conventional * (1, 1, 2)])
    assert found.space_group.tolist() == [225, 225, 225]
    assert found.num_atoms_primitive.tolist() == [2, 2, 2]


def test_fidelity_compares_one_by_one(rock_salt):
    found = find_symmetry([rock_salt(), rock_salt()]).space_group
    assert is_requested(found, [225, 221]).tolist() == [True, False]
    with pytest.raises(ValueError, match="expected 2 space groups, one per structure; found 1"):
        is_requested(found, [225])


def test_tolerance_decides_on_small_displacements(rock_salt):
    moved = rock_salt()
    moved.translate_sites([0], [0.03, 0, 0], frac_coords=False)
    assert find_symmetry([moved], 0.1).space_group.tolist() == [225]
    assert find_symmetry([moved], 0.01).space_group.tolist() == [99]  # P4mm


def test_absurd_crystals_have_no_space_group(absurd):
    # spglib itself would end the process on the first one.
    found = find_symmetry(list(absurd.values()))
    assert found.space_group.tolist() == [0] * len(absurd)
    assert found.num_atoms_primitive.tolist() == [len(structure) for structure in absurd.values()]
    assert find_symmetry([]).space_group.shape == (0,)


def test_sites_of_mixed_occupancy_are_told_apart():
    mixed = [{"Na": 0.5, "K": 0.5}, {"Na": 0.4, "K": 0.6}]
    places = [[0, 0, 0], [0.5, 0.5, 0.5]]
    different, equal = (Structure(Lattice.cubic(4), species, places) for species in (mixed, mixed[:1] * 2))
    assert find_symmetry([different, equal]).space_group.tolist() == [221, 229]


def test_most_real_crystals_have_the_space_group_of_the_table(real_crystals):
    table = [structure.properties["spacegroup.number"] for structure in real_crystals]
    assert is_requested(find_symmetry(real_crystals, 0.1).space_group, table).all()
    assert is_requested(find_symmetry(real_crystals, 0.01).space_group, table).mean() == pytest.approx(0.99)
