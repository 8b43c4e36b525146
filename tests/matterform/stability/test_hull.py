"""Energies above the hull, against pymatgen's phase diagrams."""

import subprocess
import sys

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition
from scipy.optimize import linprog

import matterform.stability.hull
from matterform.stability.hull import chemical_potentials, make_hull, open_hull
from matterform.stability.hull_entries import Entry, fractions_of, pack_entries
from matterform.stability.hull_files import index_hull, iterate_formation_rows

ELEMENTS = ["Li", "O", "Fe", "P", "Na", "S", "Mn", "Cl"]


def hull_of(entries, kind="total"):
    return make_hull(pack_entries(kind, (Entry(fractions_of(Composition(f)), e) for f, e in entries)))


def pymatgen_above_hull(entries, formula, energy_per_atom):
    """The same by pymatgen, from (formula, eV/atom) of the entries of its chemical system."""
    composition = Composition(formula)
    inside = [(Composition(f), e) for f, e in entries if set(Composition(f)) <= set(composition)]
    diagram = PhaseDiagram([PDEntry(c, e * c.num_atoms) for c, e in inside])
    entry = PDEntry(composition, energy_per_atom * composition.num_atoms)
    return diagram.get_e_above_hull(entry, allow_negative=True, check_stable=False)


def random_formula(rng, elements, most=4):
    return "".join(f"{element}{rng.integers(1, most + 1)}" for element in elements)


def random_entries(rng, elements, count):
    """Entries of all subsystems, total energies near -5 eV/atom; many above the hull, some twice."""
    energies = dict(zip(elements, rng.uniform(-9, -1, len(elements)), strict=True))
    entries = [(element, energies[element] + extra) for element in elements for extra in (0.0, 0.3)]
    for _ in range(count):
        subset = rng.choice(elements, rng.integers(min(2, len(elements)), len(elements) + 1), replace=False)
        formula = random_formula(rng, subset)
        elemental = sum(Composition(formula).get_atomic_fraction(e) * energies[e] for e in energies)
        entries.append((formula, elemental + rng.normal(-0.5, 0.5)))
    return [*entries, *entries[-5:]]


@pytest.mark.parametrize("num_elements", [1, 2, 3, 4, 5, 6, 7])
def test_made_up_systems_equal_pymatgen(rng, num_elements):
    elements = ELEMENTS[:num_elements]
    entries = random_entries(rng, elements, 30)
    queries = [(random_formula(rng, elements, 6), rng.normal(-5, 2)) for _ in range(20)]
    queries += [entry for entry in entries if len(Composition(entry[0])) == num_elements][:20]  # on or above the hull
    compositions = [Composition(formula) for formula, _ in queries]
    energies = np.array([energy * c.num_atoms for (_, energy), c in zip(queries, compositions, strict=True)])
    above = hull_of(entries).energy_above_hull(compositions, energies)
    expected = [pymatgen_above_hull(entries, *query) for query in queries]
    np.testing.assert_allclose(above.values, expected, rtol=0, atol=1e-9)
    assert not any(above.problems)


def test_real_crystals_equal_pymatgen(data_dir, rng):
    table = data_dir / "mp20_biternary.csv.gz"
    rows = list(iterate_formation_rows(table))
    by_element = {}
    for row in rows:
        by_element.setdefault(min(e.symbol for e in Composition(row[0])), []).append(row)
    chosen = [rows[index] for index in rng.choice(len(rows), 400, replace=False)]
    shifted = [
        (formula, energy + shift) for (formula, energy), shift in zip(chosen, rng.normal(0, 0.2, 400), strict=True)
    ]
    compositions = [Composition(formula) for formula, _ in shifted]
    energies = np.array([energy * c.num_atoms for (_, energy), c in zip(shifted, compositions, strict=True)])
    hull = open_hull(table)
    above = hull.energy_above_hull(compositions, energies)
    assert hull.kind == "formation"
    for index, (formula, energy) in enumerate(shifted):
        symbols = {element.symbol for element in Composition(formula)}
        near = [row for symbol in symbols for row in by_element.get(symbol, [])]
        expected = pymatgen_above_hull([*near, *((symbol, 0.0) for symbol in symbols)], formula, energy)
        assert above.values[index] == pytest.approx(expected, abs=1e-9)
    assert (above.values < -0.01).sum() > 20
    assert (above.values > 0.01).sum() > 20


