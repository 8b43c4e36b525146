"""Settings that every test shares. Strict rank promotion finds silent broadcasting bugs."""

import os
import pathlib

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
