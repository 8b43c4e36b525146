"""Four devices and two processes train as one device does."""

import csv
import json
import signal
import socket
import time

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
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def test_four_devices_agree_with_one(one_device, start_tiny, tmp_path):
    assert finish(start_tiny(tmp_path, 20, devices=4))["devices"] == 4
    assert_agrees(tmp_path, one_device)


def start_pair(start_tiny, *arguments):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    return [start_tiny(*arguments, "--coordinator", coordinator, "--process", process) for process in (0, 1)]


def test_two_processes_stop_together_resume_and_agree_with_one(one_device, start_tiny, tmp_path):
    pair = start_pair(start_tiny, tmp_path, 20, "--delay-s", 0.3)
    deadline = time.monotonic() + 60
    while not (tmp_path / "metrics.csv").exists() or len(read_rows(tmp_path)) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pair[1].send_signal(signal.SIGTERM)  # only one of them is told
    stopped, other = (finish(process) for process in pair)
    assert stopped == other
    assert (stopped["outcome"], stopped["processes"]) == ("interrupted", 2)
    assert stopped["step"] in range(3, 19, 3)  # the next meeting: a multiple of log_every
    assert complete_steps(tmp_path / "checkpoints")[-1] == stopped["step"]
    for process in start_pair(start_tiny, tmp_path, 20, "--resume"):
        assert finish(process) == {"outcome": "finished", "step": 20, "devices": 2, "processes": 2}
    for process in (0, 1):
        assert_agrees(tmp_path, one_device, process)
