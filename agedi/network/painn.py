"""PaiNN (Schütt et al. 2021) for one structure: scalars and vectors on atoms, updated by messages from neighbors.

Every block normalises its inputs and modulates them as in diffusion transformers (Peebles and Xie 2023): scalars are
scaled and shifted, vectors scaled, by numbers from a conditioning vector (eq. 24 of docs/formulas/agedi.md).
"""

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from agedi.config import ModelConfig
from agedi.data.graph import AtomsGraph
from agedi.network.messages import choose_layout, messages
from matterform.elements import MAX_ATOMIC_NUMBER
from matterform.neighbors import Neighbors, displacements


def backbone(
    graph: AtomsGraph, conditioning: Float[Array, "n d"], config: ModelConfig
) -> tuple[Float[Array, "n f"], Float[Array, "n 3 f"]]:
    """The scalars and vectors of every atom after the last block; `conditioning` may differ between atoms.

    Raises:
        ValueError: the graph has no edges.
    """
    size = config.feature_size
    edges = graph.edges
    if edges is None:
        raise ValueError("the network needs graph.edges; found None: call matterform.neighbors.neighbor_list first")
    distance, direction = _distances(jnp.asarray(graph.pos), jnp.asarray(graph.cell), edges)
    envelope = 0.5 * (1 + jnp.cos(jnp.pi * distance / config.cutoff)) * (distance < config.cutoff) * edges.mask
    radial = gaussians(distance, config) * envelope[..., None]
    filters = parameter("filters", (config.n_blocks, config.n_rbf, 3 * size), config.n_rbf**-0.5)

    layout = choose_layout(radial, direction, edges)

    table = parameter("species", (MAX_ATOMIC_NUMBER + 1, size), 1.0)
    fixed = parameter("fixed", (size,), 0.0)
    scalars = table[graph.x] + graph.mask[:, None] * fixed[None]
    vectors = jnp.zeros((1, 3, 1)) * scalars[:, None]  # computed from the atoms, so that shard_map infers its sharding

    def block(features, filters):
        scalars, vectors = features
        inner, directions = modulate(*normalize(scalars, vectors), conditioning)
        plain, directed = messages(layout, filters, two_layers(inner, size, 3 * size, "message"), directions)
        scalars, vectors = scalars + plain, vectors + directed
        plain, directed = mix(*normalize(scalars, vectors))
        return (scalars + plain, vectors + directed), None

    stack = hk.layer_stack(config.n_blocks, with_per_layer_inputs=True, name="blocks")
    scalars, vectors = stack(block)((scalars, vectors), filters)[0]
    return modulate(*normalize(scalars, vectors), conditioning)


def mix(
    scalars: Float[Array, "n f"], vectors: Float[Array, "n 3 f"]
) -> tuple[Float[Array, "n f"], Float[Array, "n 3 f"]]:
    """PaiNN's update (Schütt et al. 2021) without the residual: mixes the features of one atom."""
    size = scalars.shape[-1]
    left, right = jnp.split(linear(vectors, 2 * size, "mix", with_bias=False), 2, axis=-1)
    inputs = jnp.concatenate([scalars, smooth_norms(right)], axis=-1)
    plain, product, gate = jnp.split(two_layers(inputs, size, 3 * size, "update"), 3, axis=-1)
    return plain + product * (left * right).sum(1), gate[:, None] * left


def normalize(
    scalars: Float[Array, "n f"], vectors: Float[Array, "n 3 f"]
) -> tuple[Float[Array, "n f"], Float[Array, "n 3 f"]]:
    """Scalars of mean 0 and variance 1, vectors of mean square length 1, over the channels of each atom.

    Sums over neighbors differ much in size: noise puts atoms on top of each other, and densities differ. Vectors much
    shorter than 0.1 stay short: at a symmetric site they are rounding errors.
    """
    centered = scalars - scalars.mean(-1, keepdims=True)
    scalars = centered * jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + 1e-5)
    square = jnp.square(vectors).sum(1, keepdims=True).mean(-1, keepdims=True)
    return scalars, vectors * jax.lax.rsqrt(square + 1e-2)


