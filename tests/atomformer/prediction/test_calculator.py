"""The ASE calculator: results, compilations, relaxation, dynamics."""

import dataclasses
import subprocess
import sys

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.optimize.bfgslinesearch import BFGSLineSearch

from atomformer.checkpoint.published import Pretrained, save_pretrained
from atomformer.config import EnergyScale
from atomformer.data.inputs import input_row, prepare_structure
from atomformer.network.transformer import make_apply
from atomformer.prediction.calculator import Calculator
from atomformer.prediction.predict import predict_all

pytestmark = pytest.mark.usefixtures("quick")

CONSERVATIVE = {"heads": ("total_energy",), "conservative": True}
# The heads beside the energy are not read; their random numbers lead to one that changes much.
CRYSTAL = {
    "heads": ("formation_energy", "total_energy", "coords", "classification"),
    "num_labels": 2,
    "conservative": True,
    "periodic": "images",
    "cutoff": 4.5,
}


@pytest.fixture(scope="session")
def make_model(tiny_config, lively):
    """A function from changes of the config to a random model; the same network is made only once."""
    made = {}

    def make(**changes) -> Pretrained:
        config = dataclasses.replace(tiny_config, **changes)
        if config not in made:
            seed = 1 if config.periodic == "images" else 3
            params = jax.tree.map(jnp.copy, lively(config, seed))  # which is shared
            if config.periodic == "images":  # so that much depends on distances
                blocks = params["encoder"]["blocks"]
                blocks |= {"pair_proj": {**blocks["pair_proj"], "w": 2 * blocks["pair_proj"]["w"]}}
                blocks |= {"out_proj": 3 * blocks["out_proj"]}
            else:  # so that molecules have a minimum without atoms at one place
                params["encoder"]["pair"]["stds"] = 0.5 + params["encoder"]["pair"]["stds"]
            made[config] = Pretrained(params, config, make_apply(config))
        return made[config]

    return make


@pytest.fixture(scope="session")
def conservative(make_model):
    """Calculators with conservative forces for molecules and for crystals."""
    return {
        "molecule": Calculator(make_model(**CONSERVATIVE)),
        "crystal": Calculator(make_model(**CRYSTAL)),
    }


@pytest.fixture(params=["molecule", "crystal"])
def atoms(request, conservative):
    """Atoms away from any stationary point, with their calculator."""
    found = {"molecule": water, "crystal": crystal}[request.param]()
    found.calc = conservative[request.param]
    return found


def water():
    """A molecule away from any stationary point."""
    return ase.Atoms("OHH", [[0, 0, 0], [0.9, 0.1, 0.2], [-0.4, 0.8, -0.1]])


def crystal():
    """Three atoms without symmetry in a skewed cell smaller than the cutoff."""
    cell = np.array([[3.6, 0.2, -0.3], [1.1, 3.9, 0.1], [0.4, -1.0, 4.3]])
    scaled = np.array([[0.1, 0.15, 0.2], [0.55, 0.6, 0.1], [0.3, 0.45, 0.7]])
    return ase.Atoms("SiOC", scaled_positions=scaled, cell=cell, pbc=True)


def counting(model):
    """The model, and the list of its tracings."""
    traces = []

    def apply(params, key, structure):
        traces.append(structure.tokens.shape)
        return model.apply(params, key, structure)

    return model._replace(apply=apply), traces


def with_references(model):
    """The model with energies of isolated H and O."""
    energy = EnergyScale(references=((1, -13.5), (8, -2041.0)))
    return model._replace(config=dataclasses.replace(model.config, energy=energy))


def test_results_are_the_predictions(make_model, conservative):
    atoms = crystal()
    (want,) = predict_all(make_model(**CRYSTAL), [atoms])
    atoms.calc = conservative["crystal"]
    assert atoms.get_potential_energy() == pytest.approx(want.energy, abs=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), want.forces, atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), want.stress, atol=1e-6)


def test_direct_forces_and_references_are_reported_and_no_stress(make_model):
    model, atoms = with_references(make_model()), water()
    (want,) = predict_all(model, [atoms])
    atoms.calc = Calculator(model)
    assert atoms.get_potential_energy() == pytest.approx(want.energy, abs=1e-6)
    assert atoms.get_potential_energy() < -2000
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), want.forces, atol=1e-6)
    assert atoms.get_forces().dtype == np.float64
    assert atoms.calc.implemented_properties == ["energy", "free_energy", "forces"]
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_stress_needs_three_periodic_directions(conservative):
    atoms = crystal()
    atoms.calc = conservative["crystal"]
    assert np.abs(atoms.get_stress()).max() > 1e-4
    atoms.pbc = (True, True, False)
    assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    atoms.set_cell(None)
    atoms.pbc = False
    assert np.isfinite(atoms.get_forces()).all()


