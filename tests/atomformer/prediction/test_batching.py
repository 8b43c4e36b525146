"""Batches of structures: bounds on their size, order of the results, reading as results are taken."""

import ase
import numpy as np
import pytest

from atomformer.prediction import batching
from atomformer.prediction.batching import evaluate_batches, grown_capacity


def random_atoms(counts, seed=0):
    """Molecules of atoms on a jittered grid, so that none are too close."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3) * 1.4
    return [
        ase.Atoms(rng.choice([1, 6, 8], n), rng.permutation(grid)[:n] + rng.uniform(-0.3, 0.3, (n, 3))) for n in counts
    ]


@pytest.fixture
def shapes_and_sums(tiny_config):
    """A function that evaluates structures without a network: the batches' shapes, and sums of atomic numbers."""

    def run(structures, max_pairs):
        shapes = []

        def function(batch):
            shapes.append(batch.tokens.shape)
            return np.where(batch.mask, batch.tokens, 0).sum(axis=1)

        results = evaluate_batches(function, tiny_config, structures, max_pairs)
        return shapes, (total for _, _, total in results)

    return run


def test_batches_stay_within_the_bounds_on_pairs_and_atoms(shapes_and_sums):
    structures = random_atoms([10] * 7 + [4] * 9)
    shapes, sums = shapes_and_sums(structures, 2000)
    assert list(sums) == [atoms.numbers.sum() for atoms in structures]
    assert sorted(shapes) == [(2, 10)] * 4 + [(5, 4)] * 2
    rows = [{"input_ids": np.ones(200, int), "coords": np.eye(200, 3) + np.arange(200)[:, None]}] * 5
    shapes, sums = shapes_and_sums(rows, 80_000)
    assert len(list(sums)) == 5
    assert shapes == [(2, 200)] * 3


def test_structures_are_read_as_results_are_taken(shapes_and_sums, monkeypatch):
    monkeypatch.setattr(batching, "WINDOW_ATOMS", 6)
    taken = []

    def stream():
        for atoms in random_atoms([3] * 8):
            taken.append(atoms)
            yield atoms

    _, sums = shapes_and_sums(stream(), 100)
    next(sums)
    assert len(taken) == 2
    assert len(list(sums)) == 7


def test_a_few_structures_of_a_size_do_not_set_its_batches_for_good(shapes_and_sums, monkeypatch):
    monkeypatch.setattr(batching, "WINDOW_ATOMS", 20)
    shapes, sums = shapes_and_sums(random_atoms([8, 8] + [4] + [4] * 15), 10_000)
    assert len(list(sums)) == 18
    assert shapes == [(2, 8), (1, 4), (5, 4), (5, 4), (5, 4)]


def test_capacities_grow_in_steps():
    capacity, seen = 0, set()
    for needed in range(1, 1000):
        capacity = grown_capacity(capacity, needed)
        assert capacity >= needed
        seen.add(capacity)
    assert len(seen) < 35
    assert grown_capacity(100, 40) == 100
