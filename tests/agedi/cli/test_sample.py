"""The commands that use a trained model, from a run on disk to structures on disk, and what they refuse."""

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

import agedi
from agedi.cli import USAGE, main
from agedi.cli.sample import parse_freeze, parse_properties

pytestmark = pytest.mark.usefixtures("quick")

SIZES = {"feature_size": 8, "n_blocks": 1, "n_rbf": 6, "cutoff": 3.0}


def labelled(seed: int) -> ase.Atoms:
    """A rattled copper crystal with energies of EMT."""
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, quick):
    """A model conditioned on the energy, with a force field, after one epoch."""
    result = agedi.train_from_atoms(
        [labelled(seed) for seed in range(8)],
        noisers=["CellPositions"],
        conditioning=["energy"],
        force_field=True,
        epochs=1,
        batch_size=4,
        log_dir=tmp_path_factory.mktemp("logs"),
        logger="csv",
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
def structure(tmp_path):
    """A file with one crystal whose first two atoms are fixed."""
    atoms = labelled(9)
    atoms.set_constraint(FixAtoms([0, 1]))
    ase.io.write(tmp_path / "crystal.traj", atoms)
    return tmp_path / "crystal.traj"


def test_samples_are_those_of_the_library(run_dir, command, tmp_path):
    """With the cell of the training data and short and long flags of either spelling."""
    status, out, _ = command(
        "sample", run_dir, "-n", 4, "-f", "Cu4", "--steps", 4, "-s", 7, "--batch_size", 2, "--property", "energy=-0.5"
    )
    assert status == 0
    assert out == f"4 structures in {tmp_path / 'sampled.traj'}\n"
    written = ase.io.read(tmp_path / "sampled.traj", ":")
    expected = agedi.sample(
        agedi.load_diffusion(run_dir), n_samples=4, formula="Cu4", steps=4, seed=7, batch_size=2,
        property={"energy": -0.5}, sampler_kwargs={"eps": 0.005},
    )  # fmt: skip
    for found, atoms in zip(written, expected, strict=True):
        np.testing.assert_array_equal(found.positions, atoms.positions)
        np.testing.assert_allclose(found.cell, labelled(0).cell, rtol=1e-7)
        assert found.pbc.all()
    command("sample", run_dir, "--n-samples", 4, "--formula", "Cu4", "--steps", 4, "--seed", 7, "-b", 2)
    unconditional = ase.io.read(tmp_path / "sampled.traj", ":")
    assert np.abs(unconditional[0].positions - written[0].positions).max() > 0


def test_trajectories_and_templates(run_dir, structure, command, tmp_path):
    status, out, _ = command(
        "sample", run_dir, "-n", 2, "--atomic-numbers", 29, 29, "-t", structure, "--steps", 4, "--save_trajectory",
        "--name", "way", "--print-timings",
    )  # fmt: skip
    assert status == 0
    assert "sampling took" in out
    for number in range(2):
        frames = ase.io.read(tmp_path / f"way_{number}.traj", ":")
        assert len(frames) == 5
        for frame in frames:
            np.testing.assert_array_equal(frame.positions[:4], labelled(9).positions)
            assert len(frame) == 6


def test_inpainting_keeps_the_rest(run_dir, structure, command, tmp_path):
    status, out, _ = command("inpaint", run_dir, structure, "--indices", -1, "-n", 2, "--steps", 4)
    assert (status, out) == (0, f"2 structures in {tmp_path / 'inpainted.traj'}\n")
    for atoms in ase.io.read(tmp_path / "inpainted.traj", ":"):
        np.testing.assert_array_equal(atoms.positions[:3], labelled(9).positions[:3])
        assert np.abs(atoms.positions[3] - labelled(9).positions[3]).max() > 1e-3
        assert atoms.info["inpainted"].tolist() == [3]
    ase.io.write(tmp_path / "two.xyz", [labelled(1), labelled(2)])
    status, _, _ = command("inpaint", run_dir, tmp_path / "two.xyz", "--symbols", "Cu", "--freeze", 0, 1,
                           "-n", 2, "--steps", 4)  # fmt: skip
    assert status == 0
    for number in range(2):
        atoms = ase.io.read(tmp_path / f"inpainted_struct{number}.traj", ":")
        assert len(atoms) == 2
        np.testing.assert_allclose(atoms[1].positions[:2], labelled(number + 1).positions[:2], atol=1e-7)


def test_relaxations_and_predictions_are_those_of_the_library(run_dir, structure, command, tmp_path):
    diffusion = agedi.load_diffusion(run_dir)
    before = ase.io.read(structure)
    status, out, _ = command("predict", run_dir, structure)
    assert (status, out) == (0, f"1 structure in {tmp_path / 'predicted.traj'}\n")
    predicted = ase.io.read(tmp_path / "predicted.traj")
    assert predicted.get_potential_energy() == agedi.predict(diffusion, before).get_potential_energy()

    status, out, _ = command("relax", run_dir, structure, "--fmax", 0.01, "--steps", 5)
    assert status == 0
    relaxed, expected = ase.io.read(tmp_path / "relaxed.traj"), agedi.relax(diffusion, before, fmax=0.01, steps=5)
    np.testing.assert_array_equal(relaxed.positions, expected.positions)
    np.testing.assert_array_equal(relaxed.positions[:2], before.positions[:2])
    count = int(expected.info["converged"])
    assert out.splitlines()[1] == f"{count} of 1 relaxed to 0.01 eV/angstrom within 5 steps"
    command("relax", run_dir, structure, "--fmax", 0.01, "--steps", 5, "--save-trajectory")
    frames = ase.io.read(tmp_path / "relaxed_0.traj", ":")
    assert len(frames) == expected.info["relaxation_steps"] + 1


def test_what_has_come_is_kept_when_stopped(run_dir, command, tmp_path, monkeypatch):
    from agedi.sampling import sample as sampling

    iterate_from = sampling.iterate_from

    def interrupted(*arguments, **settings):
        for number, drawn in enumerate(iterate_from(*arguments, **settings)):
            if number == 2:
                raise KeyboardInterrupt
            yield drawn

    monkeypatch.setattr(sampling, "iterate_from", interrupted)
    status, out, _ = command("sample", run_dir, "-n", 4, "-f", "Cu4", "--steps", 4, "-b", 2)
    assert status == 130
    assert out == f"2 structures in {tmp_path / 'sampled.traj'}, where it was stopped\n"
    assert len(ase.io.read(tmp_path / "sampled.traj", ":")) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--formula", "Cu", "--n-samples", "0"], "num_samples must be a whole number of at least 1; got 0"),
        (["--formula", "Cu", "--n_samples", "many"], "many"),
        ([], "this model does not draw species: give formula or atomic_numbers"),
        (["-a", "4"], "this model does not draw species"),
        (["-f", "Pt"], "formula has Pt, but the model was trained on Cu"),
        (["-f", "Cu", "--cell", "4", "4"], "cell must be three lengths"),
        (["-f", "Cu", "--confinement", "0", "1"], "confinement contradicts the model"),
        (["-f", "Cu", "--property", "energy"], "--property must be NAME=VALUE with a number"),
        (
            ["-f", "Cu", "--property", "gap=1"],
            "property 'gap' is not one of this model, which is conditioned on energy",
        ),
        (["-f", "Cu", "--property", "energy=1", "--property", "energy=2"], "--property energy is given twice"),
        (["-f", "Cu", "--guidance-weight", "2"], "guidance_weight is for a property"),
        (["-f", "Cu", "--ffpc_temperature", "2"], "temperature is for sampler ffpc; the sampler is em"),
        (["-f", "Cu", "--corrector-steps", "2"], "corrector_steps is for sampler pc or ffpc"),
        (["-f", "Cu", "--sampler", "euler"], "euler"),
        (["-f", "Cu", "--template_path", "nowhere.traj"], "nowhere.traj does not exist"),
        (["-f", "Cu", "--positions_path", "nowhere.traj"], "nowhere.traj does not exist"),
        (["-f", "Cu", "--colour", "red"], "--colour"),
    ],
)
def test_mistakes_in_sampling_are_one_clear_line(run_dir, command, arguments, words, tmp_path):
    status, out, err = command("sample", run_dir, *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert err.startswith("agedi: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_refused(run_dir, command, tmp_path):
    """Nothing there, an empty folder, a run of another family, weights of another family, and the wrong checkpoint."""
    other, empty = tmp_path / "atomformer", tmp_path / "empty"
    (other / "model").mkdir(parents=True)
    (other / "config.yaml").write_text("model: {dim: 32}\n")
    empty.mkdir()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "hparams.yaml").write_text("learning_rate: 1.0\n")
    for path, words in (
        (tmp_path / "nothing", "does not exist"),
        (empty, "is no run of AGeDi: it has no hparams.yaml"),
        (other, "a run of CrystalFormer or AtomFormer"),
        (other / "config.yaml", "hparams.yaml"),
        (foreign, "describes no diffusion model"),
        (run_dir.parent, "choose one of its runs: version_0"),
        (run_dir / "checkpoints" / "worst_model", "no checkpoint 'worst_model'"),
    ):
        status, _, err = command("sample", path, "-f", "Cu")
        assert status == 2, path
        assert words in err, path
        assert err.count("\n") == 1, path


def test_wrong_structures_are_refused(run_dir, command, tmp_path):
    (tmp_path / "empty.xyz").write_text("")
    (tmp_path / "broken.traj").write_bytes(b"nothing of the kind")
    (tmp_path / "notes.txt").write_text("Cu 0 0 0")
    ase.io.write(tmp_path / "two.xyz", [labelled(1), labelled(2)])
    ase.io.write(tmp_path / "platinum.xyz", ase.build.bulk("Pt"))
    for arguments, words in (
        (("relax", run_dir, tmp_path / "empty.xyz"), "holds no structure"),
        (("relax", run_dir, tmp_path / "broken.traj"), "is no trajectory of ASE, or is cut off"),
        (("predict", run_dir, tmp_path / "notes.txt"), "has an unknown suffix"),
        (("predict", run_dir, tmp_path / "nowhere.xyz"), "does not exist"),
        (
            ("predict", run_dir, tmp_path / "platinum.xyz"),
            "structure 0 (Pt): it has Pt, but the model was trained on Cu",
        ),
        (("relax", run_dir, tmp_path / "two.xyz", "--fmax", "0"), "fmax must be positive"),
        (("sample", run_dir, "-f", "Cu", "-t", tmp_path / "two.xyz"), "holds 2 structures, and one is needed"),
        (("inpaint", run_dir, tmp_path / "two.xyz", "--indices", "4"), "structure 0 (Cu4): indices must be whole"),
        (("inpaint", run_dir, tmp_path / "two.xyz", "--sphere-radius", "4"), "a sphere needs --sphere-center and"),
        (("inpaint", run_dir, tmp_path / "two.xyz", "--freeze", "some"), "--freeze must be indices of atoms, or all"),
    ):
        status, _, err = command(*arguments)
        assert status == 2, arguments
        assert words in err, arguments
        assert err.count("\n") == 1, arguments


def test_usage_and_unknown_commands(command):
    assert command("--help", output=False)[:2] == (0, USAGE)
    assert command(output=False)[0] == 2
    status, _, err = command("dream", output=False)
    assert status == 2
    assert "the commands are train, sample, inpaint, relax, predict, inspect" in err


def test_values_on_the_command_line():
    assert parse_properties(["energy=-3.5", "charge=0,1,0.5"]) == {"energy": -3.5, "charge": [0.0, 1.0, 0.5]}
    assert parse_properties([]) is None
    assert parse_freeze(["all"]) == "all"
    assert parse_freeze(["0", "-2"]) == (0, -2)