def test_a_part_of_the_real_hull_lies_nowhere_below_it(data_dir):
    """The table's own crystals against the table: never above the Materials Project's e_above_hull, 0 where it is."""
    import pandas as pd

    table = pd.read_csv(data_dir / "mp20_biternary.csv.gz", keep_default_na=False)
    compositions = [Composition(formula) for formula in table["pretty_formula"]]
    num_atoms = np.array([composition.num_atoms for composition in compositions])
    above = open_hull(data_dir / "mp20_biternary.csv.gz").energy_above_hull(
        compositions, table["formation_energy_per_atom"].to_numpy() * num_atoms
    )
    published = table["e_above_hull"].to_numpy()
    assert above.values.min() > -1e-9
    assert (above.values - published).max() < 1e-6
    assert 0.005 < (published - above.values).mean() < 0.015


def test_degenerate_hulls_are_exact():
    """Entries exactly on a common line or plane, duplicates, and nothing but elements."""
    flat = [(element, 0.0) for element in "KNO"]
    line = [*flat, ("KN", -1.0), ("K3N", -0.5), ("KN3", -0.5), ("KNO", -2 / 3), ("K2N2O", -0.8), ("KN", -1.0)]
    hull = hull_of(line)
    queries = ["KN", "K3N", "K5N", "KNO", "K2N2O5", "KO", "KNO8"]
    above = hull.energy_above_hull([Composition(q) for q in queries], np.zeros(len(queries)))
    # KN at -1 is the only corner: the hull is minus twice the smaller of the two fractions.
    expected = [1, 0.5, 1 / 3, 2 / 3, 4 / 9, 0, 0.2]
    np.testing.assert_allclose(above.values, expected, atol=1e-12)
    above = hull_of(flat).energy_above_hull([Composition("KNO")], np.array([3.0]))
    np.testing.assert_allclose(above.values, [1.0])


def test_facets_that_qhull_cannot_make_are_found_by_a_linear_programme(monkeypatch, rng):
    entries = random_entries(rng, ELEMENTS[:3], 40)
    queries = [Composition(random_formula(rng, ELEMENTS[:3])) for _ in range(20)]
    usual = hull_of(entries).energy_above_hull(queries, np.zeros(20)).values
    monkeypatch.setattr(matterform.stability.hull, "chemical_potentials", lambda fractions, energies: None)
    np.testing.assert_allclose(hull_of(entries).energy_above_hull(queries, np.zeros(20)).values, usual, atol=1e-9)


@pytest.mark.parametrize("num_elements", [3, 4, 5])
def test_crowded_systems_have_facets_that_equal_linear_programmes(rng, num_elements):
    fractions, energies = np.eye(num_elements), np.zeros(num_elements)
    for _ in range(300):
        amounts = rng.integers(0, 4, num_elements) * (rng.random(num_elements) < 0.7)
        if amounts.any():
            row = amounts / amounts.sum()
            fractions = np.vstack([fractions, row])
            energies = np.append(energies, -2 * (1 - (row**2).sum()) + rng.normal(0, 0.1))
    potentials = chemical_potentials(fractions, energies)
    assert potentials is not None
    queries = rng.dirichlet(np.ones(num_elements), 20)
    expected = [linprog(energies, A_eq=fractions.T, b_eq=query).fun for query in queries]
    np.testing.assert_allclose((queries @ potentials.T).max(1), expected, rtol=0, atol=1e-9)


def test_a_facet_is_kept_as_chemical_potentials():
    # K and N at -1 and -2, KN at -2.5 (1 eV/atom below the mean of both).
    fractions, energies = np.array([[1, 0], [0, 1], [0.5, 0.5]]), np.array([-1, -2, -2.5])
    potentials = chemical_potentials(fractions, energies)
    assert potentials is not None
    # On the side of K: mu_K = -1 and (mu_K + mu_N) / 2 = -2.5; on the other: mu_N = -2.
    np.testing.assert_allclose(potentials[np.argsort(potentials[:, 0])], [[-3, -2], [-1, -4]])


