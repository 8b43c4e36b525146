"""Rewards of single models: hand-worked numbers, worst values, and what is said of failures."""

import numpy as np
import pytest
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from crystalformer.rl.reward.base import (
    describe_problems,
    dielectric_reward,
    ehull_reward,
    force_reward,
    make_scores,
    property_reward,
)
from matterform.potentials.ase import ase_potential
from matterform.potentials.base import Potential, Predictions, Properties, PropertyModel
from matterform.stability.hull import AboveHull, Hull
from matterform.stability.references import References

COPPER = Structure(Lattice.cubic(3.6), ["Cu"] * 4, [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
FLAT = Structure(Lattice([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), ["Cu"], [[0, 0, 0]])
OVERLAP = Structure(Lattice.cubic(3.6), ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0.01]])


def model_of(values, problems=None) -> PropertyModel:
    """A property model that gives these, whatever it is asked."""
    values = np.asarray(values, float)
    return PropertyModel("made up", lambda structures: Properties(values, problems or [""] * len(values)))


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


def test_failures_and_lower_values_count_as_the_worst():
    scores = make_scores(np.array([1.0, np.nan, 3.0, -9.0, np.inf]), ["", "", "broken", "", ""], worst=-5.0)
    np.testing.assert_array_equal(scores.values, [1, -5, -5, -5, -5])
    assert scores.problems == ["", "its reward is not finite", "broken", "", "its reward is not finite"]


def test_problems_are_grouped_by_what_stands_before_their_first_number():
    problems = [
        "",
        "cell volume too small: 0.1 Å³, below 0.5 Å³",
        "cell volume too small: 0.2 Å³",
        "it has no site",
        "",
    ]
    assert describe_problems(problems) == "3 of 5 failed: 2 x cell volume too small; 1 x it has no site"
    assert describe_problems(["unknown element Og (Z = 118)"]) == "1 of 1 failed: 1 x unknown element Og"
    assert describe_problems(["3 atoms"]) == "1 of 1 failed: 1 x 3 atoms"
    assert describe_problems(["", ""]) == "0 of 2 failed"
    lonely = "ValueError: isolated atom: site 3 has no neighbor within 6 Å"
    problems = ["a cell length is not positive: -3 angstrom", "no cell has these angles: 60.0, 60.0, 130.0", lonely]
    problems += ["after 12 steps: atoms too close: 0.312 Å", "after 4 steps: cell volume 2"]
    assert describe_problems(problems) == (
        "5 of 5 failed: 1 x a cell length is not positive; 1 x no cell has these angles; "
        "1 x ValueError: isolated atom; 1 x in relaxation: atoms too close; 1 x in relaxation: cell volume"
    )


def test_lists_of_elements_are_one_kind_that_names_the_most_frequent():
    missing = [["Cd", "Pt"], ["Pt"], ["Pt", "Hg"], ["Cd", "Tl", "Bi", "Au", "Ag"], ["Hg", "Au"]]
    problems = [f"no elemental entry in the hull: {', '.join(symbols)}" for symbols in missing]
    problems += ["ValueError: element unknown to the model: Og (Z = 118)"] * 2
    assert describe_problems(problems) == (
        "7 of 7 failed: 5 x no elemental entry in the hull: Pt (3), Cd (2), Hg (2), Au (2), Tl and 2 other elements; "
        "2 x ValueError: element unknown to the model: Og (2)"
    )


def test_the_line_about_problems_is_bounded():
    problems = [f"a reason {'x' * n}" for n in range(1, 9)] + ["y" * 1000] * 2
    line = describe_problems(problems)
    assert line.startswith(f"10 of 10 failed: 2 x {'y' * 80}; 1 x a reason x; ")
    assert line.endswith("; 3 x something else")


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


@pytest.mark.parametrize(
    ("form", "expected", "worst"), [("absolute", [-0.5, -1.5, -4, -4], -4), ("squared", [-0.25, -2.25, -16, -16], -16)]
)
def test_the_property_reward_by_hand(form, expected, worst):
    model = model_of([1.0, 3.0, 9.5, np.nan], ["", "", "", "no value"])
    reward = property_reward(model, target=1.5, form=form, largest_error=4.0)
    scores = reward.score([COPPER] * 4)
    np.testing.assert_allclose(scores.values, expected)
    assert reward.worst == worst
    np.testing.assert_array_equal(scores.details["property"], [1.0, 3.0, 9.5, np.nan])
    assert scores.problems == ["", "", "", "no value"]


def test_a_target_needs_a_model_of_one_number():
    reward = property_reward(model_of(np.zeros((2, 6))), target=1.0)
    with pytest.raises(ValueError, match="made up predicts 6 numbers"):
        reward.score([COPPER, COPPER])
    np.testing.assert_allclose(property_reward(model_of([[2.0]]), target=1.0).score([COPPER]).values, [-1])


@pytest.mark.parametrize(
    "tensor",
    [
        [2.0, 4.0, 9.0, 0.3, 0.2, 0.1],  # xx, yy, zz, yz, xz, xy
        [2.0, 0.1, 0.2, 0.1, 4.0, 0.3, 0.2, 0.3, 9.0],
        [5.0],
    ],
)
def test_the_dielectric_reward_is_the_mean_eigenvalue_times_the_gap(tensor):
    if len(tensor) == 9:
        assert np.linalg.eigvalsh(np.reshape(tensor, (3, 3))).mean() == pytest.approx(5)
    tensors = np.tile(tensor, (3, 1))
    reward = dielectric_reward(model_of(tensors), model_of([2.0, -0.5, np.nan], ["", "", "no gap"]))
    scores = reward.score([COPPER] * 3)
    np.testing.assert_allclose(scores.values, [10, 0, 0])
    assert scores.problems == ["", "", "no gap"]
    np.testing.assert_allclose(scores.details["dielectric"], [5, 5, 5])
    np.testing.assert_array_equal(scores.details["band_gap"], [2.0, -0.5, np.nan])


def test_a_negative_dielectric_constant_counts_as_0():
    scores = dielectric_reward(model_of([-3.0]), model_of([2.0])).score([COPPER])
    np.testing.assert_array_equal(scores.values, [0])


def test_a_tensor_of_a_strange_shape_is_an_error():
    with pytest.raises(ValueError, match="made up predicts 4 numbers for a crystal; expected 1, 6 or 9"):
        dielectric_reward(model_of(np.zeros((1, 4))), model_of([1.0])).score([COPPER])


def test_no_structures_give_no_scores_under_the_same_names():
    potential = ase_potential(EMT(), corrected=True)
    for reward, names in (
        (ehull_reward(potential, hull_at(0.0)), {"e_above_hull", "energy_per_atom", "known_system"}),
        (force_reward(potential), {"mean_force", "mean_stress"}),
        (property_reward(model_of([]), 0.0), {"property"}),
        (dielectric_reward(model_of(np.zeros((0, 6))), model_of([])), {"dielectric", "band_gap"}),
    ):
        scores = reward.score([])
        assert scores.values.shape == (0,)
        assert set(scores.details) == names
