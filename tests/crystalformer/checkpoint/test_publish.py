"""Which files a run publishes, and that they hold the weights for inference."""

import jax
import numpy as np
import optax
import pytest

from crystalformer.checkpoint.publish import make_publisher, publish, publish_results
from crystalformer.checkpoint.published import load_checkpoint
from crystalformer.network.parameters import init_params
from matterform.training.mesh import make_mesh
from matterform.training.state import init_state


@pytest.fixture(scope="module")
def make_state(tiny_config):
    """States of a run after any number of steps, all leaves of the weights equal to that number."""
    first = init_state(init_params(jax.random.key(0), tiny_config), optax.sgd(0.1), make_mesh())

    def make(step: int):
        params = jax.tree.map(lambda x: jax.device_put(np.full(x.shape, step, x.dtype), x.sharding), first.params)
        return first._replace(step=jax.device_put(np.int32(step), first.step.sharding), params=params)

    return make


def value_in(path):
    """The value that all weights of a file have, and its epoch."""
    checkpoint = load_checkpoint(path)
    (value,) = {float(x) for leaf in jax.tree.leaves(checkpoint.params) for x in np.unique(leaf)}
    return value, checkpoint.epoch


def test_a_file_keeps_its_config_and_holds_the_moving_average_where_there_is_one(tmp_path, make_state, tiny_config):
    publish(tmp_path, tiny_config, make_state(3), epoch=7)
    assert value_in(tmp_path / "published" / "epoch_000007.pkl") == (3, 7)
    assert load_checkpoint(tmp_path / "published" / "epoch_000007.pkl").config == tiny_config
    publish(tmp_path, tiny_config, make_state(3)._replace(ema=make_state(4).params), epoch=8, name="best.pkl")
    assert value_in(tmp_path / "published" / "best.pkl")[0] == 4


def test_every_so_many_epochs_are_published(tmp_path, make_state, tiny_config):
    on_epoch_end = make_publisher(tmp_path, tiny_config, every=2)
    for epoch in range(1, 6):
        on_epoch_end(make_state(epoch), epoch)
    names = sorted(path.name for path in (tmp_path / "published").iterdir())
    assert names == ["epoch_000002.pkl", "epoch_000004.pkl"]


def test_the_last_and_the_best_state_are_published_at_the_end(tmp_path, make_state, tiny_config):
    publish_results(tmp_path, tiny_config, make_state(20), make_state(10), batches_per_epoch=5)
    assert value_in(tmp_path / "published" / "epoch_000004.pkl") == (20, 4)
    assert value_in(tmp_path / "published" / "best.pkl")[0] == 10
