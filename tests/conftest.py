"""Settings that every test shares. Strict rank promotion finds silent broadcasting bugs."""

import os
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

ROOT = pathlib.Path(__file__).parents[1]


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


QUICK = {
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}


@pytest.fixture(scope="session")
def quick_folder(tmp_path_factory) -> pathlib.Path:
    """Where `quick` keeps compiled programs."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def quick(quick_folder) -> Iterator[None]:
    """For files whose many short runs spend their time compiling: compiles less, and each program only once."""
    settings = QUICK | {"jax_compilation_cache_dir": str(quick_folder)}
    former = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in former.items():
        jax.config.update(name, value)
