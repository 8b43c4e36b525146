"""The element features: against the original's table, against pymatgen, and against their generator."""

import csv
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from pymatgen.core import Element

from atomformer.data.vocabulary import BOS, EOS, GRAPH, MASK, PAD, tokenize
from atomformer.network import features
from atomformer.network.features import FEATURES_CSV, element_features

COLUMNS = [
    "number",
    "mass",
    "neutrons",
    "protons",
    "electrons",
    "period",
    "group",
    "radius",
    "electronegativity",
    "ionization",
    "density",
    "melting",
    "boiling",
    "isotopes",
    "heat",
    "shells",
    "valence",
]


def column(name):
    return element_features()[1:119, COLUMNS.index(name)]


@pytest.fixture(scope="module")
def original(golden_dir):
    """The original's 17 columns, scaled as ours, by name; -1 where not known."""
    with np.load(golden_dir / "atomformer" / "metadata.npz") as file:
        return dict(zip(COLUMNS, file["atom_metadata"].T, strict=True))


@pytest.mark.parametrize("name", ["number", "protons", "electrons", "period", "group", "shells"])
def test_what_the_periodic_table_defines_is_exactly_the_originals(original, name):
    np.testing.assert_allclose(column(name), original[name], atol=1e-6)


def test_valence_electrons_are_the_originals_but_for_helium_which_it_lacks(original):
    expected = original["valence"].copy()
    expected[1] = (2 - 1) / (8 - 1)
    np.testing.assert_allclose(column("valence"), expected, atol=1e-6)


def test_masses_and_neutrons_are_the_originals_up_to_the_heaviest_isotopes_chosen(original):
    # Up to uranium: a unit at most, of ranges 293 and 176. Beyond, the longest-lived known isotope has changed.
    np.testing.assert_allclose(column("mass")[:92], original["mass"][:92], atol=1 / 293)
    np.testing.assert_allclose(column("neutrons")[:92], original["neutrons"][:92], atol=1 / 176)
    np.testing.assert_allclose(column("mass"), original["mass"], atol=0.04)
    np.testing.assert_allclose(column("neutrons"), original["neutrons"], atol=0.07)


@pytest.mark.parametrize(
    ("name", "elements", "correlation"),
    [
        ("radius", 118, 0.94),  # covalent here, of free atoms there
        ("electronegativity", 118, 0.997),
        ("ionization", 118, 0.9999),
        ("density", 92, 0.9998),  # predictions beyond
        ("melting", 118, 0.995),
        ("boiling", 118, 0.998),
        ("isotopes", 92, 0.83),  # an old count there; from Np on its footnote marks were read as digits (15 as 153)
        ("heat", 118, 0.99999),
    ],
)
def test_measured_columns_correlate_with_the_originals(original, name, elements, correlation):
    ours, theirs = column(name)[:elements], original[name][:elements]
    known = (ours >= 0) & (theirs >= 0)
    assert known.sum() >= 80
    assert np.corrcoef(ours[known], theirs[known])[0, 1] > correlation


def test_few_elements_lack_what_the_original_knows(original):
    symbols = [Element.from_Z(number).symbol for number in range(1, 119)]
    lacking = {name: np.flatnonzero((column(name) < 0) & (original[name] >= 0)) for name in COLUMNS}
    found = {name: " ".join(symbols[index] for index in indices) for name, indices in lacking.items() if len(indices)}
    assert found == {"boiling": "At Fr Pa Bk Cf"}


def test_every_known_value_lies_between_0_and_1_and_both_occur():
    table = element_features()[1:119]
    assert table.dtype == np.float32
    for values in table.T:
        known = values[values != -1]
        assert (known.min(), known.max()) == (0, 1)


def test_special_tokens_have_no_features():
    assert (element_features()[[MASK, PAD, BOS, EOS, GRAPH]] == -1).all()
    assert element_features().shape == (123, 17)


def test_rows_are_indexed_by_token():
    # Carbon: Z of 1-118, group of 1-18, electronegativity of 0.7 (Fr) to 3.98 (F).
    carbon = element_features()[tokenize("C")[0]]
    np.testing.assert_allclose(carbon[[0, 6, 8]], [5 / 117, 13 / 17, (2.55 - 0.7) / 3.28], rtol=1e-6)


def test_raw_values_are_in_the_units_of_their_headers():
    with FEATURES_CSV.open(newline="") as file:
        rows = list(csv.DictReader(file))
    iron, copper = ({name: float(value) for name, value in rows[index].items()} for index in (25, 28))
    assert copper["boiling_point_k"] == pytest.approx(2835, abs=5)
    assert iron["melting_point_k"] == pytest.approx(1811, abs=1)
    assert iron["density_g_per_cm3"] == pytest.approx(7.87, abs=0.01)
    assert iron["specific_heat_j_per_g_k"] == pytest.approx(0.449, abs=0.001)
    assert iron["neutrons"] == 30
    for row, number in zip(rows, range(1, 104), strict=False):
        assert float(row["first_ionization_energy_ev"]) == pytest.approx(
            Element.from_Z(number).ionization_energy, rel=0.01
        )


def test_the_table_is_read_once_and_cannot_be_changed():
    assert element_features() is element_features()
    with pytest.raises(ValueError, match="read-only"):
        element_features()[6, 0] = 0


def test_generator_script_reproduces_the_shipped_table(tmp_path):
    pytest.importorskip("mendeleev")
    copy = tmp_path / "make_element_features.py"
    copy.write_text(FEATURES_CSV.with_name(copy.name).read_text())
    root = str(pathlib.Path(features.__file__).parents[2])
    subprocess.run([sys.executable, copy], check=True, env={**os.environ, "PYTHONPATH": root})
    assert (tmp_path / "element_features.csv").read_text() == FEATURES_CSV.read_text()
