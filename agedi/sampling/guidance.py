"""Guidance of the reverse process by properties and by forces.

Equation numbers are those of docs/formulas/agedi.md.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from agedi.data.graph import AtomsGraph
from agedi.network.groups import in_groups
from agedi.sampling.config import ForcefieldGuidanceConfig

LARGEST_GUIDED_SHIFT = 0.1  # largest move of an atom of the predicted clean structure per evaluation, Å


def make_guided_score(score: Callable[..., Any], weight: float) -> Callable[..., Any]:
    """Returns `guided(params, graph, levels, conditions)`: classifier-free guidance by the properties.

    Eq. 31 (Ho and Salimans 2022, eq. 6, with weight = 1 + w): outputs are extrapolated from the unconditional to the
    conditional ones. Weight 0 is the unconditional model, 1 the conditional one. Without `conditions` or at these two
    weights the network is evaluated once, else twice.
    """
    grouped = in_groups(score)

    def guided(params: Any, graph: AtomsGraph, levels: Array, conditions: dict[str, Array]) -> Any:
        if not conditions or weight in (0.0, 1.0):
            return grouped(params, graph, levels, conditions, jnp.array(bool(conditions) and weight == 1.0))
        plain, conditional = (grouped(params, graph, levels, conditions, jnp.array(known)) for known in (False, True))
        return jax.tree.map(lambda a, b: a + weight * (b - a), plain, conditional)

    return guided


def guided_shift(
    forces: Float[Array, "n 3"], noise: Float[Array, ""], t: Float[Array, ""], settings: ForcefieldGuidanceConfig
) -> Float[Array, "n 3"]:
    """Eq. 32: move (Å) of the predicted clean structure along the forces (eV/Å), nu^2 guidance (1 - t)^zeta forces.

    This adds guidance (1 - t)^zeta forces to the score; a Boltzmann factor adds forces / (k_B T). The whole move is
    scaled down where an atom would move by more than `LARGEST_GUIDED_SHIFT`.
    """
    shift = noise**2 * settings.guidance * (1 - t) ** settings.zeta * forces
    longest = jnp.sqrt(jnp.max(jnp.sum(shift**2, axis=-1)))
    return shift * jnp.minimum(1.0, LARGEST_GUIDED_SHIFT / jnp.maximum(longest, 1e-12))
