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
        ("no_such_module:EMT", "no_such_module"),
        ("ase.calculators.qmmm:EIQMMM", "argument"),
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
