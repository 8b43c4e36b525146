"""Interrupted and resumed training equals uninterrupted training; the loop stops when it should."""

import json
import signal

import jax
import numpy as np
import optax
import pytest

from matterform.training.batches import make_batch_plan, switch_plans
from matterform.training.checkpoint import Checkpoints, complete_steps
from matterform.training.config import LoopConfig, OptimizerConfig
from matterform.training.loop import FitSetup, Progress, fit, metric_columns
from matterform.training.mesh import make_mesh
from matterform.training.metrics import open_metrics
from matterform.training.optimizers import make_optimizer
from matterform.training.state import init_state
from matterform.training.step import make_eval_step, make_train_step
from matterform.training.validation import Validation


def assert_same_run(folder, expected_folder, result, expected):
    for left, right in zip(jax.tree.leaves(result.state), jax.tree.leaves(expected.state), strict=True):
        np.testing.assert_array_equal(left, right, strict=True)
    assert result[1:] == expected[1:]
    assert (folder / "metrics.csv").read_text() == (expected_folder / "metrics.csv").read_text()
    assert complete_steps(folder / "best") == complete_steps(expected_folder / "best")


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The folder and the result of 24 steps without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, tiny.train(folder, 24)


@pytest.mark.parametrize("stop", [4, 15])  # between rows of metrics; after one, on a checkpoint
def test_resumed_training_is_the_uninterrupted_one(tiny, whole, tmp_path, stop):
    assert tiny.train(tmp_path, stop).outcome == "finished"
    result = tiny.train(tmp_path, 24, resume=True)
    assert result.outcome == "finished"
    assert_same_run(tmp_path, whole[0], result, whole[1])


def test_training_after_a_crash_goes_on_from_the_last_checkpoint(tiny, whole, tmp_path):
    def crash(state, epoch):
        if epoch == 3:
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        tiny.train(tmp_path, 24, on_epoch_end=crash)
    assert complete_steps(tmp_path / "checkpoints") == [15, 20]
    assert_same_run(tmp_path, whole[0], tiny.train(tmp_path, 24, resume=True), whole[1])


