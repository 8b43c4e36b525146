"""Primitive cells hold the same crystal as conventional ones, in all space groups."""

from collections import Counter

import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from crystalformer.data.crystals import Crystals, to_structures
from crystalformer.data.primitive import build_structures, centring, first_of_translates
from crystalformer.symmetry.wyckoff import symmetry_tables, wyckoff_operations

CELLS = {"P": 1, "A": 2, "C": 2, "I": 2, "F": 4, "R": 3}  # primitive in a conventional one


@pytest.fixture(scope="module")
def one_of_each() -> Crystals:
    """A crystal of two or three sites in every space group, one of them on its first letter."""
    rng, tables = np.random.default_rng(1), symmetry_tables()
    G = np.arange(1, 231, dtype=np.int32)
    W = np.zeros((230, 4), np.int32)
    W[:, 0] = 1
    for group, letters in zip(G, W, strict=True):
        others = np.arange(2, tables.num_letters[group - 1] + 1)
        extra = np.sort(rng.choice(others, min(2, len(others)), replace=False))
        letters[1 : 1 + len(extra)] = extra
    real = W > 0
    return Crystals(
        G=G,
        L=np.concatenate([rng.uniform(2, 4, (230, 3)), rng.uniform(1.4, 1.8, (230, 3))], -1).astype(np.float32),
        XYZ=np.where(real[..., None], rng.uniform(0, 1, (230, 4, 3)), 0).astype(np.float32),
        A=np.where(real, rng.integers(1, 95, (230, 4)), 0).astype(np.int32),
        W=W,
    )


def to_primitive_structures(crystals: Crystals) -> list[Structure]:
    """Those of `build_structures`, none of which may fail."""
    structures, problems = build_structures(crystals)
    assert problems == [""] * len(structures)
    return structures


def test_the_230_groups_have_the_centrings_of_the_tables():
    assert Counter(map(centring, range(1, 231))) == {"P": 149, "I": 38, "C": 16, "F": 16, "R": 7, "A": 4}
    known = {1: "P", 5: "C", 38: "A", 139: "I", 146: "R", 148: "R", 167: "R", 194: "P", 221: "P", 225: "F", 229: "I"}
    assert {group: centring(group) for group in known} == known


def test_every_wyckoff_position_splits_evenly_over_the_primitive_cells():
    for group in range(1, 231):
        for letter in range(1, symmetry_tables().num_letters[group - 1] + 1):
            kept = first_of_translates(group, letter)
            assert len(kept) * CELLS[centring(group)] == len(wyckoff_operations(group, letter))


def test_primitive_cells_repeat_to_the_conventional_crystal_in_all_groups(one_of_each):
    conventional, primitive = to_structures(one_of_each), to_primitive_structures(one_of_each)
    for group, whole, part in zip(one_of_each.G, conventional, primitive, strict=True):
        cells = CELLS[centring(int(group))]
        assert len(whole) == cells * len(part)
        np.testing.assert_allclose(whole.volume, cells * part.volume, rtol=1e-12)
        # Each conventional atom stands on an atom of the primitive lattice, and each of those has its share of them.
        frac = part.lattice.get_fractional_coords(whole.cart_coords)
        apart = frac[:, None] - part.frac_coords
        here = (np.abs(apart - np.round(apart)) < 1e-9).all(-1)
        here &= np.equal.outer(whole.atomic_numbers, part.atomic_numbers)
        np.testing.assert_array_equal(here.sum(1), 1)
        np.testing.assert_array_equal(here.sum(0), cells)


def only_the_first_site(crystals: Crystals) -> Crystals:
    return crystals._replace(W=crystals.W * np.array([1, 0, 0, 0]))


def test_energies_per_atom_are_those_of_the_conventional_cells_in_all_groups(one_of_each):
    crystals = only_the_first_site(one_of_each)
    for whole, part in zip(to_structures(crystals), to_primitive_structures(crystals), strict=True):
        energies = []
        for structure in (whole, part):
            atoms = AseAtomsAdaptor.get_atoms(structure)
            atoms.calc = LennardJones(sigma=2.0, rc=5.0)
            energies.append(atoms.get_potential_energy() / len(atoms))
        assert energies[0] == pytest.approx(energies[1], rel=1e-9)
        assert energies[0] != 0


@pytest.mark.parametrize("group", [5, 23, 38, 70, 146, 166, 216, 225, 230])
def test_pymatgen_finds_the_same_crystal(one_of_each, group):
    crystal = Crystals(*(field[group - 1 : group] for field in only_the_first_site(one_of_each)))
    (whole,), (part,) = to_structures(crystal), to_primitive_structures(crystal)
    assert StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.01).fit(whole, part)


def test_chgnet_gives_both_cells_the_same_energy_per_atom(one_of_each):
    pytest.importorskip("chgnet")
    from matterform.potentials.chgnet import load_chgnet

    chosen = np.array([5, 38, 70, 146, 229]) - 1  # C, A, F, R, I
    crystals = only_the_first_site(Crystals(*(field[chosen] for field in one_of_each)))
    crystals = crystals._replace(A=np.full((5, 4), 29), L=np.array([[3.2, 3.3, 3.4, 1.57, 1.6, 1.57]] * 5))
    cells = [to_structures(crystals), to_primitive_structures(crystals)]
    whole, part = (load_chgnet().predict(cell, "energy").energy / np.array(list(map(len, cell))) for cell in cells)
    np.testing.assert_allclose(whole, part, atol=2e-5)
    assert np.isfinite(whole).all()


def test_build_gives_a_reason_for_each_crystal_that_cannot_be_built(one_of_each):
    crystals = Crystals(*(np.array(field[[0, 0, 0, 0, 0, 0, 0, 0, 224]]) for field in one_of_each))
    crystals.W[0] = 0
    crystals.L[1, 3:] = np.radians([60, 60, 130])
    crystals.L[2, 1] = -1
    crystals.L[3, 0] = np.nan
    crystals.XYZ[4, 0, 2] = np.inf
    crystals.A[5, 0] = 0
    crystals.W[6, 0] = 5
    crystals.L[7, 2] = 1e5
    structures, problems = build_structures(crystals)
    assert [structure is None for structure in structures] == [True] * 8 + [False]
    for words, problem in zip(
        ("no site", "angles", "length", "lattice", "coordinates", "element", "letter", "too large: 1"),
        problems[:-1],
        strict=True,
    ):
        assert words in problem
    assert problems[-1] == ""
    (expected,) = to_primitive_structures(Crystals(*(field[-1:] for field in crystals)))
    assert structures[-1] == expected


def test_an_empty_batch_is_built_to_nothing(one_of_each):
    assert build_structures(Crystals(*(field[:0] for field in one_of_each))) == ([], [])
