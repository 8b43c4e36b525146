"""Selected atoms are new, and the others stay."""

import ase
import ase.build
import numpy as np
import pytest
from ase.constraints import FixAtoms, FixedPlane
from ase.geometry import find_mic

import agedi
from agedi.sampling.selection import INPAINT_MASK

pytestmark = pytest.mark.usefixtures("quick")


def slab() -> ase.Atoms:
    """Eight copper atoms in two layers, the lower one fixed, and an oxygen on top."""
    atoms = ase.build.fcc111("Cu", (2, 2, 2), vacuum=6.0)
    atoms.rattle(0.02, seed=0)
    ase.build.add_adsorbate(atoms, "O", 1.2, "fcc")
    atoms.set_constraint(FixAtoms([0, 1, 2, 3]))
    return atoms


@pytest.fixture(scope="module")
def crystals(tiny_diffusion):
    return tiny_diffusion("CellPositions")


@pytest.mark.parametrize("sampler", ["em", "heun_ode"])
def test_only_selected_atoms_are_new(crystals, sampler):
    before = slab()
    found = agedi.inpaint(crystals, before, symbols="O", indices=[5], n_samples=3, steps=5, sampler=sampler)
    assert len(found) == 3
    for atoms in found:
        kept = [0, 1, 2, 3, 4, 6, 7]
        np.testing.assert_array_equal(atoms.positions[kept], before.positions[kept])
        assert np.abs(atoms.positions - before.positions)[[5, 8]].max(axis=1).min() > 1e-3
        np.testing.assert_array_equal(atoms.numbers, before.numbers)
        assert np.flatnonzero(atoms.arrays[INPAINT_MASK]).tolist() == [5, 8]
        assert len(atoms.constraints) == 1
    assert np.abs(found[0].positions - found[1].positions).max() > 1e-3


def test_species_of_known_atoms_return_too(tiny_diffusion):
    before = slab()
    found = agedi.inpaint(tiny_diffusion("CellPositions", "Types"), before, indices=[4, 8], n_samples=4, steps=5)
    for atoms in found:
        np.testing.assert_array_equal(np.delete(atoms.numbers, [4, 8]), [29] * 7)
    assert len({tuple(atoms.numbers[[4, 8]]) for atoms in found}) > 1


def test_lists_give_lists_and_frozen_atoms_do_not_follow_the_noise(crystals):
    """Of a trajectory's frames: atoms that are neither selected nor fixed move on the way, frozen ones never do."""
    other = slab()[4:]
    ways = agedi.inpaint(
        crystals, [slab(), other], symbols=["O"], freeze=[1], n_samples=2, steps=5, save_trajectory=True, n_resample=2
    )
    assert [len(samples) for samples in ways] == [2, 2]
    assert [len(way) for way in ways[0]] == [1 + 5 * 3] * 2  # each step is gone, gone back, and gone again
    for frame in ways[1][1]:
        np.testing.assert_array_equal(frame.positions[1], other.positions[1])
    middle = ways[1][1][1].positions - other.positions
    assert np.abs(middle[[0, 2, 3]]).max(axis=1).min() > 1e-3
    np.testing.assert_array_equal(ways[1][1][-1].positions[:4], other.positions[:4])


def test_small_t_start_stays_near(crystals):
    """Noise of 0.01 Å moves atoms by little, noise of 2 Å by a lot."""
    near, far = (
        agedi.inpaint(crystals, slab(), symbols="O", n_samples=4, steps=3, t_start=t, sampler_kwargs={"eps": 1e-3})
        for t in (0.05, 1.0)
    )

    def moved(samples):
        apart = [atoms.positions[8] - slab().positions[8] for atoms in samples]
        return find_mic(np.array(apart), slab().cell, slab().pbc)[1]

    assert moved(near).max() < 0.2 < moved(far).max()


def test_relaxation_after_inpainting_moves_selected_atoms_only(tiny_diffusion):
    model = tiny_diffusion("CellPositions", force_field=True)
    arguments = {"symbols": "O", "n_samples": 2, "steps": 5}
    plain = agedi.inpaint(model, slab(), **arguments)
    found = agedi.inpaint(model, slab(), ff_guidance={"max_extra_steps": 3, "force_threshold": 1e-4}, **arguments)
    for atoms, before in zip(found, plain, strict=True):
        np.testing.assert_array_equal(atoms.positions[:8], slab().positions[:8])
        assert np.abs(atoms.positions[8] - before.positions[8]).max() > 1e-6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"indices": [9]}, r"structure 0 \(Cu8O\): indices must be whole numbers below"),
        ({"n_samples": 0}, "num_samples must be a whole number of at least 1"),
        ({"t_start": 0.0}, r"t_start must lie in \(0, 1\]"),
        ({"n_resample": 0}, "n_resample must be at least 1"),
        ({"jump_length": 0}, "jump_length must be at least 1"),
        ({"confinement": (0.0, 5.0)}, "confinement contradicts the model"),
        ({"property": {"energy": 1.0}}, "property 'energy' is not one of this model"),
        ({"sampler": "ffpc"}, "sampler ffpc needs a force field"),
        ({"simbols": "O"}, "unknown key 'simbols'; did you mean 'symbols'"),
    ],
)
def test_wrong_arguments_are_named(crystals, arguments, words):
    with pytest.raises(ValueError, match=words):
        agedi.inpaint(crystals, slab(), **{"symbols": "O", "steps": 5, **arguments})


def test_unusable_structures_are_named(crystals, tiny_diffusion):
    platinum, planar = slab(), slab()
    platinum.symbols[8] = "Pt"
    planar.set_constraint(FixedPlane(0, (0, 0, 1)))
    for atoms, words in ((platinum, r"structure 1 \(Cu8Pt\): it has Pt"), (planar, "has the constraint FixedPlane")):
        with pytest.raises(ValueError, match=words):
            agedi.inpaint(crystals, [slab(), atoms], indices=[8])
    with pytest.raises(ValueError, match="there is no structure to inpaint"):
        agedi.inpaint(crystals, [], indices=[8])
    confined = tiny_diffusion("ConfinedCellPositions", confinement=(5.0, 9.0))
    with pytest.raises(ValueError, match=r"has 1 free atoms outside the confinement 5 to 9 .* use 5 to 10"):
        agedi.inpaint(confined, slab(), symbols="O")


def test_published_forms_of_selectors(crystals):
    """A sphere as (center, radius), a mask of frozen atoms, and seed None."""
    center = slab().positions[8]
    quick = {"n_samples": 1, "steps": 4, "seed": None}
    found = agedi.inpaint(crystals, slab(), sphere=(center, 0.5), freeze=np.arange(9) == 4, **quick)[0]
    same = agedi.inpaint(crystals, slab(), sphere=(*center, 0.5), freeze=[4], **quick)[0]
    assert np.flatnonzero(found.arrays[INPAINT_MASK]).tolist() == [8]
    np.testing.assert_array_equal(found.positions, same.positions)
