"""Room for neighbours in training: as many slots as noised and clean structures were seen to need."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from agedi.config import DiffusionConfig
from agedi.data.buckets import CAPACITY_STEP, Geometry, room_for
from agedi.data.graph import AtomsGraph, pad_graph, stack_graphs
from agedi.network.search import make_search
from agedi.noise.kernels import LatticeSums
from agedi.noise.noisers import make_perturb
from matterform.neighbors import images_for

TRIALS = 128  # structures tried of each length
SPARE = 1.2  # times the most neighbours seen

logger = logging.getLogger(__name__)


class Room(NamedTuple):
    """What `agedi.network.search.make_search` needs for a data set."""

    capacity: dict[int, int]  # slots an atom, by padded length
    images: tuple[int, int, int]


def measure_room(
    config: DiffusionConfig, graphs: Sequence[AtomsGraph], lengths: Int[np.ndarray, " n"], sums: LatticeSums, seed: int
) -> Room:
    """Room for these structures at any diffusion time; `lengths` are those they are padded to."""
    cutoff = config.model.cutoff
    cells, pbcs = [np.asarray(graph.cell) for graph in graphs], [np.asarray(graph.pbc) for graph in graphs]
    images = images_for(cells, pbcs, cutoff)
    capacity = {}
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        expected = room_for([Geometry(length, cells[row], pbcs[row]) for row in rows], cutoff).capacity
        if any(pbcs[row].any() for row in rows):
            tried = rows[np.random.default_rng([seed, length]).permutation(len(rows))[:TRIALS]]
            key = jax.random.fold_in(jax.random.key(seed), length)
            expected = _needed(config, [graphs[int(row)] for row in tried], length, sums, images, expected, key)
        capacity[length] = expected
    return Room(capacity, images)


def _needed(
    config: DiffusionConfig,
    graphs: list[AtomsGraph],
    length: int,
    sums: LatticeSums,
    images: tuple[int, int, int],
    capacity: int,
    key: PRNGKeyArray,
) -> int:
    """At least `capacity`, and more where atoms crowd: each structure is tried clean and at a random time."""
    perturb = make_perturb(config, sums)
    batch = stack_graphs([pad_graph(graph, length) for graph in graphs])
    keys = jax.random.split(key, len(graphs))
    while True:
        search = make_search(config.model.cutoff, capacity, images)

        def most(key: PRNGKeyArray, graph: AtomsGraph, search=search) -> tuple[Array, Array]:
            time_key, noise_key = jax.random.split(key)
            edges = [
                search(perturb(noise_key, graph, t).graph).edges
                for t in (jnp.float32(config.eps), jax.random.uniform(time_key))
            ]
            found = jnp.stack([jnp.sum(e.mask, axis=-1).max() for e in edges])
            return found.max(), jnp.stack([e.overflow for e in edges]).any()

        found, overflow = jax.jit(jax.vmap(most))(keys, batch)
        if not np.any(overflow):
            return max(capacity, CAPACITY_STEP * -(-int(SPARE * np.max(found)) // CAPACITY_STEP))
        capacity *= 2