def test_a_folder_is_taken_and_a_model_without_energies_is_not(make_model, tmp_path):
    model = make_model()
    save_pretrained(tmp_path / "model", model)
    (want,) = predict_all(model, [water()])
    assert Calculator(tmp_path / "model").get_potential_energy(water()) == pytest.approx(want.energy, abs=1e-6)
    with pytest.raises(ValueError, match="a calculator needs energies or forces; the model has classification"):
        Calculator(make_model(heads=("classification",)))


def test_unusable_atoms_are_refused_in_one_line(make_model):
    atoms = water()
    atoms.calc = Calculator(with_references(make_model()))
    atoms.numbers[0] = 92
    with pytest.raises(ValueError, match=r"^the model has no reference energies of U: it was not trained on"):
        atoms.get_potential_energy()
    atoms.numbers[0] = 8
    atoms.positions[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"^coords: atom 1 has \[0.9, 0.1, nan\]"):
        atoms.get_potential_energy()
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(ValueError, match=r"^coords: atoms 0 and 1 are at the same place"):
        atoms.get_potential_energy()


def test_a_run_compiles_once_and_again_only_for_many_more_edges(make_model):
    model, traces = counting(make_model(periodic="images", cutoff=4.5))
    atoms, rng = crystal(), np.random.default_rng(0)
    atoms.calc = Calculator(model)
    edges = set()
    for _ in range(10):
        atoms.positions += rng.normal(0, 0.03, (3, 3))
        atoms.set_cell(atoms.cell.array * rng.uniform(0.997, 1.003))
        assert np.isfinite(atoms.get_potential_energy())
        structure = prepare_structure(input_row(atoms, model.config), model.config)
        edges.add(structure.edges.first.size)
    assert len(edges) > 2
    assert len(traces) == 1
    atoms.set_cell(atoms.cell.array * 0.8, scale_atoms=True)
    atoms.get_potential_energy()
    assert len(traces) == 2


def test_forces_are_differences_of_the_energy(atoms):
    forces, start, step = atoms.get_forces(), atoms.positions.copy(), 0.005
    assert np.abs(forces).max() > 1e-2
    rng = np.random.default_rng(0)
    for _ in range(3):  # along random directions
        direction = rng.normal(size=start.shape)
        energies = []
        for distance in (step, -step, 2 * step, -2 * step):
            atoms.positions = start + distance * direction
            energies.append(atoms.get_potential_energy())
        # Richardson's extrapolation, which leaves errors of the fourth order and of rounding (1e-6 eV / step).
        slope = (8 * (energies[0] - energies[1]) - (energies[2] - energies[3])) / (12 * step)
        assert -np.sum(forces * direction) == pytest.approx(slope, rel=2e-3, abs=2e-4)


def test_optimisers_relax_a_molecule(conservative):
    atoms = water()
    atoms.calc = conservative["molecule"]
    before = np.linalg.norm(atoms.get_forces(), axis=1).max()
    energies = []
    search = BFGSLineSearch(atoms, logfile=None)
    search.attach(lambda: energies.append(atoms.get_potential_energy()))
    search.run(fmax=0.02 * before, steps=60)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.02 * before
    assert energies[-1] < energies[0]
    assert max(np.diff(energies)) < 1e-5


def test_bfgs_converges_as_well(conservative):
    atoms = water()
    atoms.calc = conservative["molecule"]
    before = np.linalg.norm(atoms.get_forces(), axis=1).max()
    assert BFGS(atoms, logfile=None).run(fmax=0.02 * before, steps=200)


def test_dynamics_with_conservative_forces_conserve_energy(atoms):
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
    total, kinetic = [], []
    dynamics = VelocityVerlet(atoms, timestep=0.25 * units.fs)
    dynamics.attach(lambda: total.append(atoms.get_total_energy()))
    dynamics.attach(lambda: kinetic.append(atoms.get_kinetic_energy()))
    dynamics.run(200)
    assert np.ptp(kinetic) > 5e-3
    assert np.ptp(total) < 0.01 * np.ptp(kinetic)


def test_importing_the_prediction_does_not_import_ase():
    code = "import sys, atomformer.prediction.predict; sys.exit('ase' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
