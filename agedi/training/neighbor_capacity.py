"""Number of neighbor slots in training, measured on noised and clean structures of the data set."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from agedi.config import DiffusionConfig
from agedi.data.buckets import CAPACITY_STEP, Geometry, bucket_capacity
from agedi.data.graph import AtomsGraph, pad_graph, stack_graphs
from agedi.network.search import make_search
from agedi.noise.kernels import LatticeSums
from agedi.noise.noisers import make_perturb
from matterform.neighbors import images_for

TRIALS = 128  # number of structures sampled per padded length
SPARE = 1.2  # ratio of the capacity to the largest number of neighbors found

logger = logging.getLogger(__name__)


class NeighborCapacity(NamedTuple):
    """Sizes of the neighbor search for a data set, as `agedi.network.search.make_search` takes them."""

    capacity: dict[int, int]  # neighbor slots per atom, by padded length
    images: tuple[int, int, int]  # periodic images searched each way along the lattice vectors


def measure_capacity(
    config: DiffusionConfig,
    graphs: Sequence[AtomsGraph],
    padded_lengths: Int[np.ndarray, " n"],
    sums: LatticeSums,
    seed: int,
) -> NeighborCapacity:
    """Slots that hold the neighbors of these structures at any diffusion time.

    They are estimated from the density, and for periodic structures measured: a sample of structures is noised, and
    the largest number of neighbors gets a margin of 20 %.

    Args:
        padded_lengths: number of atoms that each structure is padded to.
        sums: number of terms in the lattice sums of the noise kernel in these cells.
        seed: random seed of the sample and of its noise.
    """
    cutoff = config.model.cutoff
    cells, pbcs = [np.asarray(graph.cell) for graph in graphs], [np.asarray(graph.pbc) for graph in graphs]
    images = images_for(cells, pbcs, cutoff)
    capacity = {}
    for length in np.unique(padded_lengths).tolist():
        rows = np.flatnonzero(padded_lengths == length)
        slots = bucket_capacity([Geometry(length, cells[row], pbcs[row]) for row in rows], cutoff).slots
        if any(pbcs[row].any() for row in rows):
            sample = rows[np.random.default_rng([seed, length]).permutation(len(rows))[:TRIALS]]
            batch = stack_graphs([pad_graph(graphs[int(row)], length) for row in sample])
            key = jax.random.fold_in(jax.random.key(seed), length)
            slots = _measure(config, batch, sums, NeighborCapacity({length: slots}, images), key)
        capacity[length] = slots
    return NeighborCapacity(capacity, images)


def _measure(
    config: DiffusionConfig, batch: AtomsGraph, sums: LatticeSums, start: NeighborCapacity, key: PRNGKeyArray
) -> int:
    """At least the slots of `start`, and more where a structure, almost clean or at a random time, needs them."""
    perturb = make_perturb(config, sums)
    count, length = batch.x.shape
    slots = start.capacity[length]
    keys = jax.random.split(key, count)
    while True:
        search = make_search(config.model.cutoff, slots, start.images)

        def most_neighbors(key: PRNGKeyArray, graph: AtomsGraph, search=search) -> tuple[Array, Array]:
            time_key, noise_key = jax.random.split(key)
            edges = [
                search(perturb(noise_key, graph, t).graph).edges
                for t in (jnp.float32(config.smallest_time), jax.random.uniform(time_key))
            ]
            found = jnp.stack([jnp.sum(e.mask, axis=-1).max() for e in edges])
            return found.max(), jnp.stack([e.overflow for e in edges]).any()

        found, overflow = jax.jit(jax.vmap(most_neighbors))(keys, batch)
        if not np.any(overflow):
            return max(slots, CAPACITY_STEP * -(-int(SPARE * np.max(found)) // CAPACITY_STEP))
        slots *= 2
