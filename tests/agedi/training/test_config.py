"""Settings of training, as users write them."""

import pathlib

import numpy as np
import pytest

from agedi.config import DiffusionOptions
from agedi.training.config import (
    DataConfig,
    FitConfig,
    TrainConfig,
    fit_config,
    load_train_config,
    loop_config,
    train_config,
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"max_time": 0, "epochs": -1}, "epochs or max_steps must be given, or max_minutes"),
        ({"max_time_minutes": -1}, "max_time must be at least 0"),
        ({"val_split": 1.0}, r"validation_fraction must lie in \[0, 1\)"),
        ({"val_split": 0.2, "train_split": 0.9}, "train_fraction must lie in"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"loss_balance": "a:b"}, "loss_balance must be shares"),
        ({"reference_energies": "Cu"}, "reference_energies must be"),
        ({"force_loss": "l2"}, "force_loss: expected one of"),
        ({"cutoff": "wide"}, "cutoff: expected"),
    ],
)
def test_wrong_options_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        train_config(values)


def test_options_are_taken_as_users_write_them():
    config = train_config(
        {"noisers": "CellPositions,Types", "loss_balance": [4, 1], "data_path": pathlib.Path("x.traj")}
    )
    assert config == TrainConfig(
        diffusion=DiffusionOptions(noisers=("CellPositions", "Types")),
        fit=FitConfig(loss_balance="0.8:0.2"),
        data=DataConfig(train=pathlib.Path("x.traj")),
    )


def test_numbers_of_numpy_are_taken_as_options():
    options = {"noisers": ("ConfinedCellPositions",), "confinement": (np.float64(2.5), np.float32(7.5))}
    assert train_config({**options, "epochs": np.int64(3)}).data.dataset.confinement == (2.5, 7.5)
    assert train_config({**options, "confinement": np.array([2.5, 7.5])}).data.dataset.confinement == (2.5, 7.5)


def test_settings_replace_those_of_a_base_and_keep_the_rest():
    base = train_config({"lr": 1e-3, "gradient_clip_val": 2.0, "noisers": "Positions"})
    config = train_config({"lr_factor": 0.5, "fit": {"optimizer": {"weight_decay": 0.1}}}, base)
    optimizer = config.fit.optimizer
    assert (optimizer.learning_rate, optimizer.clip_norm, optimizer.plateau_factor) == (1e-3, 2.0, 0.5)
    assert (optimizer.optimizer, optimizer.schedule, optimizer.weight_decay) == ("adamw", "plateau", 0.1)
    assert config.diffusion.noisers == ("Positions",)


def test_eps_is_the_smallest_time_of_the_diffusion():
    config = train_config({"eps": 1e-3})
    assert config.diffusion.smallest_time == 1e-3
    assert config.fit == FitConfig()


def test_settings_of_a_file_are_named_with_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("lr: 1e-3\nfeature_size: 8\n")
    assert load_train_config(path) == train_config({"lr": 1e-3, "feature_size": 8})
    path.write_text("lrr: 1e-3")
    with pytest.raises(ValueError, match=r"config\.yaml: unknown key 'lrr'"):
        load_train_config(path)


def test_metrics_are_logged_once_an_epoch_at_least():
    assert loop_config(fit_config({"log_interval": 10}), 3).log_every == 3
    assert loop_config(fit_config({"log_interval": 2}), 3).log_every == 2
    assert loop_config(fit_config({"log_every": None}), 3).log_every == 3


def test_runs_may_have_a_folder_of_their_own():
    assert FitConfig(log_dir=pathlib.Path("logs"), name="oxides").runs == pathlib.Path("logs/oxides")
    assert fit_config({"folder": "runs/one"}).run_dir == pathlib.Path("runs/one")