def modulate(
    scalars: Float[Array, "n f"], vectors: Float[Array, "n 3 f"], conditioning: Float[Array, "n d"]
) -> tuple[Float[Array, "n f"], Float[Array, "n 3 f"]]:
    """Scales and shifts features (FiLM, Perez et al. 2018); the identity at the start of training."""
    scale, shift, gate = jnp.split(linear(conditioning, 3 * scalars.shape[-1], "modulation", std=0.0), 3, axis=-1)
    return scalars * (1 + scale) + shift, vectors * (1 + gate)[:, None]


def gated_head(scalars: Float[Array, "n f"], vectors: Float[Array, "n 3 f"], name: str) -> Float[Array, "n 3"]:
    """One vector per atom by three gated equivariant blocks of f/2, f/4 and 1 channels; 0 at the start of training."""
    size = scalars.shape[-1]
    widths = (max(size // 2, 1), max(size // 4, 1), 1)
    for index, width in enumerate(widths):
        normed = smooth_norms(linear(vectors, vectors.shape[-1], f"{name}_{index}_norms", with_bias=False))
        std = 0.0 if index == len(widths) - 1 else None
        vectors = linear(vectors, width, f"{name}_{index}_vectors", with_bias=False, std=std)
        inputs = jnp.concatenate([scalars, normed], axis=-1)
        scalars, gate = jnp.split(two_layers(inputs, size, 2 * width, f"{name}_{index}"), 2, axis=-1)
        scalars, vectors = jax.nn.silu(scalars), vectors * (1 + gate)[:, None]
    return vectors[..., 0]


def two_layers(
    inputs: Float[Array, "*s i"], hidden: int, outputs: int, name: str, *, with_bias: bool = True
) -> Float[Array, "*s o"]:
    """A network with one hidden layer; `with_bias` is for its output only."""
    return linear(jax.nn.silu(linear(inputs, hidden, f"{name}_in")), outputs, f"{name}_out", with_bias=with_bias)


def linear(
    inputs: Float[Array, "*s i"], outputs: int, name: str, *, with_bias: bool = True, std: float | None = None
) -> Float[Array, "*s o"]:
    """A linear layer; `std` is the standard deviation of the initial weights, 1 / sqrt(inputs) unless given."""
    initial = hk.initializers.Constant(inputs.shape[-1] ** -0.5 if std is None else std)
    return hk.Linear(outputs, with_bias=with_bias, w_init=initial, name=name)(inputs)


def parameter(name: str, shape: tuple[int, ...], std: float) -> Float[Array, "..."]:
    """A table of parameters; `std` is the standard deviation of its initial values.

    Initializers give standard deviations, from which `agedi.network.score.random_parameters` makes the parameters.
    """
    return hk.get_parameter(name, shape, init=hk.initializers.Constant(std))


def gaussians(distance: Float[Array, "*s"], config: ModelConfig) -> Float[Array, "*s r"]:
    """Gaussians of the distance (Å), evenly spaced from 0 to the cutoff; their width is the spacing (eq. 22)."""
    width = config.cutoff / max(config.n_rbf - 1, 1)
    centers = jnp.arange(config.n_rbf, dtype=distance.dtype).reshape(*(1,) * distance.ndim, -1)
    return jnp.exp(-0.5 * jnp.square(distance[..., None] / width - centers))


def smooth_norms(vectors: Float[Array, "n 3 f"]) -> Float[Array, "n f"]:
    """Lengths of vectors, smooth at zero: the gradient there is 0 and not NaN."""
    return jnp.sqrt(jnp.square(vectors).sum(1) + 1e-8) - 1e-4


def _distances(
    pos: Float[Array, "n 3"], cell: Float[Array, "3 3"], edges: Neighbors
) -> tuple[Float[Array, "n m"], Float[Array, "n m 3"]]:
    """Distances (Å) and unit vectors to neighbors; 1 and 0 in unused slots."""
    pairs = displacements(pos, cell, edges)
    square = jnp.square(pairs).sum(-1)
    apart = edges.mask & (square > 0)
    distance = jnp.sqrt(jnp.where(apart, square, 1.0))
    return distance, jnp.where(apart[..., None], pairs / distance[..., None], 0.0)
