"""The input of the network as a tree of arrays."""

import jax
import numpy as np

from atomformer.data.structure import Edges, Structure


def test_only_what_a_structure_has_is_a_leaf():
    """So that molecules and crystals give batches of different, but fixed, forms, which vmap and jit can map over."""
    molecule = Structure(np.array([6, 8]), np.zeros((2, 3)), np.ones(2, bool))
    assert len(jax.tree.leaves(molecule)) == 3
    edges = Edges(np.zeros(1, int), np.zeros(1, int), np.zeros((1, 3), int), np.ones(1, bool))
    crystal = molecule._replace(cell=np.eye(3), pbc=np.ones(3, bool), edges=edges)
    assert len(jax.tree.leaves(crystal)) == 3 + 2 + 4
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), crystal, crystal)
    assert batch.edges.shift.shape == (2, 1, 3)
    assert jax.vmap(lambda structure: structure.positions.sum())(batch).shape == (2,)
