import collections

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
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


@pytest.fixture(scope="module")
def polymorphs(real_crystals):
    """Real crystals of two elements as if of Na and Cl, each also in other cells, moved a little, and moved a lot."""
    rng = np.random.default_rng(0)
    binaries = [crystal for crystal in real_crystals if len(crystal.elements) == 2 and len(crystal) <= 8][:25]
    polymorphs = []
    for crystal in binaries:
        renamed = crystal.copy()
        renamed.replace_species(dict(zip(sorted(crystal.elements), ("Na", "Cl"), strict=True)))
        strained = renamed.apply_strain(rng.uniform(-0.08, 0.08, 3), inplace=False)
        moved = [renamed.copy().perturb(distance) for distance in (0.1, 0.6, 1.2)]
        polymorphs += [renamed, renamed * [[1, 1, 0], [0, 1, 0], [0, 0, 2]], strained, *moved]
    return [polymorphs[index] for index in rng.permutation(len(polymorphs))]


def test_verdicts_are_those_of_the_matcher_on_whole_structures(polymorphs):
    fit = StructureMatcher().fit
    first, second = polymorphs[::2], polymorphs[1::4]
    alike, unique = collections.defaultdict(list), []
    for structure in polymorphs:
        others = alike[structure.reduced_formula]
        unique.append(not any(fit(other, structure) for other in others))
        others += [structure] if unique[-1] else []
    assert max(len(others) for others in alike.values()) > 5
    assert 0.1 < np.mean(unique) < 0.8
    assert is_unique(polymorphs).tolist() == unique
    novel = [not any(fit(other, structure) for other in second) for structure in first]
    assert 0.1 < np.mean(novel) < 0.8
    assert is_novel(first, second).tolist() == novel


def test_a_cell_is_reduced_once_and_only_where_there_is_another_of_the_formula(polymorphs, monkeypatch):
    counts = collections.Counter(structure.reduced_formula for structure in polymorphs)
    asked, reduce = [], Structure.get_primitive_structure

    def counted(self):
        asked.append(self)
        with monkeypatch.context() as patch:  # it calls itself
            patch.setattr(Structure, "get_primitive_structure", reduce)
            return reduce(self)

    monkeypatch.setattr(Structure, "get_primitive_structure", counted)
    is_unique(polymorphs)
    assert len(asked) == sum(count for count in counts.values() if count > 1) > 100
    asked.clear()
    assert is_novel(polymorphs[:1], [Structure(Lattice.cubic(3), ["Fe"], [[0, 0, 0]])]).tolist() == [True]
    assert not asked
