"""`agedi sample`, from a run on disk to structures on disk, and what it refuses."""

import ase.io
import numpy as np
import pytest

import agedi
from agedi.cli.sample import parse_properties

pytestmark = pytest.mark.usefixtures("quick")


def test_samples_are_those_of_the_library(run_dir, command, tmp_path, labelled):
    """With the cell of the training data and short and long flags of either spelling."""
    status, out, _ = command(
        "sample", run_dir, "-n", 4, "-f", "Cu4", "--steps", 4, "-s", 7, "--batch_size", 2, "--property", "energy=-0.5"
    )
    assert status == 0
    assert out == f"4 structures in {tmp_path / 'sampled.traj'}\n"
    written = ase.io.read(tmp_path / "sampled.traj", ":")
    expected = agedi.sample(
        agedi.load_diffusion(run_dir), n_samples=4, formula="Cu4", steps=4, seed=7, batch_size=2,
        property={"energy": -0.5},
    )  # fmt: skip
    for found, atoms in zip(written, expected, strict=True):
        np.testing.assert_array_equal(found.positions, atoms.positions)
        np.testing.assert_allclose(found.cell, labelled(0).cell, rtol=1e-7)
        assert found.pbc.all()
    command("sample", run_dir, "--n-samples", 4, "--formula", "Cu4", "--steps", 4, "--seed", 7, "-b", 2)
    unconditional = ase.io.read(tmp_path / "sampled.traj", ":")
    assert np.abs(unconditional[0].positions - written[0].positions).max() > 0


def test_trajectories_and_templates(run_dir, structure, command, tmp_path, labelled):
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


def test_what_has_come_is_kept_when_stopped(run_dir, command, tmp_path, monkeypatch):
    from agedi.sampling import sample as sampling

    iterate_from = sampling.iterate_from

    def interrupted(*arguments, **settings):
        for number, drawn in enumerate(iterate_from(*arguments, **settings)):
            if number == 2:
                raise KeyboardInterrupt
            yield drawn

    monkeypatch.setattr(sampling, "iterate_from", interrupted)
    status, out, err = command("sample", run_dir, "-n", 4, "-f", "Cu4", "--steps", 4, "-b", 2)
    assert (status, out) == (130, "")
    assert err.startswith(
        f"agedi: stopped; 2 structures of 4 are in {tmp_path / 'sampled.traj'}; to start again: agedi "
    )
    assert len(ase.io.read(tmp_path / "sampled.traj", ":")) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--formula", "Cu", "--n-samples", "0"], "num_samples must be a whole number of at least 1; got 0"),
        (["--formula", "Cu", "--n_samples", "many"], "many"),
        ([], "this model does not sample species: give formula or atomic_numbers"),
        (["-a", "4"], "this model does not sample species"),
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


def test_values_of_properties():
    assert parse_properties(["energy=-3.5", "charge=0,1,0.5"]) == {"energy": -3.5, "charge": [0.0, 1.0, 0.5]}
    assert parse_properties([]) is None
