"""A tiny network with every parameter away from its start, and random molecules."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atomformer.config import AtomformerConfig
from atomformer.parameters import init_params
from atomformer.structure import Structure
from atomformer.vocabulary import PAD


@pytest.fixture(scope="session")
def tiny_config() -> AtomformerConfig:
    """A network small enough to compile in seconds."""
    return AtomformerConfig(dim=32, num_heads=2, depth=2, k=16)


@pytest.fixture(scope="session")
def lively() -> Callable[..., Any]:
    """Parameters far from the start, where every part of a network matters to its output."""

    @functools.cache
    def make(config: AtomformerConfig, seed: int = 0) -> Any:
        params = jax.jit(init_params, static_argnums=1)(jax.random.key(seed), config)
        metadata = params["encoder"]["metadata"]  # a table, not a parameter
        leaves, tree = jax.tree.flatten(params)
        rng = np.random.default_rng(seed)
        params = tree.unflatten([x + np.float32(0.1) * rng.standard_normal(x.shape, np.float32) for x in leaves])
        params["encoder"]["metadata"] = metadata
        # Gaussians so narrow that float32 no longer resolves them would hide errors behind rounding.
        params["encoder"]["pair"]["stds"] = jnp.asarray(rng.uniform(0.3, 2.0, config.k), jnp.float32)
        return params

    return make


@pytest.fixture(scope="session")
def molecules() -> Callable[..., Structure]:
    """A function that draws molecules of the given sizes, padded with atoms that must not matter."""

    def draw(counts: tuple[int, ...], length: int | None = None, seed: int = 0) -> Structure:
        rng, n = np.random.default_rng(seed), length or max(counts)
        structures = []
        for count in counts:
            tokens, positions = np.full(n, PAD, np.int32), np.zeros((n, 3), np.float32)
            tokens[:count] = rng.integers(1, 95, count)
            positions[:count] = rng.normal(0.5, 1.5, (count, 3))
            positions[count:] = 40.0
            structures.append(Structure(tokens, positions, np.arange(n) < count))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *structures)

    return draw


@pytest.fixture(scope="session")
def in_double() -> Callable[[AtomformerConfig], AtomformerConfig]:
    """A function that makes a config compute in float64, which only finite differences need: no user can ask for it."""

    def change(config: AtomformerConfig) -> AtomformerConfig:
        config = dataclasses.replace(config)
        object.__setattr__(config, "compute_dtype", "float64")
        return config

    return change
