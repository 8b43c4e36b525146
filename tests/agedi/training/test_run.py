"""A run's folder: its name, and what its hparams.yaml keeps."""

import pathlib

import pytest
import yaml

from agedi.config import DiffusionConfig
from agedi.data.config import DatasetConfig
from agedi.training.config import DataConfig, fit_config
from agedi.training.run import Run, claim_version, load_run, next_version
from matterform.config import load_values, save_config


def run_in(folder: pathlib.Path) -> Run:
    """A run that has only been described."""
    return Run(
        run_dir=folder,
        training=fit_config({"lr": 3e-3, "clip_norm": None, "validation_fraction": 0.2, "max_minutes": 3.0}),
        data=DataConfig(train=pathlib.Path("a.traj"), dataset=DatasetConfig(mask="MaskFixed")),
        diffusion=DiffusionConfig(noisers=("Positions",), sde="vp"),
        n_training_data=16,
        n_validation_data=4,
        n_parameters=100,
    )


def test_a_run_describes_itself(tmp_path):
    save_config(run_in(tmp_path), tmp_path / "hparams.yaml")
    assert load_run(tmp_path) == run_in(tmp_path)


def test_runs_of_earlier_versions_are_read(tmp_path):
    save_config(run_in(tmp_path), tmp_path / "new" / "hparams.yaml")
    values = load_values(tmp_path / "new" / "hparams.yaml")
    training = {"lr": 3e-3, "gradient_clip_val": None, "val_split": 0.2, "max_time_minutes": 3.0, "max_time": 0.0}
    training |= {"epochs": -1, "logger": "tensorboard", "project": "agedi", "progress_bar": True, "force_loss": "huber"}
    data = {"data_path": "a.traj", "regressor_data_path": None, "mask": "MaskFixed", "repeat": None}
    diffusion = {name: value for name, value in values["diffusion"].items() if name != "smallest_time"} | {"eps": 1e-5}
    former = {**values, "training": training, "data": data, "diffusion": diffusion}
    (tmp_path / "hparams.yaml").write_text(yaml.dump(former))
    assert load_run(tmp_path) == run_in(tmp_path)


def test_a_damaged_run_is_named(tmp_path):
    save_config(run_in(tmp_path), tmp_path / "hparams.yaml")
    values = load_values(tmp_path / "hparams.yaml")
    (tmp_path / "hparams.yaml").write_text(yaml.dump({**values, "training": {"batch_size": "many"}}))
    with pytest.raises(ValueError, match=r"hparams\.yaml: batch_size: expected int"):
        load_run(tmp_path)


def test_versions_are_counted_on(tmp_path):
    assert next_version(tmp_path) == tmp_path / "version_0"
    for name in ("version_2", "version_10", "version_x"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == tmp_path / "version_11"
    run = run_in(tmp_path / "version_11")
    # Another run that began at the same time has taken it.
    assert [claim_version(run).run_dir.name for _ in range(3)] == ["version_11", "version_12", "version_13"]
