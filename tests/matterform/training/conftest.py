"""The tiny training run, as functions and as a command to start in another process."""

import importlib.util
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

SCRIPT = pathlib.Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module with the tiny model, its data and its `train`."""
    spec = importlib.util.spec_from_file_location("tiny_training", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start_tiny() -> Callable[..., subprocess.Popen]:
    """Starts the tiny run in another process with a number of forced CPU devices."""

    def start(*arguments: object, devices: int = 1) -> subprocess.Popen:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags, JAX_DEFAULT_MATMUL_PRECISION="highest")
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    return start
