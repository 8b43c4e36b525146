"""Surfaces with labels and properties of every kind."""

import ase
import pytest
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms


@pytest.fixture
def surfaces() -> list[ase.Atoms]:
    """Three slabs of different sizes with an adatom, labelled by EMT, and properties of every kind."""
    structures = []
    for i, (metal, size) in enumerate([("Cu", (1, 2, 2)), ("Pt", (2, 2, 1)), ("Au", (2, 3, 2))]):
        atoms = fcc111(metal, size, vacuum=5.0)
        add_adsorbate(atoms, "O", 1.3 + 0.1 * i, "fcc")
        atoms.pbc = [True, True, False]
        atoms.set_constraint(FixAtoms([0]))
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        atoms.info |= {"gap": 0.5 * i, "class": i, "charge": 2.0 + i}
        atoms.new_array("height", atoms.positions[:, 2] + 1)
        structures.append(atoms)
    return structures
