"""The neighbor search of a model: slots by padded length, and overflow."""

import ase.build
import jax
import numpy as np
import pytest

from agedi.data.graph import from_atoms, pad_graph
from agedi.network.search import make_search
from matterform.neighbors import image_counts

COPPER = ase.build.bulk("Cu", cubic=True)
NEIGHBORS = 12  # within 3 Å


def searched(capacity, length=6):
    graph = pad_graph(from_atoms(COPPER), length)
    images = image_counts(graph.cell, graph.pbc, 3.0)
    return jax.jit(make_search(3.0, capacity, images))(graph)


@pytest.mark.parametrize("capacity", [NEIGHBORS, {4: 1, 6: NEIGHBORS}])
def test_the_graph_gets_its_edges(capacity):
    graph = searched(capacity)
    assert graph.edges.index.shape == (6, NEIGHBORS)
    np.testing.assert_array_equal(graph.edges.mask.sum(axis=-1), [NEIGHBORS] * 4 + [0] * 2)
    assert not graph.edges.overflow
    np.testing.assert_array_equal(graph.pos, pad_graph(from_atoms(COPPER), 6).pos)


def test_too_few_slots_are_reported():
    assert searched(NEIGHBORS - 1).edges.overflow
