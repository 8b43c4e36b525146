"""A run's folder: whose it is, and what may be resumed."""

import contextlib
import dataclasses
import json
import pathlib

import numpy as np
import optax
import pytest

from matterform.config import load_config
from matterform.training.mesh import make_mesh
from matterform.training.run import RunFiles, check_run, claim_run, open_checkpoints, open_run, restore_run
from matterform.training.state import TrainState, init_state

FREE = ("run_dir", "epochs", "train")
DATA = {"train": {"structures": 3, "crc32": 7}, "validation": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What learns."""

    rate: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    run_dir: pathlib.Path
    train: pathlib.Path = pathlib.Path("data")
    epochs: int = 5
    seed: int = 0
    optimizer: Optimizer = Optimizer()
    keep: int = 2
    wandb_project: str | None = None


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(run_dir=tmp_path / "run")


def test_a_new_run_is_claimed_with_its_settings_and_data(config):
    check_run(config, resume=False, free=FREE)
    assert not config.run_dir.exists()
    claim_run(config, DATA, resume=False, sources="data")
    assert load_config(Config, config.run_dir / "config.yaml") == config
    assert json.loads((config.run_dir / "data.json").read_text()) == DATA


def test_a_run_is_not_overwritten(config):
    claim_run(config, DATA, resume=False, sources="data")
    with pytest.raises(ValueError, match="holds a run already; give --resume to go on, or another --run-dir"):
        check_run(config, resume=False, free=FREE)


def test_what_is_not_there_is_not_resumed(config):
    with pytest.raises(ValueError, match=r"holds no run to resume \(no config\.yaml\)"):
        check_run(config, resume=True, free=FREE)


@pytest.mark.parametrize("changes", [{}, {"epochs": 9}, {"train": pathlib.Path("moved")}])
def test_free_settings_may_change(config, changes):
    claim_run(config, DATA, resume=False, sources="data")
    check_run(dataclasses.replace(config, **changes), resume=True, free=FREE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "cannot resume with another seed: the run has 0, given 1"),
        (
            {"optimizer": Optimizer(rate=0.2)},
            r"cannot resume with another optimizer\.rate: the run has 0\.1, given 0\.2",
        ),
    ],
)
def test_other_settings_are_refused_by_name(config, changes, message):
    claim_run(config, DATA, resume=False, sources="data")
    with pytest.raises(ValueError, match=message):
        check_run(dataclasses.replace(config, **changes), resume=True, free=FREE)


def test_other_data_are_refused_and_leave_the_folder_as_it_was(config):
    claim_run(config, DATA, resume=False, sources="data")
    longer = dataclasses.replace(config, epochs=9)
    with pytest.raises(ValueError, match="other data: the run has validation None, but data gives validation"):
        claim_run(longer, {**DATA, "validation": {"structures": 1, "crc32": 1}}, resume=True, sources="data")
    assert load_config(Config, config.run_dir / "config.yaml") == config
    claim_run(longer, DATA, resume=True, sources="data")
    assert load_config(Config, config.run_dir / "config.yaml") == longer


@pytest.fixture
def start() -> TrainState:
    return init_state({"w": np.arange(3.0, dtype=np.float32)}, optax.sgd(0.1), make_mesh())


def test_a_run_that_never_saved_cannot_go_on(config, start):
    with contextlib.ExitStack() as stack:
        checkpoints = open_checkpoints(stack, config.run_dir / "checkpoints", keep=2)
        with pytest.raises(ValueError, match="ended before its first checkpoint; delete it and begin anew"):
            restore_run(config.run_dir, checkpoints, start)


def test_a_restored_run_has_its_state_and_what_the_loop_knew(config, start):
    later = start._replace(step=start.step + 4, params={"w": start.params["w"] + 1})
    with contextlib.ExitStack() as stack:
        checkpoints = open_checkpoints(stack, config.run_dir / "checkpoints", keep=2)
        checkpoints.save(later, {"best_loss": 0.5, "stale": 2})
        state, progress = restore_run(config.run_dir, checkpoints, start)
    assert int(state.step) == 4
    np.testing.assert_array_equal(state.params["w"], [1.0, 2.0, 3.0])
    assert progress == {"best_loss": 0.5, "stale": 2}


NAMES = RunFiles("hparams.yaml", "checkpoints/last_model", "checkpoints/best_model")


def test_a_family_may_name_its_files(config):
    claim_run(config, DATA, False, "data", NAMES)
    assert load_config(Config, config.run_dir / "hparams.yaml") == config
    assert not (config.run_dir / "config.yaml").exists()
    with pytest.raises(ValueError, match="cannot resume with another seed"):
        check_run(dataclasses.replace(config, seed=3), True, FREE, NAMES)
    with pytest.raises(ValueError, match=r"holds no run to resume \(no hparams\.yaml\)"):
        check_run(dataclasses.replace(config, run_dir=config.run_dir / "other"), True, FREE, NAMES)


def test_one_field_of_a_nested_config_may_be_free(config):
    claim_run(config, DATA, resume=False, sources="data")
    check_run(dataclasses.replace(config, optimizer=Optimizer(rate=0.2)), True, ("optimizer.rate",))


def test_a_run_goes_back_to_its_best_state(config, start):
    claim_run(config, DATA, False, "data", NAMES)
    with open_run(config.run_dir, ("loss",), start, False, keep=2, files=NAMES) as run:
        for step in (1, 2, 3):
            later = start._replace(step=start.step + step, params={"w": start.params["w"] + step})
            run.checkpoints.save(later, {"best_loss": 1.0})
            run.writer.write(step, {"loss": 0.5})
            if step == 2:
                run.best.save(later, {"best_loss": 2.0})
    with open_run(config.run_dir, ("loss",), start, True, keep=2, files=NAMES) as run:
        assert (int(run.state.step), run.resumed) == (3, {"best_loss": 1.0})
    with open_run(config.run_dir, ("loss",), start, "best", keep=2, files=NAMES) as run:
        assert (int(run.state.step), run.resumed) == (2, {"best_loss": 2.0})
        np.testing.assert_array_equal(run.state.params["w"], [2.0, 3.0, 4.0])
    assert [line.split(",")[0] for line in (config.run_dir / "metrics.csv").read_text().split()] == ["step", "1", "2"]
