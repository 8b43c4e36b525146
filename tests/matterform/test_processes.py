"""Worker processes: none outlives the process that started it, and Ctrl-C is the parent's alone."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time

import pytest

from matterform.processes import worker_pool

PARENT = """
import os, signal, time
from matterform.processes import worker_pool
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background of a script lacks
try:
    with worker_pool(1) as pool:
        pool.submit(os.getpid).result()
        jobs = [pool.submit(time.sleep, 600) for _ in range(4)]
        print("started", flush=True)
        jobs[0].result()
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def start_parent() -> subprocess.Popen:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "started\n"
    return parent


def test_workers_end_when_their_parent_is_killed() -> None:
    parent = start_parent()
    parent.kill()
    parent.communicate(timeout=60)  # the pipes end only when all that hold them, the workers too, are gone


def test_ctrl_c_reaches_the_parent_alone_and_ends_the_workers_at_once() -> None:
    parent = start_parent()
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    assert parent.communicate(timeout=60) == ("stopped\n", "")
    assert parent.returncode == 0


def test_an_error_in_the_block_does_not_wait_for_what_was_submitted() -> None:
    def fail(pool: concurrent.futures.Executor) -> None:
        pool.submit(time.sleep, 600)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), worker_pool(1) as pool:
        fail(pool)


def test_jobs_run_and_the_block_ends_them() -> None:
    with worker_pool(1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(os.getpid)
