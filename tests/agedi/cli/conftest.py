"""A trained model on disk, structures, and a way to run commands."""

from collections.abc import Callable

import ase
import ase.build
import ase.io
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

import agedi
from agedi.cli import main

SIZES = {"feature_size": 8, "n_blocks": 1, "n_rbf": 6, "cutoff": 3.0}


@pytest.fixture(scope="session")
def labelled() -> Callable[[int], ase.Atoms]:
    """A function that makes a rattled copper crystal, another for each seed, with energies of EMT."""

    def make(seed: int) -> ase.Atoms:
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        return atoms

    return make


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, labelled, quick):
    """A model conditioned on the energy, with a force field, after one epoch."""
    result = agedi.train_from_atoms(
        [labelled(seed) for seed in range(8)],
        noisers=["CellPositions"],
        conditioning=["energy"],
        force_field=True,
        epochs=1,
        batch_size=4,
        log_dir=tmp_path_factory.mktemp("logs"),
        tensorboard=False,
        **SIZES,
    )
    return result.run_dir


@pytest.fixture
def command(tmp_path, capsys):
    """Runs `agedi` with output into the test's folder; returns status, standard output and standard error."""

    def run(*arguments, output=True):
        capsys.readouterr()
        place = ["-o", str(tmp_path)] if output else []
        status = main([*map(str, arguments), *place])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def structure(tmp_path, labelled):
    """A file with one crystal whose first two atoms are fixed."""
    atoms = labelled(9)
    atoms.set_constraint(FixAtoms([0, 1]))
    ase.io.write(tmp_path / "crystal.traj", atoms)
    return tmp_path / "crystal.traj"
