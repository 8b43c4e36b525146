"""Settings of training, as users write them."""

import pathlib

import numpy as np
import pytest

from agedi.config import DiffusionOptions
from agedi.training.config import DataConfig, FitConfig, TrainConfig, given_names, parse_loss_balance, train_config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"epochs": 0}, "epochs must be at least 1, or -1"),
        ({"max_time": 0, "epochs": -1}, "training would never end"),
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
        training=FitConfig(loss_balance="0.8:0.2"),
        data=DataConfig(train=pathlib.Path("x.traj")),
    )


def test_numbers_of_numpy_are_taken_as_options():
    options = {"noisers": ("ConfinedCellPositions",), "confinement": (np.float64(2.5), np.float32(7.5))}
    assert train_config({**options, "epochs": np.int64(3)}).data.dataset.confinement == (2.5, 7.5)
    assert train_config({**options, "confinement": np.array([2.5, 7.5])}).data.dataset.confinement == (2.5, 7.5)


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ("80:20", (0.8, 0.2)),
        ("80/20", (0.8, 0.2)),
        ("0.8-0.2", (0.8, 0.2)),
        ("50%:50%", (0.5, 0.5)),
        ("30%", (0.7, 0.3)),
        ("0.25", (0.75, 0.25)),
        (0.25, (0.75, 0.25)),
        ((3, 1), (0.75, 0.25)),
        ({"regressor": 1, "diffusion": 4}, (0.8, 0.2)),
    ],
)
def test_shares_may_be_written_in_many_ways(given, shares):
    assert parse_loss_balance(given) == pytest.approx(shares)


@pytest.mark.parametrize("given", ["80:20:10", "a:b", "", "80 20", {"energy": 1, "forces": 2}, (1, 2, 3)])
def test_what_is_no_pair_of_shares_is_refused(given):
    with pytest.raises(ValueError, match="loss_balance must be shares of diffusion and regressor"):
        parse_loss_balance(given)


@pytest.mark.parametrize("given", ["-1:2", "0:0", 1.5, 4820])
def test_negative_shares_are_refused(given):
    with pytest.raises(ValueError, match="at least 0 and not both 0"):
        parse_loss_balance(given)


def test_no_balance_is_none():
    assert parse_loss_balance(None) is None


def test_given_names_are_those_of_the_fields():
    values = {"lr": 1e-3, "noisers": "Types", "data": {"data_path": "x"}, "mask": "none"}
    assert given_names(values) == {"learning_rate", "noisers", "train", "mask"}
