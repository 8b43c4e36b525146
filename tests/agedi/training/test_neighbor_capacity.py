"""Slots for neighbors, estimated and measured."""

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule

from agedi.config import DiffusionConfig, ModelConfig
from agedi.data.graph import from_atoms
from agedi.noise.kernels import lattice_sums
from agedi.training.neighbor_capacity import measure_capacity

pytestmark = pytest.mark.usefixtures("quick")


def test_crowded_atoms_get_slots():
    # Sixteen atoms within 2 angstrom, in a cell where as many at random would have one neighbour each.
    rng = np.random.default_rng(0)
    cluster = ase.Atoms("H16", rng.uniform(0, 1.0, (16, 3)), cell=12 * np.eye(3), pbc=True)
    config = DiffusionConfig(model=ModelConfig(cutoff=3.0), sigma_max=6.0)
    graph = from_atoms(cluster)
    sums = lattice_sums(graph.cell[None], graph.pbc[None])
    neighbors = measure_capacity(config, [graph], np.array([16]), sums, 0)
    assert neighbors.images == (0, 0, 0)
    assert 15 <= neighbors.capacity[16] <= 24


def test_each_padded_length_gets_its_own_slots():
    structures = [bulk("Cu", cubic=True), bulk("Cu", cubic=True) * (1, 1, 2), molecule("H2O")]
    graphs = [from_atoms(atoms) for atoms in structures]
    cells, pbcs = (np.stack([getattr(graph, name) for graph in graphs]) for name in ("cell", "pbc"))
    config = DiffusionConfig(model=ModelConfig(cutoff=3.0), sigma_max=2.0)
    lengths = np.array([4, 8, 4])
    found = measure_capacity(config, graphs, lengths, lattice_sums(cells, pbcs), 0)
    assert set(found.capacity) == {4, 8}
    assert found.images == (1, 1, 1)
    for slots in found.capacity.values():
        assert slots >= 12  # nearest neighbors in fcc
        assert slots % 8 == 0
    again = measure_capacity(config, graphs, lengths, lattice_sums(cells, pbcs), 0)
    assert again == found
