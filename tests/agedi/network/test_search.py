"""The neighbor search inside compiled functions: capacity by padded length, and overflow."""

import jax
import numpy as np
from ase.build import bulk

from agedi.data.graph import from_atoms, pad_graph
from agedi.network.search import make_search


def test_slots_follow_the_padded_length():
    search = jax.jit(make_search(3.0, {4: 16, 8: 24}, (1, 1, 1)))
    graph = from_atoms(bulk("Cu", cubic=True))  # nearest neighbors at 2.55 angstrom, the next at 3.61
    for length, slots in ((4, 16), (8, 24)):
        edges = search(pad_graph(graph, length)).edges
        assert edges.mask.shape == (length, slots)
        assert np.asarray(edges.mask.sum(axis=1)).tolist() == [12] * 4 + [0] * (length - 4)
        assert not edges.overflow


def test_too_few_slots_are_reported():
    graph = from_atoms(bulk("Cu", cubic=True))
    assert jax.jit(make_search(3.0, 8, (1, 1, 1)))(graph).edges.overflow
