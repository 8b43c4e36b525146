"""PaiNN (Schütt et al. 2021): scalars and vectors on atoms, mixed with those of neighbours, for one structure.

Every block is modulated: its scalars are scaled and shifted, its vectors scaled, by numbers from a conditioning vector.
"""

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from agedi.config import MAX_ATOMIC_NUMBER, ModelConfig
from agedi.graph import AtomsGraph
from matterform.neighbors import Neighbors


def backbone(
    graph: AtomsGraph, conditioning: Float[Array, "n d"], config: ModelConfig
) -> tuple[Float[Array, "n f"], Float[Array, "n 3 f"]]:
    """The scalars and vectors of every atom after the last block; `conditioning` may differ between atoms."""
    size = config.feature_size
    edges = graph.edges
    if edges is None:
        raise ValueError("the network needs graph.edges; found None: call matterform.neighbors.neighbor_list first")
    distance, direction = _distances(jnp.asarray(graph.pos), jnp.asarray(graph.cell), edges)
    envelope = 0.5 * (1 + jnp.cos(jnp.pi * distance / config.cutoff)) * (distance < config.cutoff) * edges.mask
    radial = gaussians(distance, config) * envelope[..., None]
    filters = _per_block("filters", config, (config.n_rbf, 3 * size), config.n_rbf**-0.5)

    table = hk.get_parameter("species", (MAX_ATOMIC_NUMBER + 1, size), init=hk.initializers.RandomNormal())
    fixed = hk.get_parameter("fixed", (size,), init=jnp.zeros)
    scalars = table[graph.x] + graph.mask[:, None] * jnp.broadcast_to(fixed, (len(graph.x), size))
    vectors = jnp.zeros((len(graph.x), 3, size))

    def block(features, filters):
        scalars, vectors = modulate(features[0], features[1], conditioning)
        message = hk.Sequential([hk.Linear(size), jax.nn.silu, hk.Linear(3 * size)])(scalars)[edges.index]
        scale, outward, mixed = jnp.split(message * (radial @ filters), 3, axis=-1)
        scalars += scale.sum(1)
        neighbours = vectors[edges.index]  # (n, m, 3, f)
        vectors += (outward[:, :, None] * direction[..., None] + mixed[:, :, None] * neighbours).sum(1)
        return mix(scalars, vectors)

    stack = hk.layer_stack(config.n_blocks, with_per_layer_inputs=True, name="blocks")
    return stack(block)((scalars, vectors), filters)[0]


def mix(
    scalars: Float[Array, "n f"], vectors: Float[Array, "n 3 f"]
) -> tuple[tuple[Float[Array, "n f"], Float[Array, "n 3 f"]], None]:
    """PaiNN's update: an atom's scalars and vectors among themselves."""
    size = scalars.shape[-1]
    left, right = jnp.split(hk.Linear(2 * size, with_bias=False)(vectors), 2, axis=-1)
    inputs = jnp.concatenate([scalars, lengths(right)], axis=-1)
    gates = hk.Sequential([hk.Linear(size), jax.nn.silu, hk.Linear(3 * size)])(inputs)
    plain, product, gate = jnp.split(gates, 3, axis=-1)
    return (scalars + plain + product * (left * right).sum(1), vectors + gate[:, None] * left), None


def modulate(
    scalars: Float[Array, "n f"], vectors: Float[Array, "n 3 f"], conditioning: Float[Array, "n d"]
) -> tuple[Float[Array, "n f"], Float[Array, "n 3 f"]]:
    """Scales and shifts features (FiLM, Perez et al. 2018); the identity at the start of training."""
    linear = hk.Linear(3 * scalars.shape[-1], w_init=jnp.zeros, name="modulation")
    scale, shift, gate = jnp.split(linear(conditioning), 3, axis=-1)
    return scalars * (1 + scale) + shift, vectors * (1 + gate)[:, None]


def gated_head(scalars: Float[Array, "n f"], vectors: Float[Array, "n 3 f"], name: str) -> Float[Array, "n 3"]:
    """One vector an atom by three gated equivariant blocks, of f/2, f/4 and 1 channels."""
    size = scalars.shape[-1]
    widths = (max(size // 2, 1), max(size // 4, 1), 1)
    for index, width in enumerate(widths):
        normed = lengths(hk.Linear(vectors.shape[-1], with_bias=False, name=f"{name}_{index}_norms")(vectors))
        vectors = hk.Linear(width, with_bias=False, name=f"{name}_{index}_vectors")(vectors)
        inputs = jnp.concatenate([scalars, normed], axis=-1)
        hidden = jax.nn.silu(hk.Linear(size, name=f"{name}_{index}_hidden")(inputs))
        scalars, gate = jnp.split(hk.Linear(2 * width, name=f"{name}_{index}_gates")(hidden), 2, axis=-1)
        scalars, vectors = jax.nn.silu(scalars), vectors * gate[:, None]
    return vectors[..., 0]


def gaussians(distance: Float[Array, "*s"], config: ModelConfig) -> Float[Array, "*s r"]:
    """Gaussians of the distance, evenly from 0 to the cutoff and as wide as they stand apart."""
    width = config.cutoff / max(config.n_rbf - 1, 1)
    # x - k is exact to rounding and bounded, so a Gaussian never sees a difference of large squares.
    return jnp.exp(-0.5 * jnp.square(distance[..., None] / width - jnp.arange(config.n_rbf, dtype=jnp.float32)))


def lengths(vectors: Float[Array, "n 3 f"]) -> Float[Array, "n f"]:
    """Lengths of vectors; smooth at zero, so that gradients there are 0 and not NaN."""
    return jnp.sqrt(jnp.square(vectors).sum(1) + 1e-8) - 1e-4


def _distances(
    pos: Float[Array, "n 3"], cell: Float[Array, "3 3"], edges: Neighbors
) -> tuple[Float[Array, "n m"], Float[Array, "n m 3"]]:
    """Distances (Å) and unit vectors to neighbours; 1 and 0 in unused slots."""
    pairs = pos[edges.index] - pos[:, None] + edges.shift @ cell
    square = jnp.square(pairs).sum(-1)
    apart = edges.mask & (square > 0)
    distance = jnp.sqrt(jnp.where(apart, square, 1.0))
    return distance, jnp.where(apart[..., None], pairs / distance[..., None], 0.0)


def _per_block(name: str, config: ModelConfig, shape: tuple[int, ...], std: float) -> Float[Array, "blocks ..."]:
    return hk.get_parameter(name, (config.n_blocks, *shape), init=hk.initializers.TruncatedNormal(std))
