"""Published settings of training and what they mean here."""

import datetime

import pytest

from agedi.training.published import translate_settings


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ({"lr_factor": 0.5, "lr_patience": 3}, {"plateau_factor": 0.5, "plateau_patience": 3}),
        ({"log_interval": 5, "eps": 1e-3}, {"log_every": 5, "smallest_time": 1e-3}),
        ({"epochs": -1}, {"epochs": None}),
        ({"epochs": 3, "lr": 0.1}, {"epochs": 3, "lr": 0.1}),
        ({"max_time": 2}, {"max_minutes": 120.0}),
        ({"max_time": 2, "max_time_minutes": 3}, {"max_minutes": 123.0}),
        ({"max_time": 0, "max_time_minutes": 0.0}, {"max_minutes": None}),
        ({"max_time": {"days": 1, "hours": 1}}, {"max_minutes": 1500.0}),
        ({"max_time": datetime.timedelta(hours=1)}, {"max_minutes": 60.0}),
        ({"max_time": None}, {}),
        ({"logger": "tensorboard"}, {"tensorboard": True, "wandb_project": None}),
        ({"logger": "wandb"}, {"tensorboard": True, "wandb_project": "agedi"}),
        ({"logger": "wandb", "project": "x"}, {"tensorboard": True, "wandb_project": "x"}),
        ({"project": "x"}, {}),
        ({"logger": "csv"}, {"tensorboard": False, "wandb_project": None}),
        ({"loss_balance": {"diffusion": 4, "regressor": 1}}, {"loss_balance": "0.8:0.2"}),
    ],
)
def test_published_settings_have_our_form(published, ours):
    assert translate_settings(published) == ours


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"max_time": -1}, "max_time must be at least 0"),
        ({"max_time": "long"}, "max_time must be hours"),
        ({"max_time": {"weeks": 1, "moons": 1}}, "max_time must be hours"),
        ({"logger": "mlflow"}, "logger must be one of tensorboard, wandb, csv; got 'mlflow'"),
    ],
)
def test_impossible_settings_are_refused(published, message):
    with pytest.raises(ValueError, match=message):
        translate_settings(published)
