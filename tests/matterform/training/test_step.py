"""The step against hand-worked numbers, and its independence of how a batch is split."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from matterform.training.mesh import make_mesh, to_global
from matterform.training.state import init_state
from matterform.training.step import Batch, make_eval_step, make_parted_step, make_train_step, mean_metrics, warmed_up


def squared_error(params, key, example):
    error = params["w"] * example["x"] - example["y"]
    return 0.5 * error**2, {"error": error}


def hand_batch() -> Batch:
    examples = {"x": np.array([1, 2, 3], np.float32), "y": np.ones(3, np.float32)}
    return Batch(examples, np.array([1, 2, 0], np.float32))


def start(optimizer, **options):
    return init_state({"w": np.float32(2)}, optimizer, make_mesh(), **options)


def test_step_takes_the_weighted_mean_gradient():
    # With w = 2 the errors are 1, 3, 5 and the gradients error * x are 1, 6, 15; weights 1, 2, 0.
    optimizer = optax.sgd(1.0)
    step = make_train_step(squared_error, optimizer, jax.random.key(0), make_mesh())
    state, metrics = step(start(optimizer), hand_batch())
    np.testing.assert_allclose(metrics["loss"], (0.5 * 1 + 2 * 4.5) / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["error"], (1 + 2 * 3) / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], (1 + 2 * 6) / 3, rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], 2 - 13 / 3, rtol=1e-6)
    assert metrics["nonfinite"] == 0
    assert state.step == 1


def test_step_in_parts_of_two_shapes_equals_the_whole_step():
    optimizer, mesh, batch = optax.adam(0.1), make_mesh(), hand_batch()
    whole, expected = make_train_step(squared_error, optimizer, jax.random.key(0), mesh)(start(optimizer), batch)
    step, state, sums = make_parted_step(squared_error, optimizer, mesh), start(optimizer), None
    for rows in (slice(0, 1), slice(1, 3)):
        sums = step.add(state.params, sums, jax.tree.map(lambda x, rows=rows: x[rows], batch))
    state, metrics = step.finish(state, sums)
    assert state.step == 1
    np.testing.assert_allclose(state.params["w"], whole.params["w"], rtol=1e-6)
    assert jax.tree.map(float, metrics) == pytest.approx(jax.tree.map(float, expected), rel=1e-6)


def test_moving_average_starts_from_the_parameters():
    optimizer = optax.sgd(1.0)
    step = make_train_step(squared_error, optimizer, jax.random.key(0), make_mesh(), ema_decay=0.75)
    state, _ = step(start(optimizer, ema=True), hand_batch())
    np.testing.assert_allclose(
        state.ema["w"], 0.1 * 2 + 0.9 * (2 - 13 / 3), rtol=1e-6
    )  # warming up: (1 + 0) / (10 + 0)
    late, _ = step(start(optimizer, ema=True)._replace(step=jnp.int32(26)), hand_batch())
    np.testing.assert_allclose(late.ema["w"], 0.75 * 2 + 0.25 * (2 - 13 / 3), rtol=1e-6)  # 27 / 36 is the decay itself


def test_moving_average_of_a_short_run_forgets_its_start():
    average, value = 0.0, 1.0
    for step in range(100):
        decay = float(warmed_up(0.999, jnp.int32(step)))
        average = decay * average + (1 - decay) * value
    assert average > 0.999  # with the decay alone it would be 0.095


def test_evaluation_sums_to_weighted_means_over_batches():
    evaluate, batch = make_eval_step(squared_error, make_mesh()), hand_batch()
    light = batch._replace(weight=np.array([0, 0, 1], np.float32))
    means = mean_metrics(evaluate({"w": jnp.float32(2)}, b) for b in (batch, light))
    assert means == pytest.approx({"loss": (0.5 + 2 * 4.5 + 12.5) / 4, "error": (1 + 2 * 3 + 5) / 4}, rel=1e-6)
    with pytest.raises(ValueError, match="at least one batch"):
        mean_metrics([])


def test_evaluation_gets_no_key():
    def loss(params, key, example):
        return (example * params if key is None else jnp.nan), {}

    sums = make_eval_step(loss, make_mesh())(jnp.float32(3), Batch(np.ones(2, np.float32), np.ones(2, np.float32)))
    assert sums["loss"] == 6


def test_accumulation_does_not_change_the_step(tiny):
    optimizer, mesh, states = optax.adam(0.01), make_mesh(), []
    batch = Batch(tiny.take(np.arange(16), 8), np.arange(16) % 5 / np.float32(2))
    for accumulate in (1, 4):
        step = make_train_step(tiny.example_loss, optimizer, jax.random.key(0), mesh, accumulate=accumulate)
        state = init_state(tiny.init_params(), optimizer, mesh)
        for _ in range(3):
            state, metrics = step(state, to_global(mesh, batch))
        states.append((state, metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *states)


def test_examples_of_a_batch_and_steps_draw_different_dropout(tiny):
    def loss(params, key, example):
        return params * jax.random.uniform(key), {}

    optimizer, mesh = optax.sgd(0.0), make_mesh()
    step = make_train_step(loss, optimizer, jax.random.key(0), mesh, accumulate=2)
    state, draws = init_state(np.float32(1), optimizer, mesh), []
    for row in range(4):
        weight = (np.arange(4) == row).astype(np.float32)
        state, metrics = step(state, Batch(np.zeros(4, np.float32), weight))
        draws.append(float(metrics["loss"]))
    same_step = []
    for row in range(4):
        weight = (np.arange(4) == row).astype(np.float32)
        _, metrics = step(init_state(np.float32(1), optimizer, mesh), Batch(np.zeros(4, np.float32), weight))
        same_step.append(float(metrics["loss"]))
    assert same_step[0] == draws[0]
    assert len(set(draws + same_step)) == 7


def test_one_compilation_per_bucket(tiny, caplog):
    traced = []

    def loss(params, key, example):
        traced.append(example["values"].shape)  # runs only while tracing
        return tiny.example_loss(params, key, example)

    optimizer, mesh = optax.adam(0.01), make_mesh()
    step = make_train_step(loss, optimizer, jax.random.key(0), mesh)
    state = init_state(tiny.init_params(), optimizer, mesh)
    counts = []
    with jax.log_compiles(True):
        for length in (4, 8, 4, 8, 4):
            batch = Batch(tiny.take(np.arange(8), length), np.ones(8, np.float32))
            state, _ = step(state, to_global(mesh, batch))
            counts.append(len(traced))
    assert counts[0] > 0
    assert counts[1] == 2 * counts[0]
    assert counts[1:] == [counts[1]] * 4
    assert set(traced) == {(4,), (8,)}
    assert sum("Compiling jit(step)" in message for message in caplog.messages) == 2


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_nonfinite_gradient_raises_the_flag(bad):
    optimizer = optax.sgd(1.0)
    step = make_train_step(squared_error, optimizer, jax.random.key(0), make_mesh())
    batch = hand_batch()
    batch.examples["y"][1] = bad
    _, metrics = step(start(optimizer), batch)
    assert metrics["nonfinite"] == 1


def test_wrong_options_are_refused():
    optimizer, mesh, key = optax.sgd(1.0), make_mesh(), jax.random.key(0)
    with pytest.raises(ValueError, match="accumulate"):
        make_train_step(squared_error, optimizer, key, mesh, accumulate=0)
    with pytest.raises(ValueError, match="ema_decay"):
        make_train_step(squared_error, optimizer, key, mesh, ema_decay=1.0)
    with pytest.raises(ValueError, match="multiple of devices x accumulate"):
        make_train_step(squared_error, optimizer, key, mesh, accumulate=2)(start(optimizer), hand_batch())
    with pytest.raises(ValueError, match="give both or neither"):
        make_train_step(squared_error, optimizer, key, mesh)(start(optimizer, ema=True), hand_batch())


def test_a_loss_may_depend_on_what_it_remembers_of_earlier_steps():
    # The loss is memory * w x with memory 2 at first, then the mean loss before: gradients 2 x, then 12 x, x of mean 2.
    def loss(params, key, example, memory):
        return memory * params["w"] * example, {}

    optimizer, mesh = optax.sgd(1.0), make_mesh()
    step = make_train_step(
        loss, optimizer, jax.random.key(0), mesh, accumulate=2, remember=lambda memory, means: means["loss"]
    )
    state = init_state({"w": np.float32(3)}, optimizer, mesh, memory=np.float32(2))
    batch = Batch(np.array([1, 3], np.float32), np.ones(2, np.float32))
    state, metrics = step(state, batch)
    assert (metrics["loss"], state.memory, state.params["w"]) == (12.0, 12.0, -1.0)
    state, metrics = step(state, batch)
    assert (metrics["loss"], state.memory, state.params["w"]) == (-24.0, -24.0, -25.0)


def test_a_state_without_memory_has_no_more_leaves_than_before():
    state = start(optax.sgd(1.0))
    assert state.memory is None
    assert len(jax.tree.leaves(state)) == 2  # step, w
