"""Energies above the hull of a potential: corrections once, references, failures, shares."""

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from matterform.potentials.base import Potential, Predictions
from matterform.stability.above_hull import above_hull, fit_potential_references, stability_shares
from matterform.stability.hull import make_hull
from matterform.stability.hull_entries import Entry, fractions_of, pack_entries
from matterform.stability.references import References

# Total energies with corrections (eV/atom) of a made-up hull of Fe-O and Na-Cl.
TOTAL = {"Fe": -8.0, "O2": -5.0, "Fe2O3": -8.0, "Na": -1.3, "Cl2": -1.8, "NaCl": -3.4}


def hull_of(kind="total", entries=TOTAL):
    return make_hull(pack_entries(kind, (Entry(fractions_of(Composition(f)), e) for f, e in entries.items())))


def hematite():
    return Structure.from_spacegroup(
        167, Lattice.hexagonal(5.035, 13.75), ["Fe", "O"], [[0, 0, 0.355], [0.306, 0, 0.25]]
    )


def potential_of(energies, corrected):
    """Gives the energies (eV per crystal), whatever it is asked; None is a failure."""

    def predict(structures, wanted):
        values = np.array([np.nan if energy is None else energy for energy in energies], float)
        problems = ["exploded" if energy is None else "" for energy in energies]
        return Predictions(values, [None] * len(values), np.full((len(values), 3, 3), np.nan), problems)

    return Potential("given", predict, corrected)


def test_corrections_are_neither_left_out_nor_applied_twice():
    crystal = hematite()
    # 12 Fe and 18 O: iron in an oxide gets -2.256 eV, oxygen in an oxide -0.687 eV.
    correction = 12 * -2.256 + 18 * -0.687
    raw = 30 * -7.9 - correction
    for energy, corrected in ((raw, False), (raw + correction, True)):
        stability = above_hull([crystal], potential_of([energy], corrected), hull_of())
        assert stability.problems == [""]
        np.testing.assert_allclose(stability.energy_per_atom, [-7.9])
        np.testing.assert_allclose(stability.e_above_hull, [0.1])


def test_chgnets_hematite_lies_near_the_real_hull():
    """The Materials Project's energies with corrections: one set of them more or less would be 1.3 eV/atom.

    CHGNet's own error is 0.14 eV/atom, also for the relaxed crystal.
    """
    pytest.importorskip("chgnet")
    from matterform.potentials.chgnet import load_chgnet

    hull = hull_of("total", {"Fe": -8.4700, "O2": -4.9480, "Fe2O3": -8.0639})  # mp-13, mp-12957, mp-19770
    stability = above_hull([hematite().get_primitive_structure()], load_chgnet(), hull)
    assert stability.e_above_hull[0] == pytest.approx(0.15, abs=0.1)


def test_formation_energies_go_through_references(rock_salt):
    references = References({"Na": -1.0, "Cl": -2.0})
    hull = hull_of("formation", {"NaCl": -2.0, "Na3Cl": -0.5})
    stability = above_hull([rock_salt()], potential_of([8 * -3.3], True), hull, references)
    np.testing.assert_allclose(stability.formation_energy_per_atom, [-3.3 + 1.5])
    np.testing.assert_allclose(stability.e_above_hull, [0.2])
    np.testing.assert_allclose(stability.energy_per_atom, [-3.3])


def test_every_failure_has_its_own_reason(rock_salt):
    salts = [rock_salt(anion=anion) for anion in ("Cl", "F", "Cl")]
    references = References({"Na": -1.0, "Cl": -2.0})
    stability = above_hull(salts, potential_of([None, 1, -28], True), hull_of("formation", {"NaCl": -2.0}), references)
    assert stability.problems == ["exploded", "no reference energy: F", ""]
    assert np.isnan(stability.e_above_hull).tolist() == [True, True, False]
    stability = above_hull(salts, potential_of([None, 1, -28], True), hull_of())
    assert stability.problems == ["exploded", "no elemental entry in the hull: F", ""]


def test_the_hull_decides_whether_references_are_needed(rock_salt):
    potential = potential_of([0], True)
    with pytest.raises(ValueError, match="matterform references"):
        above_hull([rock_salt()], potential, hull_of("formation"))
    with pytest.raises(ValueError, match="need no references"):
        above_hull([rock_salt()], potential, hull_of(), References({"Na": 0.0}))


