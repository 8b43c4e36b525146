"""Samples a class, coordinate or lattice from network outputs, and projects coordinates onto Wyckoff positions.

Equation numbers refer to docs/formulas/crystalformer.md, section 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from crystalformer.network import distributions
from crystalformer.network.transformer import FORBIDDEN, Coordinate, Lattice
from crystalformer.symmetry import lattice
from crystalformer.symmetry.wyckoff import symmetry_tables


class Temperature(NamedTuple):
    """Temperatures (eq. 13; below 1 sharpens, above 1 flattens) and top_p (eq. 14)."""

    every: Float[Array, ""]
    first_element: Float[Array, ""]
    top_p: Float[Array, ""]  # keep the likeliest classes until their probability exceeds this


def draw_class(
    key: PRNGKeyArray, log_probs: Float[Array, " c"], temperature: Float[Array, ""], top_p: Float[Array, ""]
) -> Int[Array, ""]:
    """Samples one of the classes kept by `top_p` with probability proportional to p^(1 / temperature) (eqs. 13, 14)."""
    return jax.random.categorical(key, keep_likeliest(log_probs / temperature, top_p)).astype(jnp.int32)


def keep_likeliest(log_probs: Float[Array, " c"], top_p: Float[Array, ""]) -> Float[Array, " c"]:
    """Forbids all but the smallest set of likeliest classes whose probability exceeds `top_p` (eq. 14)."""
    order = jnp.argsort(-log_probs)
    probs = jax.nn.softmax(log_probs)[order]
    before = jnp.cumsum(probs) - probs
    keep = jnp.zeros(log_probs.shape, bool).at[order].set((before <= top_p) | (top_p >= 1))
    return jnp.where(keep, log_probs, FORBIDDEN)


def draw_coordinate(key: PRNGKeyArray, mixture: Coordinate, temperature: Temperature) -> Float[Array, ""]:
    """Samples a fractional coordinate x (eq. 15): a component, then its von Mises angle 2 pi (x - 1/2)."""
    component_key, angle_key = jax.random.split(key)
    k = draw_class(component_key, mixture.log_weight, temperature.every, temperature.top_p)
    concentration = mixture.concentration[k] / temperature.every
    return distributions.sample_von_mises(angle_key, mixture.location[k], concentration) / (2 * np.pi) + 0.5


def draw_lattice(key: PRNGKeyArray, G: Int[Array, ""], mixture: Lattice, temperature: Temperature) -> Float[Array, "6"]:
    """Samples a lattice in model units (eq. 17): one component for all parameters, then the constraints of G."""
    component_key, normal_key = jax.random.split(key)
    k = draw_class(component_key, mixture.log_weight, temperature.every, temperature.top_p)
    width = mixture.width[k] * jnp.sqrt(temperature.every)
    return lattice.impose_lattice(G, mixture.mean[k] + width * jax.random.normal(normal_key, (6,)))


def project_coordinate(G, W, xyz: Float[Array, "3"], axis: Int[Array, ""] | int) -> Float[Array, ""]:
    """Coordinate `axis` of the site's first operation applied to `xyz`, in [0, 1) (eq. 16)."""
    row = jnp.asarray(symmetry_tables().first_op)[G - 1, W, axis]
    wrapped = (jnp.dot(row[:3], xyz) + row[3]) % 1.0
    return jnp.where(wrapped >= 1, 0.0, wrapped)  # a tiny negative number wraps to 1 in float32
