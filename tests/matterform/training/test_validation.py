"""Means over a held-out data set."""

import numpy as np

from matterform.training.batches import make_batch_plan
from matterform.training.mesh import make_mesh
from matterform.training.step import make_eval_step
from matterform.training.validation import Validation, run_validation


def test_every_example_counts_once():
    values = np.arange(7, dtype=np.float32)  # the second batch of 4 is filled up

    def loss(params, key, example):
        assert key is None
        return params * example, {"square": example**2}

    mesh = make_mesh()
    plan = make_batch_plan(np.ones(7, int), 4, (1,), 0)
    validation = Validation(make_eval_step(loss, mesh), plan, lambda rows, length: values[rows])
    means = run_validation(validation, np.float32(2), mesh)
    assert means == {"loss": 2 * values.mean(), "square": np.mean(values**2)}
