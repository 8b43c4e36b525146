"""A whole run of a model with one number: its folder, its best state, and how it goes on."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from matterform.config import load_config
from matterform.training.batches import make_batch_plan
from matterform.training.config import LoopConfig, OptimizerConfig
from matterform.training.trainer import HeldOut, RunSettings, Task, check_start, train

FREE = ("run_dir", "loop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    run_dir: pathlib.Path
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=0.5)
    loop: LoopConfig = LoopConfig(epochs=3)
    batch_size: int = 2
    accumulate: int = 1
    ema_decay: float | None = 0.5
    keep: int = 2
    wandb_project: str | None = None


def loss(params, key, example):
    """Its gradient is the example: steps of Adam go down by the learning rate."""
    return params * example, {"weight_seen": params}


def make_task(values=(1.0, 1.0, 1.0, 1.0), **changes) -> Task:
    data = np.array(values, np.float32)
    plan = make_batch_plan(np.ones(len(data), int), 2, (1,), 0)
    given = {
        "example_loss": loss,
        "params": np.float32(1),
        "key": jax.random.key(0),
        "plan": plan,
        "take": lambda rows, length: data[rows],
        "held_out": HeldOut(loss, plan, lambda rows, length: data[rows]),
        "metrics": ("weight_seen",),
        "fingerprints": {"sum": float(data.sum())},
        "sources": "values.csv",
        "sizes": f"{len(data)} values to train on",
    }
    return Task(**{**given, **changes})


def test_a_run_leaves_its_config_metrics_and_best_state(tmp_path):
    config, ended = Config(run_dir=tmp_path / "run"), []
    check_start(config, False, FREE)
    task = make_task(on_epoch_end=lambda state, epoch: ended.append((epoch, int(state.step))))
    trained = train(config, task, False)
    assert (trained.fit.outcome, int(trained.fit.state.step)) == ("finished", 6)
    assert int(trained.best.step) == 6  # the loss falls to the end
    assert trained.fit.state.params == pytest.approx(1 - 6 * 0.5, abs=1e-3)
    assert ended == [(1, 2), (2, 4), (3, 6)]
    assert load_config(Config, config.run_dir / "config.yaml") == config
    header = (config.run_dir / "metrics.csv").read_text().splitlines()[0]
    assert header == "step,epoch,loss,weight_seen,grad_norm,validation_loss,validation_weight_seen"


def test_the_best_state_is_that_of_the_lowest_validation_loss(tmp_path):
    # The held-out loss rises while the training loss falls.
    rising = HeldOut(
        lambda params, key, example: (-params * example, {"weight_seen": params}), *make_task().held_out[1:]
    )
    trained = train(Config(run_dir=tmp_path / "run"), make_task(held_out=rising), False)
    assert (int(trained.best.step), int(trained.fit.state.step)) == (2, 6)
    alone = train(Config(run_dir=tmp_path / "alone"), make_task(held_out=None), False)
    assert alone.best is alone.fit.state


def test_a_resumed_run_equals_one_without_interruption(tmp_path):
    whole = train(Config(run_dir=tmp_path / "whole"), make_task(), False)
    config = Config(run_dir=tmp_path / "parts", loop=LoopConfig(epochs=1))
    train(config, make_task(), False)
    longer = dataclasses.replace(config, loop=LoopConfig(epochs=3))
    check_start(longer, True, FREE)
    resumed = train(longer, make_task(), True)
    jax.tree.map(np.testing.assert_array_equal, resumed.fit.state, whole.fit.state)
    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    with pytest.raises(ValueError, match=r"cannot resume with other data: .* but values\.csv gives sum 5"):
        train(longer, make_task((2.0, 1.0, 1.0, 1.0)), True)


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path):
    config = Config(run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of devices x accumulate = 1 x 3 = 3; got 2"):
        check_start(dataclasses.replace(config, accumulate=3), False, FREE)
    with pytest.raises(ValueError, match="holds no run to resume"):
        check_start(config, True, FREE)
    assert not config.run_dir.exists()


def test_the_rate_follows_the_plateaus_of_any_model(tmp_path):
    optimizer = OptimizerConfig(learning_rate=1e-9, schedule="plateau", plateau_factor=0.5, plateau_patience=1)
    settings = RunSettings(loop=LoopConfig(epochs=3), optimizer=optimizer, batch_size=2)
    config = Config(run_dir=tmp_path / "run")
    task = make_task((0.0, 0.0, 0.0, 0.0))  # the loss stays what it is
    train(config, task, False, settings=settings)
    header, *rows = [line.split(",") for line in (config.run_dir / "metrics.csv").read_text().splitlines()]
    assert [float(row[header.index("learning_rate")]) for row in rows] == [1e-9, 1e-9, 5e-10]
