"""Relaxed and evaluated structures with a model's force field."""

import ase
import ase.build
import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms, FixedPlane
from ase.optimize import LBFGS

import agedi

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def model(tiny_diffusion):
    return tiny_diffusion("CellPositions", force_field=True)


def structures() -> list[ase.Atoms]:
    """Three sizes and kinds of cells: a crystal, a molecule, and a slab with a fixed layer."""
    crystal = ase.build.bulk("Cu", cubic=True)
    crystal.rattle(0.1, seed=1)
    molecule = ase.Atoms("CO", [[0.0, 0.0, 0.0], [0.0, 0.1, 1.3]], info={"name": "molecule"})
    slab = ase.build.fcc111("Au", (2, 1, 2), vacuum=5.0)
    slab.rattle(0.1, seed=2)
    slab.set_constraint(FixAtoms([0, 1]))
    return [crystal, molecule, slab]


class FromModel(Calculator):
    """ASE's way to the model, one structure at a time."""

    implemented_properties = ("energy", "forces")

    def __init__(self, model):
        super().__init__()
        self.model = model

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        assert atoms is not None
        bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        self.results = dict(agedi.predict(self.model, bare).calc.results)


def test_predictions_do_not_depend_on_company_and_come_in_order(model):
    together = agedi.predict(model, structures())
    for atoms, found in zip(structures(), together, strict=True):
        alone = agedi.predict(model, atoms)
        assert found.get_potential_energy() == pytest.approx(alone.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(found.get_forces(), alone.get_forces(), rtol=0, atol=1e-4)
        np.testing.assert_array_equal(found.positions, atoms.positions)
    assert [len(atoms) for atoms in together] == [4, 2, 4]
    assert together[1].info == {"name": "molecule"}
    forces = together[2].get_forces(apply_constraint=False)
    assert np.abs(forces[:2]).max() > 0  # of the model, not of the constraint


def test_results_are_nested_as_structures_are(model):
    crystal, molecule, slab = structures()
    nested = agedi.predict(model, [[crystal, molecule], [], (slab,), molecule])
    assert [len(nested[0]), len(nested[1]), len(nested[2])] == [2, 0, 1]
    assert nested[2][0].symbols.formula == slab.symbols.formula
    assert nested[3].get_potential_energy() == pytest.approx(nested[0][1].get_potential_energy(), abs=1e-5)


def test_relaxation_takes_the_steps_of_ase(model):
    """Positions to 1e-3 Å after the same number of steps, fixed layer included."""
    ways = agedi.relax(model, structures(), fmax=0.02, steps=12, trajectory=True)
    for atoms, way in zip(structures(), ways, strict=True):
        reference = atoms.copy()
        reference.calc = FromModel(model)
        optimizer = LBFGS(reference, logfile=None)
        converged = optimizer.run(fmax=0.02, steps=12)
        assert len(way) == optimizer.nsteps + 1
        assert way[-1].info["relaxation_steps"] == optimizer.nsteps
        assert way[-1].info["converged"] == converged
        np.testing.assert_allclose(way[-1].positions, reference.positions, rtol=0, atol=1e-3)
        energies = [frame.get_potential_energy() for frame in way]
        assert energies[-1] == pytest.approx(reference.get_potential_energy(), abs=1e-3)
        np.testing.assert_array_equal(way[0].positions, atoms.positions)


def test_fixed_atoms_and_finished_structures_do_not_move_at_all(model):
    before = structures()
    relaxed = agedi.relax(model, before, fmax=0.02, steps=12)
    np.testing.assert_array_equal(relaxed[2].positions[:2], before[2].positions[:2])
    assert np.abs(relaxed[2].positions[2:] - before[2].positions[2:]).max() > 1e-4
    held = structures()[0]
    held.set_constraint(FixAtoms(range(4)))
    again = agedi.relax(model, held, fmax=0.02, steps=12)
    assert again.info["relaxation_steps"] == 0
    assert again.info["converged"]
    np.testing.assert_array_equal(again.positions, held.positions)
    assert len(again.constraints) == 1


def test_constraints_of_other_kinds_are_refused(model):
    atoms = structures()[0]
    atoms.set_constraint(FixedPlane(0, (0, 0, 1)))
    with pytest.raises(ValueError, match=r"structure 1 \(Cu4\): has the constraint FixedPlane"):
        agedi.relax(model, [structures()[0], atoms])


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (ase.Atoms(), "structure 0 .empty.: has no atoms"),
        (ase.Atoms("Pt"), "structure 0 .Pt.: it has Pt, but the model was trained on H, C, O, Cu, Au"),
        (ase.Atoms("C", [[0, 0, np.nan]]), "structure 0 .C.: has a position that is no number"),
        (ase.Atoms("C", cell=[0, 3, 3], pbc=True), "structure 0 .C.: is periodic along a but has no cell vector"),
        ("structures.traj", "structures must be ASE's Atoms or lists of them; got str"),
    ],
)
def test_unusable_structures_are_named(model, atoms, words):
    with pytest.raises(ValueError, match=words):
        agedi.predict(model, atoms)


def test_wrong_arguments_are_named(model, tiny_diffusion):
    with pytest.raises(ValueError, match="needs a force field, and this model was trained without one"):
        agedi.relax(tiny_diffusion("CellPositions"), structures())
    with pytest.raises(ValueError, match="fmax must be positive"):
        agedi.relax(model, structures(), fmax=-1.0)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        agedi.predict(model, structures(), batch_size=0)
