"""The element table, each column against a source that did not make it."""

import subprocess
import sys

import ase.data
import gemmi
import numpy as np
import pytest
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core import Element

from matterform import elements
from matterform.elements import atomic_number, element_table

STABLE = [z for z in range(1, 84) if z not in (43, 61)]


def test_symbols_names_and_order_agree_with_three_libraries():
    table = element_table()
    assert table.symbol.tolist() == ase.data.chemical_symbols[:119]
    for number in range(1, 119):
        assert gemmi.Element(number).name == Element.from_Z(number).symbol == table.symbol[number]
        assert number == Element.from_name(table.name[number]).Z


@pytest.mark.parametrize(
    "masses",
    [lambda z: gemmi.Element(z).weight, lambda z: float(Element.from_Z(z).atomic_mass)],
    ids=["gemmi", "pymatgen"],
)
def test_masses_agree_with_other_tables(masses):
    # Standard weights are intervals: compilations differ by up to 3e-4 (Li, Zn); neighbours differ by 1 % and more.
    np.testing.assert_allclose(element_table().mass_u[STABLE], [masses(z) for z in STABLE], rtol=5e-4)
    np.testing.assert_allclose(element_table().mass_u[1:], [masses(z) for z in range(1, 119)], rtol=1e-2)


def test_covalent_radii_agree_with_pymatgens_copy_of_cordero():
    table = element_table()
    # Cordero lists several radii for these; ours are sp3 carbon and low spin, pymatgen chose others.
    several = {"C": 0.76, "Mn": 1.39, "Fe": 1.32, "Co": 1.26}
    for number in range(1, 97):
        expected = (CovalentRadius.radius | several)[table.symbol[number]]
        assert table.covalent_radius_ang[number] == pytest.approx(expected, abs=1e-6), table.symbol[number]
    assert np.isnan(table.covalent_radius_ang[97:]).all()


def test_electronegativities_are_paulings():
    table = element_table()
    for symbol, value in {"H": 2.20, "F": 3.98, "O": 3.44, "Na": 0.93, "Cs": 0.79, "Au": 2.54, "U": 1.38}.items():
        assert table.electronegativity[atomic_number(symbol)] == pytest.approx(value, abs=1e-6)
    unknown = [2, 10, 18, *range(104, 119)]
    assert np.flatnonzero(np.isnan(table.electronegativity)).tolist() == unknown


def test_periods_and_groups_follow_from_the_lengths_of_the_rows():
    table = element_table()
    lengths = [2, 8, 8, 18, 18, 32, 32]
    assert table.period[1:].tolist() == np.repeat(np.arange(1, 8), lengths).tolist()
    ends = np.cumsum(lengths)
    assert table.group[ends].tolist() == [18] * 7
    assert table.group[ends[:-1] + 1].tolist() == [1] * 6
    for symbol, group in {"C": 14, "Fe": 8, "La": 3, "Gd": 3, "Lu": 3, "Hf": 4, "U": 3, "Cl": 17}.items():
        assert table.group[atomic_number(symbol)] == group


def test_flags_mark_noble_gases_and_radioactive_elements():
    table = element_table()
    assert table.symbol[table.noble_gas].tolist() == ["He", "Ne", "Ar", "Kr", "Xe", "Rn", "Og"]
    assert np.flatnonzero(table.radioactive).tolist() == [43, 61, *range(84, 119)]


def test_padding_is_zero_in_every_column():
    assert [column[0] for column in element_table()[2:]] == [0] * 7


def test_table_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        element_table().mass_u[1] = 2.0


def test_every_symbol_gives_its_number_and_isotopes_are_hydrogen():
    assert [atomic_number(symbol) for symbol in element_table().symbol[1:]] == list(range(1, 119))
    assert atomic_number("D") == atomic_number("T") == 1


@pytest.mark.parametrize(
    ("symbol", "hint"),
    [("fe", "did you mean 'Fe'"), ("Iron", "did you mean 'Fe'"), ("Fe3+", "such as 'Fe'"), ("X", "such as"), ("", "")],
)
def test_unknown_symbol_says_what_to_use(symbol, hint):
    with pytest.raises(ValueError, match="unknown chemical symbol") as caught:
        atomic_number(symbol)
    assert hint in str(caught.value)


def test_generator_script_reproduces_the_shipped_table(tmp_path):
    source = elements.ELEMENTS_CSV.with_name("make_elements.py")
    copy = tmp_path / source.name
    copy.write_text(source.read_text())
    subprocess.run([sys.executable, copy], check=True)
    assert (tmp_path / "elements.csv").read_text() == elements.ELEMENTS_CSV.read_text()
