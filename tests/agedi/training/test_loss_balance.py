"""Shares of the loss, and the running means that they are shares of."""

import jax
import jax.numpy as jnp
import numpy as np

from agedi.data.example import GraphExample
from agedi.training.loss_balance import RunningMeans, make_balanced_loss, start_means, update_means
from agedi.training.loss_shares import LossBalance


def test_running_means_begin_with_the_first_batch():
    means = start_means()
    for diffusion, regressor in ((2.0, 0.5), (4.0, 0.0)):
        means = update_means(means, {"diffusion": jnp.float32(diffusion), "regressor": jnp.float32(regressor)})
    # 2 and 0.5, then 1 % of the way to 4 and 0.
    np.testing.assert_allclose(means, (1.0, 2.02, 0.495), rtol=1e-6)


def test_each_part_counts_its_share_in_units_of_its_mean():
    def example_loss(params, key, example):
        parts = {"diffusion": 3 * params, "regressor": params**2}
        return sum(parts.values()), parts

    balanced = make_balanced_loss(example_loss, LossBalance(0.8, 0.2))

    def loss(params, means):
        return balanced(params, None, GraphExample(*[None] * 6), means)[0]

    means = RunningMeans(*map(jnp.float32, (1.0, 6.0, 0.1)))
    # At 2: 0.8 x 6 / 6 + 0.2 x 4 / 0.1, of slope 0.8 x 3 / 6 + 0.2 x 4 / 0.1.
    np.testing.assert_allclose(jax.value_and_grad(loss)(jnp.float32(2), means), (8.8, 8.4), rtol=1e-6)
    # Before the first step each is its own unit: 0.8 + 0.2, of slope 0.8 x 3 / 6 + 0.2 x 4 / 4.
    np.testing.assert_allclose(jax.value_and_grad(loss)(jnp.float32(2), start_means()), (1.0, 0.6), rtol=1e-6)
