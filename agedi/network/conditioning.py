"""Noise levels and properties as one vector per atom, which modulates every block."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from agedi.config import ConditionConfig
from agedi.network.painn import parameter, two_layers

MAX_FREQUENCY = 64.0  # largest frequency of noise levels, which span about 2; resolves levels 0.01 apart
NUM_FREQUENCIES = 16  # number of frequencies per noise level
VALUE_FREQUENCIES = (0.5, 1.0, 2.0)  # frequencies of standardised property values

Conditions = Mapping[str, Shaped[Array, "..."]]


def conditioning(
    levels: Float[Array, " l"],
    conditions: Conditions,
    known: Bool[Array, ""],
    configs: tuple[ConditionConfig, ...],
    *,
    num_atoms: int,
    size: int,
) -> Float[Array, "n d"]:
    """The conditioning vector of each atom, from noise levels and, if `known`, from the properties.

    Args:
        conditions: raw value of every property by name; {} is the same as `known` False.

    Raises:
        ValueError: the names in `conditions` are not those of the model's properties.
    """
    vectors = jnp.broadcast_to(embed_levels(levels, size), (num_atoms, size))
    if set(conditions) - {config.name for config in configs} or (0 < len(conditions) < len(configs)):
        names = ", ".join(config.name for config in configs) or "none"
        raise ValueError(f"this model is conditioned on {names}; got values of {', '.join(conditions)}")
    if configs:
        unknown = parameter("unknown", (size,), 1.0)[None]
        if not conditions:
            return vectors + unknown
        values = sum(embed_value(jnp.where(known, conditions[c.name], 0), c, size) for c in configs)
        vectors += jnp.where(known, values, unknown)
    return vectors


def clean_conditioning(num_atoms: int, size: int) -> Float[Array, "n d"]:
    """The conditioning vector of the force field, which depends on no noise level or property: a learned vector."""
    clean = parameter("clean", (size,), 1.0)
    return jnp.broadcast_to(clean, (num_atoms, size))


def embed_levels(levels: Float[Array, " l"], size: int) -> Float[Array, " d"]:
    """Fourier features of all levels, mixed by a two-layer network."""
    frequencies = np.geomspace(0.5, MAX_FREQUENCY, NUM_FREQUENCIES).astype(np.float32)
    angles = (jnp.pi * levels[:, None] * frequencies[None]).ravel()
    features = jnp.concatenate([levels, jnp.sin(angles), jnp.cos(angles)])
    return two_layers(features, size, size, "levels")


def embed_value(
    value: Shaped[Array, ""] | Shaped[Array, " n"], config: ConditionConfig, size: int
) -> Float[Array, "rows d"]:
    """A property as one vector (one row for all atoms, or one row per atom).

    Sines alone would map distant values to the same features, so the standardised value itself is a feature too.
    """
    if config.kind == "integer":
        table = parameter(f"classes_{config.name}", (config.num_classes, size), 1.0)
        return table[value][None]
    standard = ((value - config.mean) / config.std).reshape(-1, 1)
    angles = standard * np.array([VALUE_FREQUENCIES], np.float32)
    features = jnp.concatenate([standard, jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return two_layers(features, size, size, f"value_{config.name}")
