"""References of the elements: fitted, applied, saved."""

import pathlib

import numpy as np
import pytest
from pymatgen.core import Composition

from matterform.stability.references import References, fit_references, load_references, save_references

FORMULAS = ["Na", "Cl2", "NaCl", "Na3Cl", "MgCl2", "Mg2"]
ENERGIES = {"Na": -1.3, "Cl": -1.8, "Mg": -1.5}


def crystals(formulas):
    """Compositions, and per atom the energies of their elements."""
    compositions = [Composition(formula) for formula in formulas]
    elements = [sum(c.get_atomic_fraction(s) * e for s, e in ENERGIES.items()) for c in compositions]
    return compositions, np.array(elements)


def test_the_fit_recovers_the_elements(rng):
    compositions, elements = crystals(FORMULAS)
    formation = rng.normal(size=len(FORMULAS))
    references, residual = fit_references(compositions, elements + formation, formation)
    assert references.energies == pytest.approx(ENERGIES)
    assert residual.rms == pytest.approx(0, abs=1e-12)


def test_the_residual_is_what_the_fit_leaves_largest_first():
    compositions, elements = crystals(["Na", "Na", "Na", "Cl"])
    # The mean of 0, 0 and 0.3 is 0.1: residuals -0.1, -0.1, 0.2 and, for the only chlorine, 0.
    _, residual = fit_references(compositions, elements + np.array([0.0, 0.0, 0.3, 0.5]), np.zeros(4))
    np.testing.assert_allclose(residual.values, [-0.1, -0.1, 0.2, 0], atol=1e-12)
    assert residual.rms == pytest.approx(np.sqrt(0.06 / 4))
    assert residual.mean_absolute == pytest.approx(0.1)
    index, formula, value = residual.largest[0]
    assert (index, formula, round(value, 9)) == (2, "Na", 0.2)


def test_energies_of_formation_are_of_the_whole_crystal():
    compositions, elements = crystals(["Na4Cl4"])
    formation = References(ENERGIES).formation_energies(compositions, 8 * (elements - 0.75))
    np.testing.assert_allclose(formation.values, [-6.0])
    assert formation.problems == [""]


def test_an_element_without_reference_is_named():
    compositions, _ = crystals(["NaCl", "KFeCl3", "NaCl"])
    formation = References(ENERGIES).formation_energies(compositions, np.zeros(3))
    assert formation.problems == ["", "no reference energy: K, Fe", ""]
    assert np.isnan(formation.values).tolist() == [False, True, False]


def test_elements_that_always_occur_together_have_a_known_sum():
    compositions, elements = crystals(["NaCl", "Na2Cl2"])
    references, residual = fit_references(compositions, elements, np.zeros(2))
    assert sum(references.energies.values()) == pytest.approx(-3.1)
    assert residual.rms == pytest.approx(0, abs=1e-12)


def test_an_energy_that_is_not_finite_is_refused():
    compositions, elements = crystals(["NaCl", "Na"])
    with pytest.raises(ValueError, match="1 energies are not finite"):
        fit_references(compositions, elements, np.array([np.nan, 0]))
    with pytest.raises(ValueError, match="got 0 and 0"):
        fit_references([], np.zeros(0), np.zeros(0))


def test_saved_references_are_read_back(tmp_path):
    path = tmp_path / "references.json"
    for references in (References(ENERGIES), References(ENERGIES, "chgnet 0.3.0", corrected=True)):
        save_references(references, path, {"table": "mp_20.csv"})
        assert load_references(path) == references
        assert '"table": "mp_20.csv"' in path.read_text()


def test_references_of_the_repository_are_of_chgnet():
    path = pathlib.Path(__file__).parents[3] / "experiments" / "rl" / "results" / "hull_mp20" / "references.json"
    references = load_references(path)
    assert (references.potential, references.corrected) == ("chgnet 0.3.0", True)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"energies": {}}', '{"energies_ev_per_atom": {"Nq": 1}}', '{"energies_ev_per_atom": [1]}']
)
def test_another_file_is_no_reference(tmp_path, text):
    path = tmp_path / "references.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no reference energies"):
        load_references(path)
