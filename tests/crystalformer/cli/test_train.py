"""`crystalformer train`: flags reach the run, and a run goes on by its folder alone."""

import csv
import shutil
import subprocess
import sys

import numpy as np
import pytest

from crystalformer.cli import main

SIZES = ["--Nf=2", "--Kx=2", "--Kl=2", "--n-max=5", "--h0-size=8", "--num-layers=1", "--num-heads=2"]
SIZES += ["--key-size=4", "--model-size=8", "--embed-size=4", "--batch-size=8"]


def test_flags_reach_the_run(run):
    text = (run / "run" / "config.yaml").read_text()
    for line in ("optimizer: adamw", "lamb_l: 0.5", "key_size: 4", "ema_decay: 0.9", "epochs: 2"):
        assert line in text


def test_a_run_goes_on_for_more_epochs_by_its_folder_alone(run, tmp_path, capsys):
    shutil.copytree(run / "run", tmp_path / "run")  # other tests sample from the first one
    run = tmp_path
    assert main(["train", f"--run-dir={run / 'run'}", "--resume", "--epochs=3"]) == 0
    assert "finished after step 6" in capsys.readouterr().out  # 14 of 16 crystals in batches of 8: 2 steps an epoch
    with (run / "run" / "metrics.csv").open(newline="") as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == [1.0, 2.0, 3.0]


@pytest.mark.slow
def test_two_processes_train_and_resume_as_one(run, reserved_port):
    """Two real processes on this machine, joined by a coordinator, write the losses of a single one."""
    command = [sys.executable, "-c", "import sys; from crystalformer.cli import main; sys.exit(main(sys.argv[1:]))"]
    command += ["train", f"--train={run / 'prepared'}", *SIZES, "--seed=1"]
    subprocess.run([*command, f"--run-dir={run / 'one'}", "--epochs=2"], check=True, timeout=300)
    for flags in (["--epochs=1"], ["--epochs=2", "--resume"]):
        with reserved_port() as port:
            both = [
                subprocess.Popen(
                    [*command, f"--run-dir={run / 'two'}", *flags, f"--coordinator=localhost:{port}", *process]
                )
                for process in (["--num-processes=2", "--process-id=0"], ["--num-processes=2", "--process-id=1"])
            ]
            assert [process.wait(timeout=300) for process in both] == [0, 0]
    losses = {}
    for name in ("one", "two"):
        with (run / name / "metrics.csv").open(newline="") as file:
            losses[name] = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses["one"]) == 2
    np.testing.assert_allclose(losses["two"], losses["one"], rtol=1e-5)
