"""The initial state owns its memory."""

import jax
import numpy as np
import optax

from matterform.training.mesh import make_mesh
from matterform.training.state import inference_params, init_state
from matterform.training.step import Batch, make_train_step


def test_a_step_leaves_the_given_parameters_alive():
    params = {"w": jax.numpy.ones(3)}
    optimizer, mesh = optax.adam(0.1), make_mesh()
    step = make_train_step(lambda p, k, x: ((p["w"] * x).sum(), {}), optimizer, jax.random.key(0), mesh)
    state = init_state(params, optimizer, mesh)
    step(state, Batch(np.ones((2, 3), np.float32), np.ones(2, np.float32)))
    np.testing.assert_array_equal(params["w"], 1)
    assert state.params["w"].is_deleted()


def test_inference_uses_the_moving_average_where_there_is_one():
    optimizer, mesh = optax.adam(0.1), make_mesh()
    plain = init_state({"w": np.ones(3, np.float32)}, optimizer, mesh)
    assert plain.ema is None
    assert inference_params(plain) is plain.params
    averaged = init_state({"w": np.ones(3, np.float32)}, optimizer, mesh, ema=True)
    assert inference_params(averaged) is averaged.ema
