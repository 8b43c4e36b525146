"""A tiny network, preference pairs, and the settings of a short run on them."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from crystalformer.checkpoint.published import save_checkpoint
from crystalformer.config import TransformerConfig, WeightsConfig
from crystalformer.data.crystals import Crystals
from crystalformer.loss import LogProb
from crystalformer.rl.config import DpoConfig
from crystalformer.rl.dpo.pairs import Pairs
from crystalformer.table import COLUMNS, TableWriter, table_rows
from matterform.training.config import LoopConfig, OptimizerConfig

COUNT, SLOTS = 24, 3


@pytest.fixture(scope="session")
def write_samples() -> Callable[..., pathlib.Path]:
    """Writes a table of crystals as `crystalformer sample` does, with more columns given by name."""

    def write(path: pathlib.Path, crystals: Crystals, **more) -> pathlib.Path:
        rows = table_rows(crystals, LogProb(*np.zeros((4, len(crystals.G)), np.float32)), range(len(crystals.G)))
        writer = TableWriter(path, (*COLUMNS, *more))
        writer.write({**row, **{name: values[i] for name, values in more.items()}} for i, row in enumerate(rows))
        writer.finish()
        return path

    return write


@pytest.fixture(scope="module")
def network(tiny_config) -> TransformerConfig:
    return dataclasses.replace(tiny_config, n_max=SLOTS + 1, num_layers=1, dropout_rate=0.5)


@pytest.fixture(scope="module")
def pairs(random_crystals) -> Pairs:
    """24 crystals of any elements, to which the same ones of oxygen are preferred; all fit one bucket's length."""
    rejected = random_crystals(COUNT, SLOTS + 1, most=SLOTS - 1)
    return Pairs(rejected._replace(A=np.where(rejected.W > 0, 8, 0).astype(np.int32)), rejected)


@pytest.fixture(scope="module")
def base(network, lively, pairs, write_samples, tmp_path_factory) -> DpoConfig:
    folder = tmp_path_factory.mktemp("dpo")
    save_checkpoint(folder / "start.pkl", lively(network), config=network)
    return DpoConfig(
        run_dir=folder / "whole",
        chosen=write_samples(folder / "chosen.csv", pairs.chosen),
        rejected=write_samples(folder / "rejected.csv", pairs.rejected),
        validation_fraction=0.25,
        weights=WeightsConfig(model=folder / "start.pkl"),
        optimizer=OptimizerConfig(learning_rate=3e-3, clip_norm=1.0),
        loop=LoopConfig(epochs=4, log_every=2, validate_every=4, checkpoint_every=4),
        batch_size=4,
        publish_every=2,
    )
