"""Settings that every test shares. Strict rank promotion finds silent broadcasting bugs."""

import contextlib
import gc
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

# XLA's former code generator compiles in half the time, and that is what most tests spend theirs on.
# `XLA_FLAGS= make test` tests with the present one, which users have.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# Programs that were compiled once are read from disk the next time, by child processes too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

ROOT = pathlib.Path(__file__).parents[1]
MEMORY_MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 15_000  # Linux ends a process with 65,530; every compiled program has some


def pytest_collection_finish() -> None:
    """What is there by now stays: collecting garbage need not walk through all of JAX again and again."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Compiled programs of former files are dropped before they are too many for one process."""
    yield
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def _folder(variable: str, name: str) -> pathlib.Path:
    path = pathlib.Path(os.environ.get(variable, ROOT.parent / "shared" / name))
    if not path.is_dir():
        pytest.skip(f"{path} is not here: set {variable} to the folder with the project's {name} files")
    return path


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of real structures; tests that need it skip elsewhere."""
    return _folder("MATTERFORM_DATA", "data")


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
    """The folder of golden values; tests that need it skip elsewhere."""
    return _folder("MATTERFORM_GOLDEN", "golden")


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator with a fixed seed."""
    return np.random.default_rng(0)


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


@pytest.fixture(scope="session")
def reserved_port() -> Callable[[], contextlib.AbstractContextManager[int]]:
    """A block with a port where processes can meet: JAX's coordinator shares it with us, and nobody else takes it."""
    return _reserved_port


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """For files whose many short runs spend their time compiling: optimises less, and keeps even small programs."""
    settings = {"jax_disable_most_optimizations": True, "jax_persistent_cache_min_compile_time_secs": 0.0}
    former = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in former.items():
        jax.config.update(name, value)
