"""Rewards of potentials: hand-worked numbers, worst values, and EMT and CHGNet on copper."""

import numpy as np
import pytest
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from crystalformer.rl.reward.energy import ehull_reward, force_reward
from matterform.potentials.ase import ase_potential
from matterform.potentials.base import Potential, Predictions
from matterform.stability.hull import AboveHull, Hull
from matterform.stability.references import References

COPPER = Structure(Lattice.cubic(3.6), ["Cu"] * 4, [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
FLAT = Structure(Lattice([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), ["Cu"], [[0, 0, 0]])
OVERLAP = Structure(Lattice.cubic(3.6), ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0.01]])


def potential_of(forces, stress, problems=None) -> Potential:
    """A potential with these forces (a list) and stresses."""
    predictions = Predictions(np.zeros(len(forces)), forces, np.asarray(stress, float), problems or [""] * len(forces))
    return Potential("made up", lambda structures, wanted: predictions, corrected=True)


def hull_at(energy_per_atom: float) -> Hull:
    """A hull of total energies that is everywhere as high; it knows no gold."""

    def energy_above_hull(compositions, energies):
        problems = ["no entry of Au" if "Au" in composition else "" for composition in compositions]
        per_atom = energies / np.array([c.num_atoms for c in compositions])
        values = np.where([bool(p) for p in problems], np.nan, per_atom - energy_per_atom)
        return AboveHull(values, problems, np.array(["Cu" in composition for composition in compositions]))

    return Hull("total", energy_above_hull, lambda: None)


def test_the_hull_reward_is_minus_the_energy_above_the_hull_of_emt():
    potential = ase_potential(EMT(), corrected=True)
    energy = float(potential.predict([COPPER], "energy").energy[0]) / 4
    scores = ehull_reward(potential, hull_at(energy - 0.25)).score([COPPER, COPPER * (1, 1, 2)])
    np.testing.assert_allclose(scores.values, [-0.25, -0.25], atol=1e-9)
    np.testing.assert_allclose(scores.details["e_above_hull"], [0.25, 0.25], atol=1e-9)
    np.testing.assert_allclose(scores.details["energy_per_atom"], [energy, energy], atol=1e-9)
    assert scores.relaxed is None


def test_the_hull_reward_is_clipped_on_both_sides_and_its_worst_is_the_lower_one():
    potential = ase_potential(EMT(), corrected=True)
    gold = COPPER.copy()
    gold.replace_species({"Cu": "Au"})
    for offset, expected in ((-50, -3.0), (50, 3.0)):
        reward = ehull_reward(potential, hull_at(offset), clip=3.0)
        scores = reward.score([COPPER, FLAT, OVERLAP, gold])
        np.testing.assert_array_equal(scores.values, [expected, -3, -3, -3])
        assert reward.worst == -3
        assert "volume" in scores.problems[1]
        assert "close" in scores.problems[2]
        assert "Au" in scores.problems[3]
        assert np.isfinite(scores.details["e_above_hull"][0])
        assert np.isnan(scores.details["e_above_hull"][1:]).all()
        np.testing.assert_array_equal(scores.details["known_system"], [1, np.nan, np.nan, np.nan])


def test_the_hull_reward_relaxes_when_asked_to():
    potential = ase_potential(EMT(), corrected=True)
    squeezed = COPPER.copy()
    squeezed.scale_lattice(COPPER.volume * 0.8)
    reward = ehull_reward(potential, hull_at(0.0), relax_steps=5)
    scores, before = reward.score([squeezed, FLAT]), ehull_reward(potential, hull_at(0.0)).score([squeezed, FLAT])
    assert scores.values[0] > before.values[0] + 0.01
    assert scores.relaxed is not None
    assert scores.relaxed[0].volume > squeezed.volume * 1.01
    assert scores.relaxed[1] is None


def test_a_hull_of_formation_energies_needs_references():
    hull = hull_at(0.0)._replace(kind="formation")
    potential = ase_potential(EMT(), corrected=True)
    with pytest.raises(ValueError, match="references"):
        ehull_reward(potential, hull)
    energy = float(potential.predict([COPPER], "energy").energy[0]) / 4
    scores = ehull_reward(potential, hull, References({"Cu": energy - 0.5})).score([COPPER])
    np.testing.assert_allclose(scores.values, [-0.5], atol=1e-9)


def test_the_hull_reward_of_chgnet_knows_copper_from_stretched_copper():
    pytest.importorskip("chgnet")
    from matterform.potentials.chgnet import load_chgnet

    stretched = COPPER.copy()
    stretched.scale_lattice(COPPER.volume * 1.5)
    near, far = ehull_reward(load_chgnet(), hull_at(-4.1)).score([COPPER, stretched]).values
    assert abs(near) < 0.15  # CHGNet: -4.09 eV/atom
    assert far < near - 0.3


def test_the_force_reward_by_hand():
    forces = [np.array([[3.0, 0.0, -1.0], [0.0, 0.0, 500.0]]), np.zeros((1, 3))]
    stress = np.zeros((2, 3, 3))
    stress[0] = [[6, 0, 0], [0, 0, -2], [0, -2, 0]]
    # |F| clipped: 3, .01, 1, .01, .01, 100; |stress| in Voigt's order: 6, .01, .01, 2, .01, .01. Zeros count as 0.01.
    force, pressure = 104.03 / 6, 8.04 / 6
    reward = force_reward(potential_of(forces, stress), stress_weight=0.5)
    scores = reward.score([COPPER, COPPER])
    np.testing.assert_allclose(scores.values, [-np.log(force + 0.5 * pressure), -np.log(0.015)])
    np.testing.assert_allclose(scores.details["mean_force"], [force, 0.01])
    np.testing.assert_allclose(scores.details["mean_stress"], [pressure, 0.01])
    assert reward.worst == pytest.approx(-np.log(150))


def test_without_weight_the_stress_is_not_asked_for():
    asked = []

    def predict(structures, wanted):
        asked.append(wanted)
        return Predictions(np.zeros(1), [np.full((1, 3), 2.0)], np.full((1, 3, 3), np.nan), [""])

    reward = force_reward(Potential("made up", predict, corrected=True), stress_weight=0.0)
    np.testing.assert_allclose(reward.score([COPPER]).values, [-np.log(2)])
    assert asked == ["forces"]
    assert reward.worst == pytest.approx(-np.log(100))


def test_a_crystal_without_forces_gets_the_worst():
    reward = force_reward(potential_of([None, np.ones((1, 3))], np.full((2, 3, 3), 1.0), ["no forces", ""]))
    scores = reward.score([FLAT, COPPER])
    np.testing.assert_allclose(scores.values, [reward.worst, -np.log(2)])
    assert scores.problems == ["no forces", ""]


def test_the_force_reward_of_emt_is_best_at_the_minimum():
    reward = force_reward(ase_potential(EMT()))
    squeezed = COPPER.copy()
    squeezed.scale_lattice(COPPER.volume * 0.8)
    rattled = COPPER.copy()
    rattled.perturb(0.2)
    best, under_pressure, rough = reward.score([COPPER, squeezed, rattled]).values
    assert best > under_pressure
    assert best > rough


def test_no_structures_give_no_scores_under_the_same_names():
    potential = ase_potential(EMT(), corrected=True)
    for reward, names in (
        (ehull_reward(potential, hull_at(0.0)), {"e_above_hull", "energy_per_atom", "known_system"}),
        (force_reward(potential), {"mean_force", "mean_stress"}),
    ):
        scores = reward.score([])
        assert scores.values.shape == (0,)
        assert set(scores.details) == names