def test_references_of_another_potential_are_refused(rock_salt):
    potential, hull = potential_of([8 * -3.3], True), hull_of("formation", {"NaCl": -2.0})
    energies = {"Na": -1.0, "Cl": -2.0}
    with pytest.raises(ValueError, match="references are of chgnet, and the energies of given"):
        above_hull([rock_salt()], potential, hull, References(energies, "chgnet"))
    for name in ("", "given"):
        stability = above_hull([rock_salt()], potential, hull, References(energies, name))
        np.testing.assert_allclose(stability.e_above_hull, [-3.3 + 1.5 + 2.0])


def test_references_fitted_with_other_corrections_are_refused(rock_salt):
    potential, hull = potential_of([8 * -3.3], True), hull_of("formation", {"NaCl": -2.0})
    energies = {"Na": -1.0, "Cl": -2.0}
    words = "fitted with corrections added to the energies of given, now already in: give --mlff-corrected"
    with pytest.raises(ValueError, match=words):
        above_hull([rock_salt()], potential, hull, References(energies, "given", corrected=False))
    stability = above_hull([rock_salt()], potential, hull, References(energies, "given", corrected=True))
    np.testing.assert_allclose(stability.e_above_hull, [0.2])


def test_energies_of_unknown_correction_are_refused(rock_salt):
    potential = potential_of([8 * -3.3], None)
    with pytest.raises(ValueError, match="--mlff-corrected True or --mlff-corrected False"):
        above_hull([rock_salt()], potential, hull_of())
    with pytest.raises(ValueError, match="--mlff-corrected"):
        fit_potential_references(potential, [rock_salt()], np.zeros(1))


def test_references_are_fitted_to_corrected_energies(rock_salt):
    salts = [rock_salt(anion=anion) for anion in ("Cl", "F", "Cl", "Br")]
    corrections = 4 * np.array([-0.614, -0.462, -0.614, -0.534])
    formation = np.array([-2.0, -3.0, -2.0, -1.5])
    raw = 8 * (formation - 1.5) - corrections  # all elements at -1.5 eV/atom, once corrected
    progress = []
    fit = fit_potential_references(potential_of([*raw[:3], None], False), salts, formation, progress.append)
    assert fit.used.tolist() == [0, 1, 2]
    assert (fit.references.potential, fit.references.corrected) == ("given", False)
    assert fit.problems == ["", "", "", "exploded"]
    assert progress == [4]
    np.testing.assert_allclose(fit.residual.values, 0, atol=1e-12)
    np.testing.assert_allclose(fit.energy_per_atom, [-3.5, -4.5, -3.5, np.nan])
    stability = above_hull(
        salts[:2], potential_of(raw[:2], False), hull_of("formation", {"NaCl": -2.1, "NaF": -3.0}), fit.references
    )
    np.testing.assert_allclose(stability.e_above_hull, [0.1, 0], atol=1e-12)


def test_relaxed_crystals_are_not_higher_and_come_back(rock_salt):
    ase_potential = pytest.importorskip("matterform.potentials.ase")
    potential = ase_potential.load_ase(None, "ase.calculators.emt:EMT", "cpu")._replace(corrected=True)
    copper = Structure.from_spacegroup(225, Lattice.cubic(3.9), ["Cu"], [[0, 0, 0]])
    hull = hull_of("total", {"Cu": 0.0})
    before = above_hull([copper], potential, hull)
    after = above_hull([copper], potential, hull, relax_steps=20)
    assert before.relaxed is None
    assert after.relaxed is not None
    assert after.e_above_hull[0] < before.e_above_hull[0] - 0.01
    # EMT's copper has an edge of 3.589 Å and an energy of -0.0057 eV.
    assert after.relaxed.structures[0].lattice.a == pytest.approx(3.589, abs=0.03)
    assert after.e_above_hull[0] == pytest.approx(-0.0057, abs=2e-3)


def test_shares_are_over_all_crystals_and_a_failure_is_unstable():
    energies = np.array([0.0, -0.1, 0.1, 0.05, 0.2, np.nan])
    unique = np.array([True, False, True, True, True, True])
    novel = np.array([True, True, True, False, True, True])
    shares = stability_shares(energies, unique, novel)
    np.testing.assert_allclose(shares, [2 / 6, 4 / 6, 1 / 6, 2 / 6])
    assert np.isnan(stability_shares(energies).sun)
    with pytest.raises(ValueError, match="at least one crystal"):
        stability_shares(np.zeros(0))
