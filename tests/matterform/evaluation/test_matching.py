import pytest
from pymatgen.core import Lattice, Structure

from matterform.evaluation.matching import MatcherConfig, is_novel, is_unique


def caesium_chloride_type(edge_ang=3.4):
    return Structure(Lattice.cubic(edge_ang), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_the_first_of_equal_crystals_is_unique_in_whatever_cell(rock_salt):
    structures = [
        rock_salt(),
        rock_salt().get_primitive_structure(),
        caesium_chloride_type(),
        rock_salt(anion="Br"),
        rock_salt(5.9),
        caesium_chloride_type(),
    ]
    # The matcher scales volumes, so a larger edge makes no other crystal.
    assert is_unique(structures).tolist() == [True, False, True, True, False, False]


def test_novel_means_unlike_all_of_the_reference(rock_salt):
    structures = [rock_salt(), caesium_chloride_type(), rock_salt(anion="Br")]
    assert is_novel(structures, iter([rock_salt().get_primitive_structure()])).tolist() == [False, True, True]
    assert is_novel(structures, []).tolist() == [True, True, True]


def test_tolerances_matter(rock_salt):
    moved = rock_salt().get_primitive_structure()
    moved.translate_sites([1], [0.0, 0.0, 0.08])
    pair = [rock_salt().get_primitive_structure(), moved]
    assert is_unique(pair, MatcherConfig()).tolist() == [True, False]
    assert is_unique(pair, MatcherConfig(stol=0.01)).tolist() == [True, True]
    with pytest.raises(ValueError, match="stol must be positive; got 0"):
        MatcherConfig(stol=0.0)


def test_absurd_crystals_are_neither_unique_nor_novel(absurd, rock_salt):
    structures = [*absurd.values(), rock_salt()]
    comparable = [False] * 6 + [True, True]
    assert is_unique(structures).tolist() == comparable
    assert is_novel(structures, list(absurd.values())[:6]).tolist() == comparable


def test_real_crystals_are_unique_and_known(real_crystals):
    structures = real_crystals[:60]
    assert is_unique([*structures, *structures]).tolist() == [True] * 60 + [False] * 60
    assert is_novel(structures, real_crystals[30:]).tolist() == [True] * 30 + [False] * 30
