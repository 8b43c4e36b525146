"""Checkpoints come back bit for bit, and half-written ones are never taken."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from matterform.training.checkpoint import Checkpoints, complete_steps, load_inference_params
from matterform.training.mesh import make_mesh
from matterform.training.state import init_state


def make_state(step=0, *, width=3, ema=False, seed=0):
    rng = np.random.default_rng(seed)
    params = {"layer": {"w": rng.normal(size=(2, width)).astype(np.float32), "scale": np.float32(0.1)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = init_state(params, optimizer, make_mesh(), ema=ema)
    return state._replace(step=state.step + step)


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints", keep=2)
    yield opened
    opened.close()


@pytest.mark.parametrize("ema", [False, True])
def test_restoring_gives_the_same_bits(checkpoints, ema):
    state, extra = make_state(7, ema=ema), {"best_loss": 0.1 + 0.2, "best_step": None, "totals": {"loss": 1e-300}}
    checkpoints.save(state, extra)
    restored, found = checkpoints.restore(make_state(ema=ema, seed=1))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for left, right in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(left, right, strict=True)
        assert left.sharding == right.sharding
    assert found == extra


def test_the_newest_are_kept(checkpoints):
    for step in (1, 5, 7, 12):
        checkpoints.save(make_state(step))
    assert complete_steps(checkpoints.directory) == [7, 12]
    assert checkpoints.latest_step() == 12
    assert checkpoints.restore(make_state(), step=7)[0].step == 7


def test_saving_an_older_step_drops_the_abandoned_later_ones(checkpoints):
    for step in (5, 10):
        checkpoints.save(make_state(step))
    checkpoints.save(make_state(5, seed=1))
    checkpoints.save(make_state(6, seed=1))
    assert complete_steps(checkpoints.directory) == [5, 6]
    restored, _ = checkpoints.restore(make_state(), step=5)
    np.testing.assert_array_equal(restored.params["layer"]["w"], make_state(seed=1).params["layer"]["w"])


def test_half_written_checkpoints_are_never_taken(checkpoints):
    checkpoints.save(make_state(5))
    checkpoints.close()
    folder = checkpoints.directory
    shutil.copytree(folder / "5" / "state", folder / "9" / "state")  # no mark at all
    shutil.copytree(folder / "5", folder / "11")  # a mark without the time of completion
    mark = folder / "11" / "_CHECKPOINT_METADATA"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "commit_timestamp_nsecs": None}))
    shutil.copytree(folder / "5", folder / "13.orbax-checkpoint-tmp")  # killed before the renaming
    reopened = Checkpoints(folder, keep=2)
    assert reopened.latest_step() == 5
    assert reopened.restore(make_state(seed=1))[0].step == 5
    reopened.save(make_state(8))
    reopened.save(make_state(11))
    assert complete_steps(folder) == [8, 11]
    assert reopened.restore(make_state())[0].step == 11
    reopened.close()


def test_a_missing_checkpoint_is_one_clear_line(checkpoints):
    with pytest.raises(ValueError, match=r"checkpoints holds no complete checkpoint \(found \[\]\)") as caught:
        checkpoints.restore(make_state())
    assert "\n" not in str(caught.value)
    checkpoints.save(make_state(5))
    with pytest.raises(ValueError, match=r"no complete checkpoint of step 6 \(found \[5\]\)"):
        checkpoints.restore(make_state(), step=6)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"width": 4}, r"opt_state/1/0/mu/layer/w must be float32\[2, 4\], found float32\[2, 3\]"),
        ({"ema": True}, r"ema/layer/scale must be float32\[\], found absent"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(checkpoints, options, difference):
    checkpoints.save(make_state(5))
    checkpoints.close()
    reopened = Checkpoints(checkpoints.directory)
    with pytest.raises(ValueError, match=f"5 does not fit this model and optimiser: {difference}"):
        reopened.restore(make_state(**options))
    reopened.close()


def test_importing_is_light_and_touches_no_device():
    code = """
import importlib, pkgutil, sys
import matterform.training as training
for module in pkgutil.iter_modules(training.__path__):
    importlib.import_module(f"matterform.training.{module.name}")
assert not {"orbax", "tensorboardX", "rich", "wandb", "flax", "pandas"} & set(sys.modules)
"""
    env = dict(os.environ, JAX_PLATFORMS="no_such_backend")  # making one array would raise
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


@pytest.mark.parametrize("ema", [False, True])
def test_parameters_for_use_load_without_the_optimiser(checkpoints, ema):
    state = make_state(7, ema=ema)
    if ema:
        state = state._replace(ema=jax.tree.map(lambda leaf: leaf + 1, state.params))
    checkpoints.save(make_state(6, ema=ema, seed=1))
    checkpoints.save(state)
    found = load_inference_params(checkpoints.directory, make_state(seed=2).params)
    expected = state.ema if ema else state.params
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_parameters_of_another_model_are_refused(checkpoints, tmp_path):
    checkpoints.save(make_state(6))
    message = r"does not fit this model: layer/w must be float32\[2, 4\], found float32\[2, 3\]"
    with pytest.raises(ValueError, match=message):
        load_inference_params(checkpoints.directory, make_state(width=4).params)
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        load_inference_params(tmp_path / "nothing", make_state().params)
