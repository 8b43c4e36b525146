"""Tiny models with every parameter away from its start, and quick compilation for tests of many programs."""

import functools
from collections.abc import Callable
from typing import Any

import ase
import jax
import numpy as np
import pytest

from agedi.config import ConditionConfig, DiffusionConfig, ForceFieldConfig, ModelConfig
from agedi.data.graph import AtomsGraph, from_atoms, pad_graph
from agedi.diffusion import Diffusion
from agedi.network.score import make_score_model
from agedi.network.search import make_search
from matterform.neighbors import estimate_capacity, image_counts

SPECIES = (1, 6, 8, 29, 79)
TINY = ModelConfig(feature_size=8, n_blocks=1, n_rbf=6, cutoff=3.0)


@pytest.fixture(scope="session")
def tiny_diffusion() -> Callable[..., Diffusion]:
    """A function that makes an untrained model: noisers, names of scalar properties, other fields of the config."""

    @functools.cache
    def make(*noisers: str, force_field: bool = False, conditions: tuple[Any, ...] = (), **fields: Any) -> Diffusion:
        config = DiffusionConfig(
            noisers=noisers,
            sigma_max=2.0,
            species=SPECIES,
            model=TINY,
            conditions=tuple(c if isinstance(c, ConditionConfig) else ConditionConfig(name=c) for c in conditions),
            force_field=ForceFieldConfig(conservative=True) if force_field else None,
            **fields,
        )
        model = make_score_model(jax.random.key(0), config)
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: x + np.float32(0.1) * rng.standard_normal(x.shape, np.float32), model.params)
        return Diffusion(config, model._replace(params=params))

    return make


@pytest.fixture(scope="session")
def searched() -> Callable[..., AtomsGraph]:
    """A function that makes the padded graph of ASE Atoms, with edges."""

    def make(atoms: ase.Atoms, length: int, *, cutoff: float = TINY.cutoff, capacity: int | None = None) -> AtomsGraph:
        graph = pad_graph(from_atoms(atoms), length)
        slots = capacity or estimate_capacity(len(atoms), graph.cell, graph.pbc, cutoff)
        found = jax.jit(make_search(cutoff, slots, image_counts(graph.cell, graph.pbc, cutoff)))(graph)
        assert not found.edges.overflow
        return found

    return make
