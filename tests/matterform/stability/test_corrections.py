"""MP2020 corrections, against pymatgen's own processing of computed entries with MPRelaxSet's settings."""

import warnings

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry
from pymatgen.io.vasp.inputs import Poscar
from pymatgen.io.vasp.sets import MPRelaxSet

from matterform.io.formats import read_structures
from matterform.stability.corrections import corrected_energies, mp2020_corrections


def pymatgen_correction(structure):
    """What the Materials Project's own chain of tools adds (eV), U taken from the INCAR of the input set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        incar = MPRelaxSet(structure).incar
        u_values = zip(Poscar(structure).site_symbols, incar.get("LDAUU", []), strict=False)
        hubbards = {symbol: u for symbol, u in u_values if u}
        parameters = {"run_type": "GGA+U" if hubbards else "GGA", "hubbards": hubbards}
        entry = ComputedStructureEntry(structure, 0.0, parameters=parameters)
        scheme = MaterialsProject2020Compatibility(check_potcar=False)
        return scheme.process_entry(entry, on_error="raise").correction


@pytest.mark.parametrize(("table", "count"), [("mp20_biternary.csv.gz", 300), ("mpts52_val.csv.gz", 250)])
def test_real_crystals_get_pymatgens_corrections(data_dir, table, count):
    structures, _ = read_structures(data_dir / table, limit=count)
    corrections = mp2020_corrections(structures)
    expected = np.array([pymatgen_correction(structure) for structure in structures])
    np.testing.assert_allclose(corrections.values, expected, rtol=0, atol=1e-9)
    assert not any(corrections.problems)
    # With U or oxygen bound to itself or sulfur and so on: the table has many kinds.
    assert len(set(np.round(expected / [len(structure) for structure in structures], 6))) > count / 5


def pair(cations, anions, distance, edge=8.0):
    """A dilute crystal in which the first two anions are `distance` (Å) apart."""
    sites = [[0, 0, 0], [0, 0, distance / edge], [0.5, 0.5, 0.5], [0.5, 0.5, 0.2], [0.5, 0, 0.5], [0, 0.5, 0.4]]
    species = [*anions, *cations]
    return Structure(Lattice.cubic(edge), species, sites[: len(species)])


# Per atom (eV): O in oxides -0.687, peroxides -0.465, superoxides -0.161; S -0.503, F -0.462, Cl -0.614, N -0.361;
# with oxygen or fluorine, Fe -2.256 and Mn -1.668.
HAND_WORKED = {
    "oxide": (pair(["Na"] * 2, ["O"] * 2, 2.4), 2 * -0.687),
    "peroxide": (pair(["Na"] * 2, ["O"] * 2, 1.5), 2 * -0.465),
    "superoxide": (pair(["Na"], ["O"] * 2, 1.33), 2 * -0.161),
    "iron oxide": (pair(["Fe"] * 2, ["O"] * 3, 2.5), 2 * -2.256 + 3 * -0.687),
    "iron fluoride": (pair(["Fe"], ["F"] * 2, 2.5), -2.256 + 2 * -0.462),
    "iron chloride": (pair(["Fe"], ["Cl"] * 2, 2.5), 2 * -0.614),
    "manganese sulfide": (pair(["Mn"] * 2, ["S"] * 2, 3.0, edge=5.0), 2 * -0.503),
    "alloy": (pair(["Fe"], ["Ni"], 2.5), 0.0),
    "element": (pair([], ["O"] * 2, 1.2), 0.0),
    "charges": (pair(["Fe3+"] * 2, ["O2-"] * 3, 2.5), 2 * -2.256 + 3 * -0.687),
}


@pytest.mark.parametrize("name", HAND_WORKED)
def test_hand_worked_cases(name):
    structure, expected = HAND_WORKED[name]
    np.testing.assert_allclose(mp2020_corrections([structure]).values, [expected], atol=1e-12)
    np.testing.assert_allclose(mp2020_corrections([structure.make_supercell(2, in_place=False)]).values, [8 * expected])


def test_absurd_crystals_are_named_and_harm_no_other(absurd, rock_salt):
    disordered = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    bad = [absurd[name] for name in ("nan cell", "nan coordinates", "no atoms")]
    corrections = mp2020_corrections([*bad, disordered, rock_salt()])
    assert all(corrections.problems[:4])
    assert "partly occupied" in corrections.problems[3]
    assert np.isnan(corrections.values).tolist() == [True] * 4 + [False]
    assert corrections.values[4] == pytest.approx(4 * -0.614)


def test_energies_are_corrected_once(rock_salt, absurd):
    structures = [rock_salt(), absurd["no atoms"], rock_salt()]
    energies = np.array([-20.0, np.nan, -10.0])
    uncorrected = corrected_energies(False, energies, structures)
    np.testing.assert_allclose(uncorrected.values, [-20 - 4 * 0.614, np.nan, -10 - 4 * 0.614])
    assert uncorrected.problems == ["", "", ""]
    np.testing.assert_allclose(corrected_energies(True, energies, structures).values, energies)
    with pytest.raises(ValueError, match="each of 3 crystals, got 2"):
        corrected_energies(True, energies[:2], structures)
