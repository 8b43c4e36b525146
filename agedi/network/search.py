"""The neighbor search of a model, inside compiled programs.

With it, a sampler step takes 1.11 times as long as the network alone. A plain sampler, with neighbor lists made on the
host and a list of edges in the network, takes 4.1 times as long with matscipy's lists and 13.5 times with ASE's (64
structures on two cores; benchmarks/cases/agedi_speed.py, benchmarks/results/agedi_speed.jsonl).
"""

from collections.abc import Callable, Mapping

from agedi.data.graph import AtomsGraph
from matterform.neighbors import neighbor_list

Search = Callable[[AtomsGraph], AtomsGraph]


def make_search(cutoff: float, capacity: int | Mapping[int, int], images: tuple[int, int, int]) -> Search:
    """Returns `search(graph)`, the graph with its edges, whose `overflow` is set if an atom has too many neighbors.

    Args:
        cutoff: largest distance of neighbors, Å.
        capacity: neighbor slots per atom; a mapping by padded length if buckets differ.
        images: periodic images searched each way along the lattice vectors (`matterform.neighbors.image_counts`).
    """

    def search(graph: AtomsGraph) -> AtomsGraph:
        slots = capacity if isinstance(capacity, int) else capacity[graph.x.shape[0]]
        edges = neighbor_list(
            graph.pos, graph.cell, graph.pbc, graph.present, cutoff=cutoff, capacity=slots, images=images
        )
        return graph._replace(edges=edges)

    return search
