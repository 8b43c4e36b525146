"""Runs: what a folder holds, interruption, resuming, and what is refused."""

import csv
import dataclasses
import logging
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from crystalformer.checkpoint.published import load_checkpoint
from crystalformer.config import WeightsConfig
from crystalformer.rl.config import DpoConfig, PreferenceConfig
from crystalformer.rl.dpo import train as dpo
from crystalformer.rl.dpo.examples import load_pairs, reference_log_prob, split_pairs
from crystalformer.rl.dpo.loss import PreferencePair
from crystalformer.rl.dpo.pairs import Pairs
from crystalformer.rl.dpo.rows import take_crystals
from crystalformer.rl.dpo.train import train_dpo
from matterform.config import load_config
from matterform.training import trainer
from matterform.training.config import LoopConfig

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def whole(base) -> DpoConfig:
    """A finished run: 18 pairs to train on, in 5 steps an epoch."""
    result = train_dpo(base)
    assert result.outcome == "finished"
    assert int(result.state.step) == 20
    return base


def metrics(config: DpoConfig) -> list[dict[str, float]]:
    with (config.run_dir / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_published_equal(first: pathlib.Path, second: pathlib.Path) -> None:
    found, expected = load_checkpoint(first), load_checkpoint(second)
    jax.tree.map(np.testing.assert_array_equal, (found.params, found.opt_state), (expected.params, expected.opt_state))
    assert found.config == expected.config


def test_a_run_learns_its_pairs_and_says_so(whole):
    assert load_config(DpoConfig, whole.run_dir / "config.yaml") == whole
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    for row in rows:
        np.testing.assert_allclose(row["reward_chosen"] - row["reward_rejected"], 0.1 * row["margin"], atol=1e-4)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert rows[-1]["accuracy"] == 1.0
    assert rows[-1]["validation_accuracy"] == 1.0
    assert rows[-1]["validation_margin"] > 5


def test_the_published_best_is_what_validation_measured(whole, pairs):
    checkpoint = load_checkpoint(whole.run_dir / "published" / "best.pkl")
    reference = load_checkpoint(whole.run_dir / "reference.pkl")
    assert checkpoint.config == reference.config == load_checkpoint(whole.weights.model).config
    data = load_pairs(whole, checkpoint.config)
    examples = PreferencePair(*data.pairs, reference_log_prob(reference.params, reference.config, data.pairs))
    _, held_out = split_pairs(examples, whole)
    logp = reference_log_prob(checkpoint.params, checkpoint.config, Pairs(held_out.chosen, held_out.rejected))
    gain = logp - held_out.logp_reference
    margin = gain[:, 0] - gain[:, 1]
    best = min((row for row in metrics(whole) if "validation_loss" in row), key=lambda row: row["validation_loss"])
    np.testing.assert_allclose(best["validation_margin"], margin.mean(), rtol=1e-4)
    np.testing.assert_allclose(best["validation_logp_chosen"], logp[:, 0].mean(), rtol=1e-4)
    np.testing.assert_allclose(best["validation_loss"], np.log1p(np.exp(-0.1 * margin)).mean(), rtol=1e-4)


def test_a_run_stopped_by_a_signal_goes_on_as_if_nothing_had_happened(whole, tmp_path, monkeypatch):
    class Terminator(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("step 6:"):
                os.kill(os.getpid(), signal.SIGTERM)

    start = shutil.copy(whole.weights.model, tmp_path / "start.pkl")
    config = dataclasses.replace(whole, run_dir=tmp_path / "stopped", weights=WeightsConfig(model=start))
    logger, handler = logging.getLogger("matterform.training.loop"), Terminator()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        stopped = train_dpo(config)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert stopped.outcome == "interrupted"
    assert int(stopped.state.step) == 6
    assert not (config.run_dir / "published" / "best.pkl").exists()
    start.unlink()
    monkeypatch.delattr(dpo, "reference_log_prob")  # neither the weights nor their log-probabilities are needed again
    assert train_dpo(config, resume=True).outcome == "finished"
    assert (config.run_dir / "metrics.csv").read_text() == (whole.run_dir / "metrics.csv").read_text()
    for name in ("best.pkl", "epoch_000002.pkl", "epoch_000004.pkl"):
        assert_published_equal(config.run_dir / "published" / name, whole.run_dir / "published" / name)


@pytest.mark.parametrize(("module", "step"), [(dpo, "save_checkpoint"), (dpo, "write_pairs"), (trainer, "claim_run")])
def test_a_run_that_dies_before_it_is_complete_can_be_begun_again(base, tmp_path, monkeypatch, module, step):
    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    config = dataclasses.replace(base, run_dir=tmp_path / "run", loop=LoopConfig(max_steps=1))
    with monkeypatch.context() as patch:
        patch.setattr(module, step, die)
        with pytest.raises(KeyboardInterrupt):
            train_dpo(config)
    with pytest.raises(ValueError, match="holds no run to resume"):
        train_dpo(config, resume=True)
    assert train_dpo(config).outcome == "finished"


def test_a_refused_start_leaves_the_run_of_the_folder_alone(whole):
    names = ("reference.pkl", "pairs.csv", "refused.csv", "config.yaml", "data.json")
    before = [(whole.run_dir / name).read_bytes() for name in names]
    with pytest.raises(ValueError, match="holds a run already"):
        train_dpo(dataclasses.replace(whole, chosen=whole.rejected, rejected=whole.chosen))
    assert [(whole.run_dir / name).read_bytes() for name in names] == before


@pytest.mark.slow
def test_four_devices_give_the_losses_of_one(whole, tmp_path):
    code = f"""
import dataclasses, pathlib, jax
from crystalformer.rl.dpo.train import train_dpo
from crystalformer.rl.config import DpoConfig
from matterform.config import load_config
assert jax.device_count() == 4
config = load_config(DpoConfig, {str(whole.run_dir / "config.yaml")!r})
train_dpo(dataclasses.replace(config, run_dir=pathlib.Path({str(tmp_path / "run")!r})))
"""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    found = metrics(dataclasses.replace(whole, run_dir=tmp_path / "run"))
    for row, expected in zip(found, metrics(whole), strict=True):
        for name in ("loss", "margin", "logp_chosen", "logp_rejected"):  # the first step's accuracy is only rounding
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "cannot resume with another seed: the run has 42, given 1"),
        ({"preference": PreferenceConfig(beta=1.0)}, "cannot resume with another preference.beta"),
        ({"dropout": True}, "cannot resume with another dropout"),
    ],
)
def test_resuming_another_run_is_refused(whole, change, message):
    with pytest.raises(ValueError, match=message):
        train_dpo(dataclasses.replace(whole, **change), resume=True)


