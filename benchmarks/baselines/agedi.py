"""A plain implementation of AGeDi's sampling, the baseline for our score model and sampler.

It works like the published package and most graph codes: a Python loop over the steps, neighbour lists of every
structure made on the host in every step, all atoms concatenated into one graph with a list of edges, messages summed
by `segment_sum`, and one compiled function for the network and the update. It reads our parameter tree, so tests check
that its results are equal.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from agedi.config import DiffusionConfig, ModelConfig
from agedi.sampling.plan import Step

EDGE_STEP = 16384  # edges are padded to a multiple of it; otherwise each step would be recompiled
Finder = Callable[[ase.Atoms, float], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Edges(NamedTuple):
    """Neighbours of all atoms of all structures."""

    center: Int[np.ndarray, " e"]
    neighbor: Int[np.ndarray, " e"]
    shift: Float[np.ndarray, "e 3"]  # Å, added to the neighbour's position


def find_with_matscipy(atoms: ase.Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of all neighbor pairs within `cutoff` (Å), and the lattice translations between them."""
    from matscipy.neighbours import neighbour_list

    return neighbour_list("ijS", atoms, cutoff)


def find_with_ase(atoms: ase.Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of all neighbor pairs within `cutoff` (Å), and the lattice translations between them."""
    from ase.neighborlist import neighbor_list

    return neighbor_list("ijS", atoms, cutoff)


def all_edges(structures: Sequence[ase.Atoms], find: Finder, cutoff: float) -> Edges:
    """The edges of the concatenated graph; padding edges are longer than the cutoff."""
    parts, first = [], 0
    for atoms in structures:
        i, j, shift = find(atoms, cutoff)
        parts.append((i + first, j + first, shift @ atoms.cell.array))
        first += len(atoms)
    center, neighbor, shift = (np.concatenate(part) for part in zip(*parts, strict=True))
    extra = -len(center) % EDGE_STEP
    return Edges(
        np.pad(center, (0, extra)).astype(np.int32),
        np.pad(neighbor, (0, extra)).astype(np.int32),
        np.pad(shift, ((0, extra), (0, 0)), constant_values=2 * cutoff).astype(np.float32),
    )


def sample(
    params: Any,
    key: Array,
    structures: Sequence[ase.Atoms],
    plan: Step,
    step: Callable[..., Array],
    find: Finder,
    cutoff: float,
) -> list[ase.Atoms]:
    """Euler-Maruyama from the structures' positions through all steps of the plan."""
    structures = [atoms.copy() for atoms in structures]
    numbers = np.concatenate([atoms.numbers for atoms in structures])
    ends = np.cumsum([len(atoms) for atoms in structures])[:-1]
    for number, (noise, noise_next) in enumerate(zip(plan.noise, plan.noise_next, strict=True)):
        positions = np.concatenate([atoms.positions for atoms in structures]).astype(np.float32)
        edges = all_edges(structures, find, cutoff)
        moved = step(params, jax.random.fold_in(key, number), numbers, positions, edges, noise, noise_next)
        for atoms, part in zip(structures, np.split(np.asarray(moved, float), ends), strict=True):
            atoms.positions = part
            atoms.wrap()
    return structures


def make_step(config: DiffusionConfig, level: Callable[[Array], Array]) -> Callable[..., Array]:
    """The compiled step: the network, then the update."""

    @jax.jit
    def step(params, key, numbers, positions, edges, noise, noise_next):
        found = noise_of(params, config.model, numbers, positions, edges, level(noise)[None])
        variance = noise**2 - noise_next**2
        spread = jnp.where(noise_next > 0, jnp.sqrt(variance), 0.0)
        return positions - variance / noise * found + spread * jax.random.normal(key, positions.shape)

    return step


def noise_of(
    params: Mapping[str, Any],
    config: ModelConfig,
    numbers: Int[Array, " n"],
    positions: Float[Array, "n 3"],
    edges: Edges,
    levels: Float[Array, " l"],
) -> Float[Array, "n 3"]:
    """The noise of positions, without properties."""
    size, count = config.feature_size, len(numbers)
    conditioning = embed_levels(params, levels)
    center, neighbor = edges.center, edges.neighbor
    pairs = positions[neighbor] + edges.shift - positions[center]
    square = jnp.sum(pairs**2, -1)
    distance = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    direction = jnp.where(square[:, None] > 0, pairs / distance[:, None], 0.0)
    width = config.cutoff / (config.n_rbf - 1)
    radial = jnp.exp(-0.5 * (distance[:, None] / width - jnp.arange(config.n_rbf)[None]) ** 2)
    radial *= jnp.where(distance < config.cutoff, 0.5 * (1 + jnp.cos(jnp.pi * distance / config.cutoff)), 0.0)[:, None]

    collect = functools.partial(jax.ops.segment_sum, segment_ids=center, num_segments=count)
    scalars, vectors = params["~"]["species"][numbers], jnp.zeros((count, 3, size))
    for index in range(config.n_blocks):
        block = {name: jax.tree.map(lambda x, i=index: x[i], params[f"blocks/{name}"]) for name in BLOCK}
        inner, directions = modulate(block["modulation"], conditioning, *normalize(scalars, vectors))
        values = two_layers(block["message_in"], block["message_out"], inner)[neighbor]
        plain, outward, factor = jnp.split(values * (radial @ params["~"]["filters"][index]), 3, -1)
        scalars += collect(plain)
        along = outward[:, None] * direction[:, :, None] + factor[:, None] * directions[neighbor]
        vectors += collect(along)
        inner, directions = normalize(scalars, vectors)
        left, right = jnp.split(directions @ block["mix"]["w"], 2, -1)
        both = jnp.concatenate([inner, norms(right)], -1)
        plain, product, gate = jnp.split(two_layers(block["update_in"], block["update_out"], both), 3, -1)
        scalars += plain + product * jnp.sum(left * right, 1)
        vectors += gate[:, None] * left
    scalars, vectors = modulate(params["modulation"], conditioning, *normalize(scalars, vectors))
    for index in range(3):
        layer = {name: params[f"noise_{index}_{name}"] for name in ("norms", "vectors", "in", "out")}
        both = jnp.concatenate([scalars, norms(vectors @ layer["norms"]["w"])], -1)
        scalars, gate = jnp.split(two_layers(layer["in"], layer["out"], both), 2, -1)
        scalars, vectors = jax.nn.silu(scalars), vectors @ layer["vectors"]["w"] * (1 + gate)[:, None]
    return vectors[..., 0]


BLOCK = ("modulation", "message_in", "message_out", "mix", "update_in", "update_out")


def embed_levels(params: Mapping[str, Any], levels: Float[Array, " l"]) -> Float[Array, " d"]:
    """Fourier features of the levels through a network."""
    frequencies = np.geomspace(0.5, 64.0, 16).astype(np.float32)
    angles = jnp.pi * jnp.outer(levels, frequencies).ravel()
    features = jnp.concatenate([levels, jnp.sin(angles), jnp.cos(angles)])
    return two_layers(params["levels_in"], params["levels_out"], features)


def two_layers(first: Mapping[str, Array], second: Mapping[str, Array], x: Array) -> Array:
    """A network of one hidden layer."""
    return jax.nn.silu(x @ first["w"] + first["b"]) @ second["w"] + second["b"]


def modulate(layer: Mapping[str, Array], conditioning: Array, scalars: Array, vectors: Array) -> tuple[Array, Array]:
    """Features scaled and shifted by the conditioning, the same for all atoms."""
    scale, shift, gate = jnp.split(conditioning @ layer["w"] + layer["b"], 3, -1)
    return scalars * (1 + scale) + shift, vectors * (1 + gate)


def normalize(scalars: Array, vectors: Array) -> tuple[Array, Array]:
    """Layer norm of scalars, and vectors over their root mean square length."""
    scalars = scalars - scalars.mean(-1, keepdims=True)
    square = jnp.sum(vectors**2, 1, keepdims=True).mean(-1, keepdims=True)
    return scalars / jnp.sqrt(jnp.mean(scalars**2, -1, keepdims=True) + 1e-5), vectors / jnp.sqrt(square + 1e-2)


def norms(vectors: Float[Array, "n 3 f"]) -> Float[Array, "n f"]:
    """Smooth lengths."""
    return jnp.sqrt(jnp.sum(vectors**2, 1) + 1e-8) - 1e-4
