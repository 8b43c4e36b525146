"""Rewards in JAX: exact sums over periodic images, few compilations, no harm from padding or companions."""

import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from pymatgen.core import DummySpecies, Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from crystalformer.rl.reward.pairwise import Padded, jitted_reward, lennard_jones, pair_reward, total_pair_energy

SIGMA = 3.4
FCC = Lattice([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
FLAT = Structure(Lattice([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), ["Cu"], [[0, 0, 0]])


def argon_reward(cutoff: float):
    """Minus the Lennard-Jones energy per atom, in units of the well, cut off without a shift."""

    def pair_energy(distance, crystal):
        return 4 * ((SIGMA / distance) ** 12 - (SIGMA / distance) ** 6)

    def function(crystal, images):
        return -total_pair_energy(crystal, images, pair_energy, cutoff) / jnp.sum(crystal.mask)

    return jitted_reward("argon", function, -100.0, cutoff)


def random_structure(rng: np.random.Generator, atoms: int, element: str = "Ar") -> Structure:
    """Atoms on a bent grid in a skewed cell, none closer than about 3 Å."""
    edge = int(np.ceil(atoms ** (1 / 3)))
    places = np.stack(np.meshgrid(*[np.arange(edge)] * 3), -1).reshape(-1, 3)[:atoms]
    frac = (places + rng.uniform(-0.03, 0.03, (atoms, 3))) / edge
    return Structure(Lattice(4 * edge * np.array([[1, 0, 0], [0.4, 1, 0], [-0.3, 0.2, 1]])), [element] * atoms, frac)


def test_argon_has_the_lattice_sum_of_the_fcc_crystal():
    nearest, cutoff = 1.0902 * SIGMA, 20.0
    argon = Structure(Lattice(FCC.matrix * nearest * 2**0.5), ["Ar"], [[0, 0, 0]])
    (value,) = argon_reward(cutoff).score([argon]).values
    density = 2**0.5 / 1.0902**3  # per sigma^3
    tail = 8 / 3 * np.pi * density * (SIGMA / cutoff) ** 3  # of the attraction beyond the cutoff
    assert value + tail == pytest.approx(8.610, abs=0.004)


def test_energies_are_those_of_ase_in_skewed_and_thin_cells(rng):
    cutoff = 7.0
    structures = [random_structure(rng, atoms) for atoms in (1, 2, 7, 9, 20)]
    structures.append(
        Structure(Lattice([[3.6, 0, 0], [7.3, 3.7, 0], [1, 9.2, 14]]), ["Ar", "Ar"], [[9.1, 0, 0], [0, 0, 0.4]])
    )
    scores = argon_reward(cutoff).score(structures)
    assert scores.problems == [""] * 6
    for structure, value in zip(structures, scores.values, strict=True):
        atoms = AseAtomsAdaptor.get_atoms(structure)
        atoms.calc = LennardJones(sigma=SIGMA, rc=cutoff)
        shift = 4 * ((SIGMA / cutoff) ** 12 - (SIGMA / cutoff) ** 6)
        distances = structure.get_all_neighbors(cutoff)
        expected = atoms.get_potential_energy() + shift * sum(map(len, distances)) / 2  # ASE shifts the energy to 0
        assert -value == pytest.approx(expected / len(structure), rel=1e-4, abs=1e-5)


def test_supercells_and_companions_change_nothing(rng):
    structure = random_structure(rng, 3)
    reward = pair_reward()
    alone = reward.score([structure]).values[0]
    others = [random_structure(rng, 2), structure, FLAT, structure * (2, 1, 1), structure * (1, 1, 3)]
    scores = reward.score(others)
    np.testing.assert_allclose(scores.values[[1, 3, 4]], alone, rtol=1e-4)
    assert scores.values[2] == reward.worst
    assert [bool(problem) for problem in scores.problems] == [False, False, True, False, False]


def test_sizes_and_cells_share_few_compilations(rng):
    traces = []

    def function(crystal, images):
        traces.append((crystal.mask.shape, images))  # runs only while tracing
        return jnp.sum(crystal.mask).astype(jnp.float32)

    reward = jitted_reward("count", function, -1.0, cutoff=4.0)
    structures = [random_structure(rng, atoms) for atoms in (1, 2, 5, 8, 9, 12, 16)]
    for _ in range(3):
        np.testing.assert_array_equal(reward.score(structures * 5).values, [1, 2, 5, 8, 9, 12, 16] * 5)
    reward.score(structures[:1])
    assert sorted(traces) == [((8,), (2, 2, 2)), ((16,), (2, 2, 2))]


def test_atoms_that_touch_are_rewarded_and_overlaps_are_not():
    def copper(distance: float) -> Structure:
        return Structure(Lattice(FCC.matrix * distance * 2**0.5), ["Cu"], [[0, 0, 0]])

    reward = pair_reward()
    far, touching, crowded, overlapping = reward.score([copper(4.0), copper(2.6), copper(1.8), copper(0.2)]).values
    assert 7.5 < touching < 8.7  # six neighbours each way, and some attraction beyond
    assert 0 < far < touching
    assert crowded < far
    assert overlapping == reward.worst == -10


def test_values_that_are_not_finite_are_problems():
    coincident = Structure(Lattice.cubic(5), ["Cu", "Cu"], [[0, 0, 0], [1.0, 0, 0]])
    unknown = Structure(Lattice.cubic(5), ["Cf"], [[0, 0, 0]])  # without a covalent radius
    scores = pair_reward().score([coincident, unknown])
    np.testing.assert_array_equal(scores.values, [-10, -10])
    assert scores.problems == ["its reward is not finite"] * 2


def test_disordered_crystals_are_problems():
    mixed = Structure(Lattice.cubic(3.6), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    vacant = Structure(Lattice.cubic(3.6), [{"Cu": 0.5}], [[0, 0, 0]])
    dummy = Structure(Lattice.cubic(3.6), [DummySpecies("X")], [[0, 0, 0]])
    scores = pair_reward().score([mixed, vacant, dummy])
    assert scores.problems == ["sites with partial occupancy"] * 2 + ["sites that are no element"]
    np.testing.assert_array_equal(scores.values, [-10] * 3)


def test_the_well_is_1_deep_and_ends_at_the_cutoff():
    atom = Padded(np.array([29]), np.zeros((1, 3)), np.eye(3), np.array([True]))
    pair_energy = lennard_jones(lambda crystal: jnp.full((1, 1), 2.0), 6.0)
    below = pair_energy(jnp.full((1, 1), 2.0), atom)[0, 0]
    assert below == pytest.approx(-1 + 2 * 3.0**-6 - 3.0**-12, rel=1e-6)
    assert pair_energy(jnp.full((1, 1), 6.0), atom)[0, 0] == 0


def test_cells_too_thin_for_the_cutoff_and_cutoffs_of_0_are_refused():
    thin = Structure(Lattice.orthorhombic(0.5, 5, 5), ["Cu"], [[0, 0, 0]])
    assert pair_reward().score([thin]).problems[0].startswith("its cell is so thin that more than 12")
    with pytest.raises(ValueError, match="cutoff must be positive; got 0"):
        pair_reward(cutoff=0.0)


def test_no_structures_have_no_values():
    assert pair_reward().score([]).values.shape == (0,)
