"""Tiny models whose parameters are away from their start, where every part of a network matters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from agedi.config import ConditionConfig, DiffusionConfig, ForceFieldConfig, ModelConfig
from agedi.diffusion import Diffusion
from agedi.score import make_score_model

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
