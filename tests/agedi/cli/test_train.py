"""`agedi train` and `agedi inspect` from structures on disk to a run folder."""

import logging
import os
import pathlib
import signal

import ase
import numpy as np
import pytest

from agedi.cli import main
from matterform.io.formats import write_structures

pytestmark = pytest.mark.usefixtures("quick")

FLAGS = (
    "--noisers Positions --feature-size 8 --n_blocks 1 --n-rbf 6 -r 3 -b 8 --lr 3e-3 --val_split 0.2 --ema_decay 0.5"
)


@pytest.fixture(scope="module")
def structures(tmp_path_factory) -> pathlib.Path:
    """A file of twenty bent molecules."""
    rng = np.random.default_rng(0)
    shape = np.array([[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]])
    path = tmp_path_factory.mktemp("data") / "molecules.traj"
    write_structures(path, [ase.Atoms("OH2", shape + rng.normal(0, 0.03, shape.shape)) for _ in range(20)])
    return path


class Terminator(logging.Handler):
    """Sends the process SIGTERM when step 2 has been logged."""

    def emit(self, record):
        if record.getMessage().startswith("step 2:"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_is_trained_interrupted_resumed_and_inspected(structures, tmp_path, capsys):
    flags = [*FLAGS.split(), "--log_dir", str(tmp_path), "log_interval=2"]
    logger, handler = logging.getLogger("matterform.training.loop"), Terminator()
    logger.addHandler(handler)
    try:
        status = main(["train", str(structures), *flags, "-e", "4"])
    finally:
        logger.removeHandler(handler)
    run_dir = tmp_path / "version_0"
    assert status == 130
    go_on = f"the run is saved in {run_dir}; go on with: agedi train --run-dir {run_dir} --resume"
    assert go_on in capsys.readouterr().err
    assert main(["train", "--run-dir", str(run_dir), "--resume"]) == 0
    out = capsys.readouterr().out
    assert "finished after step 8; lowest validation loss " in out
    assert f"weights in {run_dir / 'checkpoints'}" in out
    assert main(["inspect", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "noisers:\n  - Positions" in out
    assert "feature_size: 8" in out
    assert "last_model: step 8\n" in out
    assert main(["inspect", str(run_dir / "checkpoints" / "best_model")]) == 0
    out = capsys.readouterr().out
    assert "last_model" not in out
    assert "validation_loss  " in out


def test_a_refused_change_of_a_run_is_one_line(structures, tmp_path, capsys):
    # No training is needed to refuse it.
    (tmp_path / "hparams.yaml").write_text("seed: 1")
    assert main(["train", str(structures), "--checkpoint", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("agedi: ")
    assert "describes no diffusion model" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train", "train (data_path) must name a file of structures"),
        ("train nothing.traj", "nothing.traj does not exist"),
        ("train nothing.yaml", "nothing.yaml does not exist"),
        ("train x.traj --lrr 3", "--lrr"),
        ("train x.traj lrr=3", "unknown flag --lrr; did you mean --lr?"),
        ("train x.traj --noisers Fractional", "noisers must be among"),
        ("train x.traj -e 0", "epochs must be at least 1"),
        ("train x.traj --max-time-minutes 0", "epochs or max_steps must be given, or max_minutes"),
        ("train x.traj --noisers Positions --noisers CellPositions", "only one noiser may move positions"),
        ("train x.traj --noisers ConfinedCellPositions", "needs a confinement"),
        ("train x.traj --repeat 2", "repeat needs repeat_epoch"),
        ("train --checkpoint nowhere", "nowhere does not exist"),
        ("train --run-dir nowhere --resume", "nowhere does not exist"),
        ("train x.traj --resume", "--resume needs --run-dir"),
        ("inspect nowhere", "nowhere does not exist"),
        ("inspect .", "is no run of AGeDi"),
    ],
)
def test_mistakes_are_one_line(arguments, message, structures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.traj").write_bytes(structures.read_bytes())
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("agedi: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "logs").exists()


def test_help_explains_every_flag(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in (
        "--noisers",
        "--learning-rate",
        "--max-minutes",
        "--resume",
        "--config",
        "--repeat-epoch",
        "--confinement",
    ):
        assert flag in out
