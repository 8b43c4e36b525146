"""`agedi train` and `agedi inspect`, as typed."""

import logging
import os
import pathlib
import signal

import ase
import numpy as np
import pytest

from agedi.cli import main
from agedi.cli.train import coerce, parse_options, split_assignments
from agedi.training.config import TrainConfig
from matterform.io.formats import write_structures

pytestmark = pytest.mark.usefixtures("quick")

FLAGS = "-n Positions -f 8 --n_blocks 1 --n-rbf 6 -r 3 -b 8 --lr 3e-3 --val_split 0.2 --ema_decay 0.5 --lr_patience 2"


def parsed(line: str) -> tuple[TrainConfig, set[str]]:
    """The options of a command line, and which are given."""
    return parse_options(*split_assignments(line.split()))


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
    assert f"stopped and saved; go on with: agedi train --checkpoint {run_dir}" in capsys.readouterr().out
    assert main(["train", "--checkpoint", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "finished after step 8; lowest validation loss " in out
    assert f"model in {run_dir}" in out
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
        ("train", "data_path must name a file of structures"),
        ("train nothing.traj", "nothing.traj does not exist"),
        ("train nothing.yaml", "nothing.yaml does not exist"),
        ("train x.traj --lrr 3", "--lrr"),
        ("train x.traj lrr=3", "unknown key 'lrr'; did you mean 'lr'"),
        ("train x.traj -n Fractional", "noisers must be among"),
        ("train x.traj -e 0", "epochs must be at least 1"),
        ("train x.traj -t 0", "training would never end"),
        ("train x.traj -n Positions -n CellPositions", "only one noiser may move positions"),
        ("train x.traj -n ConfinedCellPositions", "needs a confinement"),
        ("train x.traj --repeat 2", "repeat needs repeat_epoch"),
        ("train --checkpoint nowhere", "nowhere does not exist"),
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


def test_short_long_and_dashed_flags_mean_the_same():
    config, given = parsed(f"x.traj {FLAGS} -c gap -T 2 -t 3 -e 7 -m PaiNN")
    assert config == TrainConfig(
        data_path=pathlib.Path("x.traj"),
        noisers=("Positions",),
        feature_size=8,
        n_blocks=1,
        n_rbf=6,
        cutoff=3.0,
        batch_size=8,
        lr=3e-3,
        val_split=0.2,
        ema_decay=0.5,
        lr_patience=2,
        conditioning=("gap",),
        max_time=2.0,
        max_time_minutes=3.0,
        epochs=7,
    )
    assert {"noisers", "cutoff", "epochs", "max_time", "data_path"} <= given
    long = "--noisers Positions --feature-size 8 --n-blocks 1 --n_rbf 6 --cutoff 3 --batch-size 8 --lr 3e-3"
    long += " --val-split 0.2 --ema-decay 0.5 --lr-patience 2 --conditioning gap --max-time 2 --max-time-minutes 3"
    assert parsed(f"x.traj {long} --epochs 7 --model PaiNN")[0] == config


def test_names_may_be_repeated_or_joined():
    expected = ("CellPositions", "Types")
    for line in ("-n CellPositions -n Types", "--noisers CellPositions,Types", "noisers=CellPositions,Types"):
        assert parsed(f"x.traj {line}")[0].noisers == expected
    config, _ = parsed("x.traj -c gap,kind --conditioning_type scalar --conditioning_type integer")
    assert (config.conditioning, config.conditioning_type) == (("gap", "kind"), ("scalar", "integer"))


def test_five_minutes_are_the_default_of_the_command_line():
    assert (parsed("x.traj")[0].max_time, parsed("x.traj")[0].max_time_minutes) == (0.0, 5.0)
    assert parsed("x.traj")[0].noisers == ("CellPositions",)


def test_numbers_below_zero_and_pairs_are_read():
    config, _ = parsed("x.traj --confinement -1.5 4 loss_scaling=1,0.5")
    assert (config.confinement, config.loss_scaling) == ((-1.5, 4.0), (1.0, 0.5))


def test_flags_win_over_a_file_and_assignments_over_both(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("noisers: [CellPositions, Types]\nlr: 1e-3\nepochs: 9\nbatch_size: 16\ndata_path: a.traj\n")
    config, given = parsed(f"{path} -b 32 --epochs 8 epochs=7 loss_balance=80:20 mask=MaskFixed")
    assert (config.noisers, config.lr, config.batch_size, config.epochs) == (("CellPositions", "Types"), 1e-3, 32, 7)
    assert (config.loss_balance, config.mask, config.data_path) == ("80:20", "MaskFixed", pathlib.Path("a.traj"))
    assert (config.max_time, config.max_time_minutes) == (None, 0.0)  # which is 24 hours  # as from Python
    assert "batch_size" in given
    assert "lr" not in given
    # A flag at its usual default still wins over the file.
    assert parsed(f"{path} --lr 1e-4")[0].lr == 1e-4
    assert parsed(f"{path} -n Positions")[0].noisers == ("Positions",)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("none", None),
        ("null", None),
        ("3", 3),
        ("-1", -1),
        ("1e-3", 1e-3),
        ("80:20", "80:20"),
        ("1,2.5", [1, 2.5]),
        ("CellPositions,Types", "CellPositions,Types"),
        ("", ""),
    ],
)
def test_values_of_assignments_are_read_by_their_look(text, value):
    found = coerce(text)
    assert found == value
    assert type(found) is type(value)


def test_help_names_the_short_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code in (0, None)
    out = capsys.readouterr().out
    for flag in ("-n", "-r", "-f", "-c", "-e", "-T", "-t", "-b", "-m", "--repeat-epoch", "--confinement"):
        assert flag in out
