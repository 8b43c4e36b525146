"""Padded lengths, sizes of compiled programs, and many structures run in chunks."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from ase.build import bulk, molecule

from agedi.data.buckets import batch_rows, bucket, bucket_capacity, counted, geometry_of, run_in_chunks
from agedi.data.graph import from_atoms
from matterform.neighbors import image_counts


class Result(NamedTuple):
    """What a fake program returns."""

    number: np.ndarray
    overflow: np.ndarray


def geometries_of(*structures):
    return [geometry_of(from_atoms(atoms)) for atoms in structures]


def test_padded_lengths_are_few():
    assert [bucket(n) for n in (1, 4, 5, 8, 9, 32, 33, 64, 65)] == [4, 4, 8, 8, 12, 32, 40, 64, 80]
    assert all(n <= bucket(n) <= max(4, n * 1.25 + 3) for n in range(1, 300))


def test_a_program_holds_the_neighbors_of_all_its_structures():
    small, large = bulk("Cu", cubic=True), bulk("Cu", cubic=True) * (2, 1, 1)
    sizes = bucket_capacity(geometries_of(small, large), 3.0)
    assert sizes.length == 8
    assert sizes.slots % 8 == 0
    assert sizes.slots >= 12
    assert sizes.images == tuple(image_counts(small.cell.array, small.pbc, 3.0))
    assert bucket_capacity(geometries_of(molecule("H2O")), 3.0).images == (0, 0, 0)


def test_results_come_in_order_though_sizes_run_together():
    structures = [bulk("Cu", cubic=True) * (1, 1, repeats) for repeats in (3, 1, 2, 1, 3)]
    lengths = []

    def run(rows, sizes):
        lengths.append(sizes.length)
        return Result(rows[0], np.zeros(len(rows[0]), bool))

    found = run_in_chunks(
        geometries_of(*structures), lambda index, length: (np.array(index),), run, cutoff=3.0, batch_size=2
    )
    assert [int(result.number) for result in found] == [0, 1, 2, 3, 4]
    assert lengths == [4, 12, 12]  # by increasing size: the two of 4 atoms, those of 8 and 12, the other of 12


def test_a_chunk_that_overflows_runs_again_and_later_ones_start_larger(caplog):
    capacities = []

    def run(rows, sizes):
        capacities.append(sizes.slots)
        return Result(rows[0], np.full(len(rows[0]), sizes.slots < 3 * capacities[0]))

    with caplog.at_level("INFO"):
        geometries = geometries_of(*[bulk("Cu", cubic=True)] * 4)
        found = list(run_in_chunks(geometries, lambda i, length: (np.array(i),), run, cutoff=3.0, batch_size=2))
    first = capacities[0]
    assert capacities == [first, 2 * first, 4 * first, 4 * first]
    assert [int(result.number) for result in found] == [0, 1, 2, 3]
    assert len(caplog.messages) == 2


def test_a_batch_must_have_rows():
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        next(run_in_chunks([], lambda i, length: None, lambda rows, sizes: None, cutoff=3.0, batch_size=0))


def test_batches_are_powers_of_two_or_full(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert [batch_rows(count, 10) for count in (1, 2, 3, 5, 8, 9, 10)] == [1, 2, 4, 8, 8, 10, 10]
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert [batch_rows(count, 10) for count in (1, 3, 5, 10)] == [4, 4, 8, 12]


def test_counting_changes_nothing():
    assert list(counted(iter("abc"), "letters", 3)) == ["a", "b", "c"]