def test_missing_elements_are_named():
    hull = hull_of([("Na", -1.3), ("NaCl", -3.4)])
    compositions = [Composition(formula) for formula in ("NaCl", "Na2Cl2", "K3Cs", "Na")]
    above = hull.energy_above_hull(compositions, np.array([-6.8, -13, 0, -1.0]))
    assert above.problems[:3] == ["no elemental entry in the hull: Cl"] * 2 + ["no elemental entry in the hull: K, Cs"]
    assert above.problems[3] == ""
    np.testing.assert_allclose(above.values, [np.nan, np.nan, np.nan, 0.3])


def test_formation_energies_put_the_elements_that_occur_at_zero():
    hull = hull_of([("NaCl", -2.0)], kind="formation")
    above = hull.energy_above_hull([Composition("Na3Cl"), Composition("NaF")], np.array([0.0, 0.0]))
    np.testing.assert_allclose(above.values, [1.0, np.nan])
    assert above.problems == ["", "no elemental entry in the hull: F"]


@pytest.mark.parametrize("kind", ["total", "formation"])
def test_systems_without_a_reference_of_all_elements_are_told_apart(kind):
    elements = [(symbol, 0.0) for symbol in ("Na", "K", "Cl", "Br", "Li", "F")]
    hull = hull_of([*elements, ("NaCl", -2.0), ("KBr", -1.0), ("NaKCl2", -1.5)], kind=kind)
    formulas = ["Na3Cl", "NaBr", "NaKCl", "NaKBr", "Na", "KBr", "NaKLiClBrF", "Au"]
    above = hull.energy_above_hull([Composition(formula) for formula in formulas], np.zeros(len(formulas)))
    assert above.known_system.tolist() == [True, False, True, False, kind == "total", True, False, False]
    broken = hull.energy_above_hull([Composition("NaCl"), Composition("NaBr")], np.full(2, np.nan))
    assert broken.known_system.tolist() == [True, False]
    assert [bool(problem) for problem in above.problems] == [False] * 7 + [True]


def test_what_cannot_be_compared_is_named():
    hull = hull_of([("Na", -1.3)])
    compositions = [Composition(), Composition("Na"), Composition({"X": 1}), Composition({"Na+": 1})]
    above = hull.energy_above_hull(compositions, np.array([0, np.nan, 0, -1.0]))
    assert above.problems[0] == "there are no atoms"
    assert above.problems[1] == "its energy is not finite"
    assert "'X'" in above.problems[2]
    np.testing.assert_allclose(above.values, [np.nan, np.nan, np.nan, 0.3])
    with pytest.raises(ValueError, match="each of 4 crystals, got 1"):
        hull.energy_above_hull(compositions, np.zeros(1))


def test_a_system_is_built_once():
    hull = hull_of([("Na", 0.0), ("Cl", 0.0), ("K", 0.0), ("NaCl", -1.0)])
    for formulas in (["NaCl", "Na2Cl", "KCl"], ["Cl3Na", "ClK2", "Na"]):
        hull.energy_above_hull([Composition(formula) for formula in formulas], np.zeros(3))
    assert hull.cache_info().misses == 3  # Na-Cl, K-Cl, Na


IN_ANOTHER_PROCESS = """
import sys, numpy as np
from pymatgen.core import Composition
from scipy.optimize import linprog
from matterform.stability.hull import open_hull

compositions = [Composition(formula) for formula in sys.argv[2:]]
print(*open_hull(sys.argv[1]).energy_above_hull(compositions, np.zeros(len(compositions))).values.tolist())
"""


def test_an_index_is_shared_between_processes(data_dir, tmp_path):
    folder, formulas = tmp_path / "hull", ["TiO2", "LiFeO2", "Na3P"]
    index_hull(data_dir / "mp20_biternary.csv.gz", folder)
    compositions = [Composition(formula) for formula in formulas]
    expected = open_hull(data_dir / "mp20_biternary.csv.gz").energy_above_hull(compositions, np.zeros(3))
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(folder), *formulas]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert [float(word) for word in output.split()] == expected.values.tolist()
