"""Examples are trees of arrays: one row of a batch is the example itself."""

import jax
import numpy as np

from agedi.data.batches import make_take
from agedi.data.dataset import create_dataset
from agedi.data.example import GraphExample


def test_a_row_of_a_batch_is_the_example(surfaces):
    take = make_take(create_dataset(surfaces, conditioning="gap", force_field=True))
    batch, alone = take(np.array([0, 2]), 14), take(np.array([2]), 14)
    assert isinstance(batch, GraphExample)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(batch)} == {2}
    jax.tree.map(lambda rows, row: np.testing.assert_array_equal(rows[1], row[0]), batch, alone)