def test_resuming_with_other_pairs_is_refused(whole, pairs, write_samples, tmp_path):
    fewer = write_samples(tmp_path / "fewer.csv", take_crystals(pairs.chosen, range(len(pairs.chosen.G) - 1)))
    with pytest.raises(ValueError, match=r"cannot resume with other data: .*pairs\.csv names other rows"):
        train_dpo(dataclasses.replace(whole, chosen=fewer), resume=True)
    swapped = dataclasses.replace(whole, chosen=whole.rejected, rejected=whole.chosen)
    with pytest.raises(ValueError, match=r"cannot resume with other data: the run has .*rejected\.csv with .*chosen"):
        train_dpo(swapped, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None, "rejected": None}, "give the pairs as chosen and rejected, or as one scored table"),
        ({"scored": pathlib.Path("scored.csv")}, "give the pairs as chosen and rejected, or as one scored table"),
        ({"rejected": None}, "chosen and rejected go together; rejected is missing"),
        ({"chosen": pathlib.Path("misspelt.csv")}, r"misspelt\.csv does not exist"),
    ],
)
def test_a_run_without_pairs_leaves_nothing(base, tmp_path, change, message):
    config = dataclasses.replace(base, run_dir=tmp_path / "run", **change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_dpo(config)
    assert not config.run_dir.exists()


def test_a_pair_that_the_masks_forbid_is_left_out(base, pairs, write_samples, tmp_path, caplog):
    # Letters must not fall: in P1 there is only a, and in P-1 (2) a site on i cannot stand before one on a.
    first = take_crystals(pairs.rejected, [0, 1, 2])
    first = first._replace(
        G=np.array([1, 2, 1], np.int32), W=np.array([[1, 0, 0, 0], [9, 1, 0, 0], [1, 1, 0, 0]], np.int32)
    )
    first = first._replace(A=np.where(first.W > 0, 8, 0).astype(np.int32))
    chosen = write_samples(tmp_path / "chosen.csv", first)
    rejected = write_samples(tmp_path / "rejected.csv", take_crystals(pairs.rejected, [3, 4, 5]))
    config = dataclasses.replace(
        base,
        run_dir=tmp_path / "run",
        chosen=chosen,
        rejected=rejected,
        loop=LoopConfig(max_steps=1),
        validation_fraction=0.0,
    )
    with caplog.at_level(logging.INFO, logger="crystalformer"):
        train_dpo(config)
    assert "1 pairs left out, to which the weights give no probability; the first is of rows 1 and 1" in caplog.text
    assert "2 pairs to train on, 0 held out" in caplog.text
    assert abs(metrics(config)[0]["logp_chosen"]) < 1e4


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("accumulate", 0), ("keep", 0), ("validation_fraction", 1.0)]
)
def test_an_impossible_value_is_refused_by_name(base, name, value):
    with pytest.raises(ValueError, match=f"{name} must"):
        dataclasses.replace(base, **{name: value})
