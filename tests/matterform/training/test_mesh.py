"""Four devices and two processes train as one device does."""

import csv
import json

import numpy as np
import pytest

from matterform.training.checkpoint import complete_steps


def read_rows(folder) -> np.ndarray:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return np.array([[float(value or "nan") for value in row] for row in rows])


@pytest.fixture(scope="module")
def one_device(tiny, tmp_path_factory):
    """The rows and final parameters of 20 steps, with dropout, on one device."""
    folder = tmp_path_factory.mktemp("one")
    result = tiny.train(folder, 20)
    return read_rows(folder), {name: np.asarray(value) for name, value in result.state.params.items()}


def assert_agrees(folder, one_device, process=0):
    rows, params = one_device
    np.testing.assert_allclose(read_rows(folder), rows, rtol=1e-5)
    final = np.load(folder / f"params_{process}.npz")
    for name, value in params.items():
        np.testing.assert_allclose(final[name], value, rtol=1e-4, atol=1e-5)


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def test_four_devices_agree_with_one(one_device, start_tiny, tmp_path):
    assert finish(start_tiny(tmp_path, 20, devices=4))["devices"] == 4
    assert_agrees(tmp_path, one_device)


def run_pair(start_tiny, reserved_port, *arguments, second=()):
    """What two processes that work together report; the second gets some arguments of its own."""
    with reserved_port() as port:
        flags = ("--coordinator", f"localhost:{port}", "--process")
        pair = [start_tiny(*arguments, *flags, 0), start_tiny(*arguments, *second, *flags, 1)]
        return [finish(process) for process in pair]


def test_two_processes_stop_together_resume_and_agree_with_one(one_device, start_tiny, reserved_port, tmp_path):
    stopped, other = run_pair(start_tiny, reserved_port, tmp_path, 20, second=("--stop-at", 7))  # only one is told
    assert stopped == other
    assert (stopped["outcome"], stopped["processes"]) == ("interrupted", 2)
    assert stopped["step"] in range(3, 19, 3)  # the next meeting: a multiple of log_every
    assert complete_steps(tmp_path / "checkpoints")[-1] == stopped["step"]
    for report in run_pair(start_tiny, reserved_port, tmp_path, 20, "--resume"):
        assert report == {"outcome": "finished", "step": 20, "devices": 2, "processes": 2}
    for process in (0, 1):
        assert_agrees(tmp_path, one_device, process)
