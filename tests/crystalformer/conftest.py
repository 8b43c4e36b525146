"""A tiny network, a few valid crystals of every kind, and the golden values."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import numpy as np
import pytest

from crystalformer.checkpoint.published import load_checkpoint
from crystalformer.config import TransformerConfig
from crystalformer.data.crystals import Crystals
from crystalformer.network.parameters import init_params
from crystalformer.symmetry.wyckoff import symmetry_tables

TINY = {
    "Nf": 3,
    "Kx": 4,
    "Kl": 2,
    "n_max": 7,
    "h0_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "key_size": 8,
    "model_size": 16,
    "embed_size": 8,
    "widening_factor": 2,
}


class Golden(NamedTuple):
    """What the original code computed for a generation's weights and crystals."""

    path: pathlib.Path
    params: hk.Params
    config: TransformerConfig
    crystals: Crystals
    values: dict[str, np.ndarray]  # logp_*, h, h_rows, grad_names, grad_norms


@pytest.fixture(scope="session")
def tiny_config() -> TransformerConfig:
    """A network small enough to compile in a second, with the published vocabulary."""
    return TransformerConfig(**TINY)


@pytest.fixture(scope="session")
def lively() -> Callable[[TransformerConfig], hk.Params]:
    """Parameters far from the start, where every part of a network matters to its output."""

    def make(config: TransformerConfig, seed: int = 0) -> hk.Params:
        params = init_params(jax.random.key(seed), config)
        leaves, tree = jax.tree.flatten(params)
        rng = np.random.default_rng(seed)
        return tree.unflatten([leaf + np.float32(0.2) * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])

    return make


@pytest.fixture(scope="session")
def random_crystals() -> Callable[..., Crystals]:
    """A function that draws crystals whose letters obey the rules of their groups."""

    def draw(count: int, n: int, seed: int = 0, most: int | None = None) -> Crystals:
        rng, tables = np.random.default_rng(seed), symmetry_tables()
        G = rng.integers(1, 231, count).astype(np.int32)
        L = np.concatenate([rng.uniform(1, 4, (count, 3)), rng.uniform(1.2, 1.9, (count, 3))], -1).astype(np.float32)
        XYZ, A, W = (np.zeros((count, n, *tail), dtype) for tail, dtype in (((3,), "f4"), ((), "i4"), ((), "i4")))
        for i, group in enumerate(G):
            letters = np.arange(1, tables.num_letters[group - 1] + 1)
            fixed = tables.has_no_freedom[group - 1, letters]
            pool = np.concatenate([letters, np.repeat(letters[~fixed], 2)])  # a fixed position at most once
            sites = min(rng.integers(1, (most or n - 1) + 1), len(pool))
            W[i, :sites] = np.sort(rng.choice(pool, sites, replace=False))
            A[i, :sites] = rng.integers(1, 119, sites)
            XYZ[i, :sites] = rng.uniform(0, 1, (sites, 3))
        return Crystals(G, L, XYZ, A, W)

    return draw


@pytest.fixture(scope="session", params=["rope", "absolute"])
def golden(request: pytest.FixtureRequest, golden_dir: pathlib.Path) -> Golden:
    """The golden values of the rotary and of the absolute generation."""
    return _golden(golden_dir / "crystalformer", request.param)


def _golden(folder: pathlib.Path, name: str) -> Golden:
    hyperparameters: dict[str, Any] = json.loads((folder / f"config_{name}.json").read_text())
    path = folder / f"epoch_000007_{name}.pkl"
    checkpoint = load_checkpoint(path, **hyperparameters)
    with np.load(folder / "structures.npz") as file:
        crystals = Crystals(*(file[field] for field in Crystals._fields))
    with np.load(folder / f"logp_{name}.npz") as file:
        values = dict(file)
    return Golden(path, checkpoint.params, checkpoint.config, crystals, values)
