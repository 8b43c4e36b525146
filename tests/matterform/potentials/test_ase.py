import sys

import numpy as np
import pytest
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from matterform.potentials.ase import ase_potential, load_ase


class Spring(Calculator):
    """Energy only, and none for cells above 100 Å³."""

    implemented_properties = ("energy",)

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        if atoms.get_volume() > 100:
            raise ArithmeticError("too large\nby far")
        self.results = {"energy": atoms.get_volume()}


class Faulty(Spring):
    """Has a fault of its own for copper alone."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms)
        if "Au" not in atoms.symbols:
            raise KeyError("no\nparameters")


@pytest.fixture
def metals(crystals):
    """Rattled copper, and copper-gold with another cell."""
    copper = crystals[-1]
    alloy = Structure(copper.lattice, ["Cu", "Au", "Au", "Cu"], copper.frac_coords).apply_strain(0.1, inplace=False)
    return [alloy, copper]


def test_obeys_the_laws(metals, impossible, laws):
    laws(
        ase_potential(EMT()),
        metals,
        impossible,
        {"Cs": Structure(Lattice.cubic(4), ["Cs"], [[0, 0, 0]])},
        step=1e-3,
        tolerance=1e-4,
    )


def test_named_calculator_equals_the_instance(metals):
    named, instance = load_ase(variant="ase.calculators.emt:EMT"), ase_potential(EMT())
    np.testing.assert_array_equal(named.predict(metals, "energy").energy, instance.predict(metals, "energy").energy)
    assert named.corrected is None
    assert ase_potential(EMT(), corrected=True).corrected


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (None, "module:Class"),
        ("ase.calculators.emt", "module:Class"),
        ("ase.calculators.emt:Absent", "Absent"),
        ("ase.calculators.emt:", "module:Class"),
        ("no_such_module:EMT", "no_such_module"),
        ("ase.calculators.qmmm:EIQMMM", "without arguments raised TypeError: .* argument"),
    ],
)
def test_what_cannot_be_made_is_said(variant, words):
    with pytest.raises(ValueError, match=words):
        load_ase(variant=variant)


def test_a_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="takes no path"):
        load_ase(tmp_path, "ase.calculators.emt:EMT")


def test_a_calculator_without_forces_says_so(metals):
    spring = ase_potential(Spring())
    energies = spring.predict(metals, "energy")
    assert energies.energy[1] == pytest.approx(metals[1].volume)
    with pytest.raises(ValueError, match="Spring has no forces, only energy"):
        spring.predict(metals, "forces")


def test_a_failing_structure_is_a_problem_of_its_own(metals):
    large = metals[0].apply_strain(1.0, inplace=False)
    result = ase_potential(Spring()).predict([large, metals[1]], "energy")
    assert result.problems == ["ArithmeticError: too large by far", ""]
    assert np.isnan(result.energy[0])
    assert np.isfinite(result.energy[1])


def test_a_fault_of_the_calculator_is_one_line_with_its_name(metals):
    alloy, copper = metals
    large = alloy.apply_strain(1.0, inplace=False)
    potential = ase_potential(Faulty())
    assert potential.predict([large, alloy], "energy").problems == ["ArithmeticError: too large by far", ""]
    with pytest.raises(
        ValueError, match=r"^the ASE calculator Faulty raised KeyError: \S+no\S+parameters\S+$"
    ) as caught:
        potential.predict([alloy, copper], "energy")
    assert isinstance(caught.value.__cause__, KeyError)


def test_calculators_of_the_current_folder_are_found(metals, tmp_path, monkeypatch):
    (tmp_path / "calculators_here.py").write_text("from ase.calculators.emt import EMT as Mine")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    potential = load_ase(variant="calculators_here:Mine")
    assert potential.name == "ase calculators_here:Mine"
    assert potential.predict(metals, "energy").problems == ["", ""]
