"""Batches contain the structures, their labels and their repeated cells."""

import jax
import numpy as np
from ase.calculators.emt import EMT

from agedi.data.batches import make_take
from agedi.data.dataset import all_graphs, create_dataset
from agedi.data.graph import to_atoms


def test_batches_hold_the_structures_and_their_labels(surfaces):
    dataset = create_dataset(surfaces, mask="MaskFixed", force_field=True, confinement=(1.0, 12.0))
    batch = make_take(dataset)(np.array([2, 0]), 14)
    for row, atoms in enumerate([surfaces[2], surfaces[0]]):
        back = to_atoms(jax.tree.map(lambda leaf, row=row: leaf[row], batch.graph))
        np.testing.assert_array_equal(back.numbers, atoms.numbers)
        np.testing.assert_allclose(back.positions, atoms.positions, atol=1e-5)
        np.testing.assert_allclose(back.cell, atoms.cell, atol=1e-5)
        assert back.constraints[0].index.tolist() == [0]
        n = len(atoms)
        assert batch.energy[row] == np.float32(atoms.get_potential_energy())
        np.testing.assert_allclose(batch.forces[row, :n], atoms.get_forces(apply_constraint=False), rtol=1e-5)
        assert np.abs(batch.forces[row, 0]).max() > 1e-3  # of a fixed atom, without its constraint
        assert not batch.forces[row, n:].any()
    assert batch.diffuse.all()
    assert batch.index.tolist() == [2, 0]
    for leaf in jax.tree.leaves(batch):
        assert leaf.dtype in (np.float32, np.int32, bool)


def test_repeated_cells_equal_those_of_ase(surfaces):
    dataset = create_dataset(
        surfaces,
        mask="MaskFixed",
        conditioning="energy,gap,height",
        conditioning_type=["scalar", "scalar", "node"],
        repeat=3,
        repeat_epoch=50,
    )
    take, graphs = make_take(dataset), all_graphs(dataset)
    for row, (k, atoms) in enumerate((k, atoms) for k in (1, 2, 3) for atoms in surfaces):
        expected = atoms.repeat((k, k, 1))
        batch = take(np.array([row, 0]), len(expected) + 3)
        back = to_atoms(jax.tree.map(lambda leaf: leaf[0], batch.graph))
        for found in (back, to_atoms(graphs[row])):
            np.testing.assert_array_equal(found.numbers, expected.numbers)
            np.testing.assert_allclose(found.positions, expected.positions, atol=1e-5)
            np.testing.assert_allclose(found.cell, expected.cell, atol=1e-5)
            assert found.constraints[0].index.tolist() == expected.constraints[0].index.tolist()
        expected.calc = EMT()  # whose energy of k x k cells is k x k times that of one
        np.testing.assert_allclose(batch.energy[0], expected.get_potential_energy(), rtol=1e-5)
        np.testing.assert_allclose(
            batch.forces[0, : len(expected)], expected.get_forces(apply_constraint=False), atol=1e-5
        )
        np.testing.assert_allclose(batch.conditions["energy"][0], batch.energy[0], rtol=1e-6)
        assert batch.conditions["gap"][0] == np.float32(atoms.info["gap"])
        np.testing.assert_allclose(
            batch.conditions["height"][0, : len(expected)], np.tile(atoms.arrays["height"], k * k), rtol=1e-6
        )
        assert not batch.conditions["height"][0, len(expected) :].any()
