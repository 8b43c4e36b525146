"""The neighbour search of a model: which cutoff, how many slots, how many images."""

from collections.abc import Callable, Mapping

from agedi.data.graph import AtomsGraph
from matterform.neighbors import neighbor_list

Search = Callable[[AtomsGraph], AtomsGraph]


def make_search(cutoff: float, capacity: int | Mapping[int, int], images: tuple[int, int, int]) -> Search:
    """Returns `search(graph)`, the graph with its edges.

    Args:
        cutoff: in Å.
        capacity: slots a row; by padded length where buckets differ.
        images: how many periodic images each way hold every neighbour (`matterform.neighbors.image_counts`).
    """

    def search(graph: AtomsGraph) -> AtomsGraph:
        slots = capacity if isinstance(capacity, int) else capacity[graph.x.shape[0]]
        edges = neighbor_list(
            graph.pos, graph.cell, graph.pbc, graph.present, cutoff=cutoff, capacity=slots, images=images
        )
        return graph._replace(edges=edges)

    return search
