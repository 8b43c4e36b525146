"""PaiNN's messages (Schütt et al. 2021), the most expensive part of the network, in two layouts.

Slots: one row per neighbor of each atom. Pairs: one row per pair of atoms, for all periodic images of the pair. An
image enters a message only through its radial features, and filters are linear in them, so the radial features of all
images of a pair are summed once, before the first block. Nothing is then gathered or scattered, forwards or backwards,
and in small cells there are far fewer rows. A pair costs as much as a slot, so the layout with fewer rows is faster.

Sums are written out term by term: XLA compiles them to one vectorised loop on CPUs, which takes half as long as its
reduction over an axis that is not the last, and a quarter of matrix products (benchmarks/README.md, "What limits
AGeDi"). `contract`, `contract_back` and `outer` are each other's derivatives, so that the same holds for derivatives of
any order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from matterform.neighbors import Neighbors, gather

LARGEST_UNROLLED = 64  # largest number of terms that a sum is written out for


class Slots(NamedTuple):
    """Layout with one row per neighbor: radial features, and unit vectors to the neighbors."""

    radial: Float[Array, "n m r"]
    direction: Float[Array, "n m 3"]
    edges: Neighbors


class Pairs(NamedTuple):
    """Layout with one row per pair of atoms: radial features, alone and times unit vectors, summed over images."""

    radial: Float[Array, "n n r"]
    outward: tuple[Float[Array, "n n r"], ...]  # along x, y, z


def choose_layout(radial: Float[Array, "n m r"], direction: Float[Array, "n m 3"], edges: Neighbors) -> Slots | Pairs:
    """The layout with fewer rows."""
    n, m, _ = radial.shape
    return collapse(radial, direction, edges) if n <= min(m, LARGEST_UNROLLED) else Slots(radial, direction, edges)


def collapse(radial: Float[Array, "n m r"], direction: Float[Array, "n m 3"], edges: Neighbors) -> Pairs:
    """Sums the periodic images of each pair."""
    n = len(radial)
    # As a product of matrices, which is many times as fast as scattered additions; unused slots have radial features 0.
    images = jax.nn.one_hot(edges.index, n, axis=1, dtype=radial.dtype)  # (i, j, slot)
    outward = [images @ (radial * direction[..., axis, None]) for axis in range(3)]
    return Pairs(images @ radial, tuple(outward))


def messages(
    layout: Slots | Pairs,
    filters: Float[Array, "r three_f"],
    values: Float[Array, "n three_f"],
    vectors: Float[Array, "n 3 f"],
) -> tuple[Float[Array, "n f"], Float[Array, "n 3 f"]]:
    """PaiNN's messages to each atom, summed over its neighbors: scalars, and vectors.

    Filtered values enter as scalars, as lengths along the directions to neighbors, and as factors of their vectors:
    eq. 23 of docs/formulas/agedi.md.
    """
    size = vectors.shape[-1]
    if isinstance(layout, Slots):
        weights = layout.radial @ filters
        plain, outward, factor = jnp.split(weights * gather(values, layout.edges), 3, axis=-1)
        mixed = factor[:, :, None] * gather(vectors, layout.edges)
        return plain.sum(1), (outward[:, :, None] * layout.direction[..., None] + mixed).sum(1)
    plain, outward, factor = jnp.split(values, 3, axis=-1)
    mixed = factor[:, None] * vectors
    scalars = contract(layout.radial @ filters[:, :size], plain)
    mixing = layout.radial @ filters[:, 2 * size :]
    directed = [contract(layout.outward[a] @ filters[:, size : 2 * size], outward) for a in range(3)]
    return scalars, jnp.stack([directed[a] + contract(mixing, mixed[:, a]) for a in range(3)], axis=1)


@jax.custom_vjp
def contract(weights: Float[Array, "i j f"], values: Float[Array, "j f"]) -> Float[Array, "i f"]:
    """The sum over j of weights[i, j] * values[j]."""
    return sum((weights[:, j] * values[None, j] for j in range(1, len(values))), weights[:, 0] * values[None, 0])


@jax.custom_vjp
def contract_back(weights: Float[Array, "i j f"], values: Float[Array, "i f"]) -> Float[Array, "j f"]:
    """The sum over i of weights[i, j] * values[i]."""
    return sum((weights[i] * values[None, i] for i in range(1, len(values))), weights[0] * values[None, 0])


@jax.custom_vjp
def outer(left: Float[Array, "i f"], right: Float[Array, "j f"]) -> Float[Array, "i j f"]:
    """left[i] * right[j]."""
    return left[:, None] * right[None]


contract.defvjp(
    lambda weights, values: (contract(weights, values), (weights, values)),
    lambda saved, g: (outer(g, saved[1]), contract_back(saved[0], g)),
)
contract_back.defvjp(
    lambda weights, values: (contract_back(weights, values), (weights, values)),
    lambda saved, g: (outer(saved[1], g), contract(saved[0], g)),
)
outer.defvjp(
    lambda left, right: (outer(left, right), (left, right)),
    lambda saved, g: (contract(g, saved[1]), contract_back(g, saved[0])),
)