def test_sigterm_saves_and_the_run_can_go_on(tiny, whole, start_tiny, tmp_path):
    process = start_tiny(tmp_path, 24, "--stop-at", 12)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    report = json.loads(output.splitlines()[-1])
    assert report["outcome"] == "interrupted"
    assert 6 <= report["step"] < 24
    assert max(complete_steps(tmp_path / "checkpoints")) == report["step"]
    assert_same_run(tmp_path, whole[0], tiny.train(tmp_path, 24, resume=True), whole[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_loop_and_the_former_handlers_return(tiny, tmp_path, number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    result = tiny.train(tmp_path, 24, on_epoch_end=lambda state, epoch: signal.raise_signal(number))
    assert result.outcome == "interrupted"
    assert result.state.step == 7
    assert max(complete_steps(tmp_path / "checkpoints")) == 7
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_epoch_ends_are_reported_with_the_state(tiny, tmp_path):
    seen = []
    tiny.train(tmp_path, 16, on_epoch_end=lambda state, epoch: seen.append((epoch, int(state.step))))
    assert seen == [(1, 7), (2, 14)]


def linear_run(folder, values, *, learning_rate=1.0, **options):
    """Gradient descent on mean(values) * w from w = 1; validation sees w itself."""
    mesh, optimizer = make_mesh(), optax.sgd(learning_rate)

    def loss(params, key, example):
        return params * example, {}

    plan = make_batch_plan(np.ones(len(values), int), 1, (1,), 0)
    validation = Validation(
        make_eval_step(loss, mesh), make_batch_plan(np.ones(2, int), 2, (1,), 0), lambda i, n: i + 1.0
    )
    checkpoints, best = Checkpoints(folder / "checkpoints"), Checkpoints(folder / "best", keep=1)
    try:
        setup = FitSetup(
            config=LoopConfig(**{"epochs": 2, **options}),
            step=make_train_step(loss, optimizer, jax.random.key(0), mesh),
            mesh=mesh,
            plan=plan,
            take=lambda indices, length: values[indices],
            validation=validation,
            checkpoints=checkpoints,
            best=best,
        )
        return fit(setup, init_state(np.float32(1), optimizer, mesh))
    finally:
        checkpoints.close()
        best.close()


def test_a_nonfinite_step_stops_with_the_last_checkpoint_before_it(tmp_path):
    values = np.ones(8, np.float32)
    [poisoned] = make_batch_plan(np.ones(8, int), 1, (1,), 0).epoch(0)[5].indices  # seen by step 6
    values[poisoned] = np.inf
    with pytest.raises(FloatingPointError, match=r"^step 6: "):
        linear_run(tmp_path, values, checkpoint_every=2)
    assert complete_steps(tmp_path / "checkpoints") == [2, 4]


def test_training_stops_early_and_keeps_the_best(tmp_path):
    # Each step adds 1 to w, so the first validation, at step 2, stays the best: 1.5 (1 + 2).
    result = linear_run(tmp_path, -np.ones(8, np.float32), validate_every=2, patience=2)
    assert result.outcome == "early_stop"
    assert result.state.step == 6
    assert (result.best_step, result.best_loss) == (2, 4.5)
    assert complete_steps(tmp_path / "best") == [2]
    assert max(complete_steps(tmp_path / "checkpoints")) == 6


@pytest.mark.parametrize(("limits", "steps"), [({"epochs": 2}, 16), ({"epochs": None, "max_steps": 5}, 5)])
def test_training_ends_at_its_limit(tmp_path, limits, steps):
    result = linear_run(tmp_path, np.ones(8, np.float32), **limits)
    assert (result.outcome, int(result.state.step)) == ("finished", steps)
    np.testing.assert_allclose(result.state.params, 1 - steps)


def test_a_finished_run_does_nothing_more(tiny, whole, tmp_path):
    folder, expected = whole
    before = (folder / "metrics.csv").read_text()
    result = tiny.train(folder, 24, resume=True)
    assert_same_run(folder, folder, result, expected)
    assert (folder / "metrics.csv").read_text() == before


def test_wrong_configs_are_refused():
    with pytest.raises(ValueError, match="epochs or max_steps must be given, or max_minutes"):
        LoopConfig()
    with pytest.raises(ValueError, match="max_minutes must be positive, or none; got 0"):
        LoopConfig(max_minutes=0.0)
    with pytest.raises(ValueError, match="patience must be at least 1, or none; got 0"):
        LoopConfig(epochs=1, patience=0)


def test_time_ends_training_with_a_checkpoint_to_go_on_from(tiny, whole, tmp_path):
    # Steps take 0.2 s, so time is up after about 10 of the 24, compiling included.
    first = tiny.train(tmp_path, 24, delay_s=0.2, max_minutes=2 / 60)
    assert first.outcome == "time_limit"
    assert 1 <= first.state.step < 24
    assert max(complete_steps(tmp_path / "checkpoints")) == first.state.step
    assert_same_run(tmp_path, whole[0], tiny.train(tmp_path, 24, resume=True), whole[1])


def test_time_alone_may_limit_training(tmp_path):
    result = linear_run(tmp_path, np.ones(8, np.float32), epochs=None, max_minutes=1 / 60, learning_rate=1e-3)
    assert result.outcome == "time_limit"
    assert result.state.step >= 1


def test_rare_checkpoints_still_keep_the_best_state(tmp_path):
    # w = 1, 2, 3, ... and the validation loss falls with -w up to the end, so the best is the last but one of them.
    result = linear_run(tmp_path, np.ones(8, np.float32), validate_every=2, checkpoint_every=2, checkpoint_seconds=1e6)
    assert (result.best_step, result.best_loss) == (16, 1.5 * (1 - 16))
    assert complete_steps(tmp_path / "best") == [16]
    assert complete_steps(tmp_path / "checkpoints") == [2, 16]


def test_the_best_state_is_kept_while_checkpoints_rest(tmp_path):
    # The loss rises from the first validation on, at step 2; a checkpoint is only due at steps 8 and 16.
    options = {"validate_every": 2, "checkpoint_every": 8, "checkpoint_seconds": 1e6}
    values = np.where(np.arange(8) % 2, -1, -1).astype(np.float32)
    result = linear_run(tmp_path, values, **options)
    assert result.best_step == 2
    best = Checkpoints(tmp_path / "best", keep=1)
    state, extra = best.restore(result.state)
    best.close()
    np.testing.assert_array_equal(state.params, 3.0)
    assert extra["best_step"] == 2


def plateau_run(folder, max_steps, *, resume=False, validation=True, log_every=None):
    """Minimises |w| in steps of fixed length, which stops making progress until the rate is lowered."""
    mesh = make_mesh()
    settings = OptimizerConfig(learning_rate=0.4, schedule="plateau", plateau_factor=0.5, plateau_patience=2, b1=0.0)
    optimizer = make_optimizer(settings)

    def loss(params, key, example):
        return jax.numpy.abs(params), {}

    plans = {0: make_batch_plan(np.ones(3, int), 1, (1,), 0), 4: make_batch_plan(np.ones(5, int), 1, (1,), 0)}
    state = init_state(np.float32(1), optimizer, mesh)
    checkpoints, best = Checkpoints(folder / "checkpoints"), Checkpoints(folder / "best", keep=1)
    state, extra = checkpoints.restore(state) if resume else (state, None)
    columns = metric_columns((), validation, plateau=True)
    writer = open_metrics(folder, columns, resumed_step=int(state.step) if resume else None)
    held_out = Validation(make_eval_step(loss, mesh), plans[0], lambda i, n: i)
    try:
        setup = FitSetup(
            config=LoopConfig(max_steps=max_steps, log_every=log_every),
            step=make_train_step(loss, optimizer, jax.random.key(0), mesh),
            mesh=mesh,
            plan=switch_plans(plans),
            take=lambda indices, length: indices,
            validation=held_out if validation else None,
            checkpoints=checkpoints,
            best=best,
            writer=writer,
            optimizer=settings,
        )
        return fit(setup, state, extra)
    finally:
        writer.close()
        checkpoints.close()
        best.close()


def table(folder):
    header, *rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [{name: float(cell) for name, cell in zip(header, row, strict=True) if cell} for row in rows]


def test_the_rate_falls_where_the_loss_does_not(tmp_path):
    plateau_run(tmp_path, 3 * 4 + 5 * 16)
    rows = table(tmp_path)
    assert [row["step"] for row in rows] == [3, 6, 9, *range(12, 93, 5)]  # ends of epochs
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    expected, progress = [], Progress()
    for row in rows:
        expected.append(0.4 * progress.rate_scale)
        progress.lower_rate(row["validation_loss"], OptimizerConfig(plateau_factor=0.5, plateau_patience=2))
    assert [row["learning_rate"] for row in rows] == expected
    assert rows[-1]["learning_rate"] < 0.4 / 4
    # The steps of Adam without momentum are as long as the rate, and shrink with it.
    assert rows[-1]["loss"] < rows[0]["loss"] / 2


def test_a_stale_loss_lowers_the_rate_and_the_count_starts_anew():
    config, progress = OptimizerConfig(plateau_factor=0.5, plateau_patience=2), Progress()
    losses = [3.0, 2.0, 2.0, 2.5, 2.2, 2.1, 1.0, float("nan"), 1.0]
    assert [progress.lower_rate(loss, config) for loss in losses] == [0, 0, 0, 1, 0, 1, 0, 0, 1]
    assert progress.rate_scale == 0.125


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("stop", [10, 29])
def test_a_lowered_rate_survives_resuming_exactly(tmp_path, validation, stop):
    options = {"validation": validation, "log_every": 2}
    expected = plateau_run(tmp_path / "whole", 45, **options)
    plateau_run(tmp_path / "parts", stop, **options)
    result = plateau_run(tmp_path / "parts", 45, resume=True, **options)
    assert_same_run(tmp_path / "parts", tmp_path / "whole", result, expected)
    assert table(tmp_path / "whole")[-1]["learning_rate"] < 0.4


def test_without_validation_the_rate_follows_the_mean_loss_of_epochs(tmp_path):
    plateau_run(tmp_path, 3 * 4 + 5 * 8, validation=False, log_every=2)
    rows = table(tmp_path)
    ends = [3, 6, 9, *range(12, 53, 5)]
    assert [row["step"] for row in rows] == sorted({*range(2, 53, 2), *ends})
    progress, config = Progress(), OptimizerConfig(plateau_factor=0.5, plateau_patience=2)
    total, count, last = 0.0, 0, 0
    for row in rows:
        assert row["learning_rate"] == 0.4 * progress.rate_scale
        total, count, last = total + row["loss"] * (row["step"] - last), count + row["step"] - last, row["step"]
        if row["step"] in ends:
            progress.lower_rate(total / count, config)
            total, count = 0.0, 0
    assert progress.rate_scale < 1
