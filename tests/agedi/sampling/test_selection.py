"""Which atoms a selection names, and selections that are refused."""

import ase
import ase.build
import numpy as np
import pytest
from ase.constraints import FixAtoms

from agedi.sampling.config import Selection
from agedi.sampling.selection import INPAINT_MASK, INPAINTED, select


def slab() -> ase.Atoms:
    """Eight copper atoms in two layers, the lower one fixed, and an oxygen on top."""
    atoms = ase.build.fcc111("Cu", (2, 2, 2), vacuum=6.0)
    atoms.rattle(0.02, seed=0)
    ase.build.add_adsorbate(atoms, "O", 1.2, "fcc")
    atoms.set_constraint(FixAtoms([0, 1, 2, 3]))
    return atoms


def with_info(atoms):
    atoms.info[INPAINTED] = [5, 6]
    return atoms


def chosen(atoms=None, seed=0, **selection):
    atoms = slab() if atoms is None else atoms
    selected, fixed = select(atoms, Selection(**selection), np.random.default_rng(seed))
    return np.flatnonzero(selected).tolist(), np.flatnonzero(fixed).tolist()


@pytest.mark.parametrize(
    ("selection", "selected", "fixed"),
    [
        ({"indices": (4, -1)}, [4, 8], [0, 1, 2, 3]),
        ({"symbols": ("O",)}, [8], [0, 1, 2, 3]),
        ({"symbols": ("Cu",)}, [4, 5, 6, 7], [0, 1, 2, 3]),
        ({"z_range": (9.0, 20.0)}, [8], [0, 1, 2, 3]),
        ({"symbols": ("O",), "indices": (5,)}, [5, 8], [0, 1, 2, 3]),
        ({"indices": (8,), "freeze": (4, 5)}, [8], [0, 1, 2, 3, 4, 5]),
        ({"indices": (8,), "freeze": "all"}, [8], list(range(8))),
    ],
)
def test_selectors_name_atoms(selection, selected, fixed):
    assert chosen(**selection) == (selected, fixed)


def test_a_sphere_reaches_across_the_boundary():
    atoms = ase.Atoms("Cu3", [[0.1, 5, 5], [9.8, 5, 5], [5, 5, 5]], cell=[10, 10, 10], pbc=True)
    assert chosen(atoms, sphere=(0.0, 5.0, 5.0, 0.5))[0] == [0, 1]
    atoms.set_pbc(False)
    assert chosen(atoms, sphere=(0.0, 5.0, 5.0, 0.5))[0] == [0]


def test_a_selection_is_read_from_the_structure():
    atoms = slab()
    atoms.set_array(INPAINT_MASK, np.arange(9) == 6)
    assert chosen(atoms, from_atoms=True)[0] == [6]
    assert chosen(from_atoms=True, atoms=with_info(slab()))[0] == [5, 6]
    with pytest.raises(ValueError, match="from the per-atom array 'inpaint_mask'; there is none"):
        chosen(from_atoms=True)


def test_random_selections_are_a_fraction_of_the_free_atoms():
    found = [chosen(seed=seed, fraction=0.4)[0] for seed in range(20)]
    assert all(len(atoms) == 2 and min(atoms) > 3 for atoms in found)
    assert len({tuple(atoms) for atoms in found}) > 5
    assert len(chosen(fraction=0.01)[0]) == 1


def test_contiguous_selections_are_nearest_neighbours():
    """On a ring, which begins again where it ends, a contiguous selection is a row of atoms without a gap."""
    count = 12
    ring = ase.Atoms(
        f"Cu{count}", [[i + 0.5, 1, 1] for i in range(count)], cell=[count, 2, 2], pbc=[True, False, False]
    )
    ring.positions[:, 0] += 0.01 * np.random.default_rng(0).normal(size=count)
    for seed in range(20):
        selected = chosen(ring, seed=seed, fraction=0.4, contiguous=True)[0]
        gaps = np.diff([*selected, selected[0] + count])
        assert len(selected) == 5
        assert sorted(gaps.tolist()) == [1, 1, 1, 1, 8]


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"indices": (9,)}, "indices must be whole numbers below the 9 atoms; got 9"),
        ({"indices": (True,)}, "indices must be whole numbers"),
        ({"indices": (0,)}, r"indices name atoms that are fixed: \[0\]"),
        ({"indices": (5,), "freeze": (5,)}, r"indices name atoms that are fixed: \[5\]"),
        ({"freeze": (20,)}, "freeze must be whole numbers below the 9 atoms; got 20"),
        ({"symbols": ("Pt",)}, "symbols must be among those of the structure; got 'Pt'"),
        ({"z_range": (30.0, 40.0)}, "no atom is selected that is not fixed"),
        ({"indices": ()}, "no atom is selected that is not fixed"),
        ({"z_range": (4.0, 3.0)}, "z_range must be a lower and an upper height"),
        ({"sphere": (0.0, 0.0, 0.0, -1.0)}, "sphere must be x, y, z and a positive radius"),
        ({"fraction": 0.0}, "fraction must lie between 0 and 1"),
        ({"indices": (8,), "contiguous": True}, "contiguous is for a random selection"),
    ],
)
def test_impossible_selections_are_refused(selection, words):
    with pytest.raises(ValueError, match=words):
        chosen(**selection)


def test_everything_cannot_be_inpainted():
    with pytest.raises(ValueError, match="every atom is selected, so nothing is left to inpaint around; use sample"):
        chosen(ase.Atoms("Cu2", [[0, 0, 0], [0, 0, 2]]), symbols=("Cu",))
