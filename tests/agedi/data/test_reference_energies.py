"""Energies of the elements: parsed and fitted."""

import logging

import ase
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from agedi.data.dataset import create_dataset
from agedi.data.reference_energies import fit_reference_energies, parse_reference_energies


def labelled(atoms: ase.Atoms, energy: float) -> ase.Atoms:
    """The atoms with an energy."""
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


@pytest.mark.parametrize("given", ["Cu:-3.72,O:-4.95", {"O": -4.95, "Cu": -3.72}, {8: -4.95, 29: -3.72}])
def test_reference_energies_are_read(given):
    assert parse_reference_energies(given) == ((8, -4.95), (29, -3.72))
    assert (parse_reference_energies("auto"), parse_reference_energies("none")) == (None, ())


def test_reference_energies_are_least_squares(rng, caplog):
    exact = {1: -13.6, 6: -1030.0, 8: -2040.0}
    data = []
    for name in ("CO", "H2O", "CH4", "CO2", "CH3OH"):
        atoms = molecule(name)
        data.append(labelled(atoms, energy=sum(exact[number] for number in atoms.numbers) + rng.normal() * 0.01))
    found = dict(fit_reference_energies(create_dataset(data)))
    assert found == pytest.approx(exact, abs=0.1)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        one = dict(fit_reference_energies(create_dataset([labelled(molecule("H2O"), energy=-9.0)])))
    assert "do not determine" in caplog.text
    assert one == pytest.approx({1: -3.6, 8: -1.8})  # the smallest with 2 E_H + E_O = -9
    with pytest.raises(ValueError, match="no structure has one"):
        fit_reference_energies(create_dataset([molecule("H2O")]))
