"""One-call training; whole runs are in test_train.py."""

import pathlib

import pytest

from agedi.config import DiffusionConfig
from agedi.training.config import TrainConfig, fit_config
from agedi.training.from_settings import saved_config, train_from_config
from agedi.training.run import Run
from matterform.config import save_config


def test_settings_of_a_run_are_found_again(tmp_path):
    config = TrainConfig(fit=fit_config({"lr": 1e-3}))
    diffusion = DiffusionConfig(noisers=("Positions",), sde="vp")
    run = Run(
        run_dir=tmp_path, training=config.fit, data=config.data, diffusion=diffusion,
        n_training_data=1, n_validation_data=0, n_parameters=1,
    )  # fmt: skip
    save_config(run, tmp_path / "hparams.yaml")
    saved = saved_config(tmp_path)
    assert (saved.fit, saved.data) == (config.fit, config.data)
    assert (saved.diffusion.noisers, saved.diffusion.sde) == (("Positions",), "vp")


def test_nothing_to_train_on_or_to_continue_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must name a file of structures"):
        train_from_config({"feature_size": 4, "n_blocks": 1})
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        train_from_config({"checkpoint": pathlib.Path("nowhere")})
    with pytest.raises(FileNotFoundError):
        train_from_config("nothing.yaml")
    assert list(tmp_path.iterdir()) == []
