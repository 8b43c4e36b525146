"""`agedi relax` and `agedi predict`."""

import ase.build
import ase.io
import numpy as np
import pytest

import agedi

pytestmark = pytest.mark.usefixtures("quick")


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


def test_wrong_structures_are_refused(run_dir, command, tmp_path, labelled):
    (tmp_path / "empty.xyz").write_text("")
    (tmp_path / "broken.traj").write_bytes(b"nothing of the kind")
    (tmp_path / "notes.txt").write_text("Cu 0 0 0")
    ase.io.write(tmp_path / "two.xyz", [labelled(1), labelled(2)])
    ase.io.write(tmp_path / "platinum.xyz", ase.build.bulk("Pt"))
    for arguments, words in (
        (("relax", run_dir, tmp_path / "empty.xyz"), "holds no structure"),
        (("relax", run_dir, tmp_path / "broken.traj"), "is not a trajectory of ASE, or is cut off"),
        (("predict", run_dir, tmp_path / "notes.txt"), "has an unknown suffix"),
        (("predict", run_dir, tmp_path / "nowhere.xyz"), "does not exist"),
        (
            ("predict", run_dir, tmp_path / "platinum.xyz"),
            "structure 0 (Pt): it has Pt, but the model was trained on Cu",
        ),
        (("relax", run_dir, tmp_path / "two.xyz", "--fmax", "0"), "fmax must be positive"),
    ):
        status, _, err = command(*arguments)
        assert status == 2, arguments
        assert words in err, arguments
        assert err.count("\n") == 1, arguments
