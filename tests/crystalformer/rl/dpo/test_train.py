"""The losses by hand, and runs: what a folder holds, interruption, resuming, and what is refused."""

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
import jax.numpy as jnp
import numpy as np
import pytest

from crystalformer.checkpoint.published import load_checkpoint, save_checkpoint
from crystalformer.config import WeightsConfig
from crystalformer.data.crystals import Crystals
from crystalformer.loss import LogProb, log_prob
from crystalformer.rl.config import DpoConfig, PairingConfig, PreferenceConfig
from crystalformer.rl.dpo import train as dpo
from crystalformer.rl.dpo.pairs import Pairs, take_crystals
from crystalformer.rl.dpo.train import (
    METRICS,
    Example,
    load_pairs,
    make_pair_loss,
    preference_loss,
    reference_log_prob,
    split_examples,
    train_dpo,
)
from crystalformer.table import COLUMNS, TableWriter, table_rows
from matterform.config import load_config
from matterform.training.config import LoopConfig, OptimizerConfig

pytestmark = pytest.mark.usefixtures("quick")

COUNT, SLOTS = 24, 3


def write_table(path: pathlib.Path, crystals: Crystals, **more) -> pathlib.Path:
    """A table as `sample` writes it."""
    rows = table_rows(crystals, LogProb(*np.zeros((4, len(crystals.G)), np.float32)), range(len(crystals.G)))
    writer = TableWriter(path, (*COLUMNS, *more))
    writer.write({**row, **{name: values[i] for name, values in more.items()}} for i, row in enumerate(rows))
    writer.finish()
    return path


@pytest.fixture(scope="module")
def network(tiny_config):
    return dataclasses.replace(tiny_config, n_max=SLOTS + 1, num_layers=1, dropout_rate=0.5)


@pytest.fixture(scope="module")
def pairs(random_crystals) -> Pairs:
    """Crystals of any elements, to which the same ones of oxygen are preferred; a step is compiled for one length."""
    rejected = random_crystals(COUNT, SLOTS + 1, most=SLOTS - 1)
    return Pairs(rejected._replace(A=np.where(rejected.W > 0, 8, 0).astype(np.int32)), rejected)


@pytest.fixture(scope="module")
def base(network, lively, pairs, tmp_path_factory) -> DpoConfig:
    folder = tmp_path_factory.mktemp("dpo")
    save_checkpoint(folder / "start.pkl", lively(network), config=network)
    return DpoConfig(
        run_dir=folder / "whole",
        chosen=write_table(folder / "chosen.csv", pairs.chosen),
        rejected=write_table(folder / "rejected.csv", pairs.rejected),
        validation_fraction=0.25,
        weights=WeightsConfig(model=folder / "start.pkl"),
        optimizer=OptimizerConfig(learning_rate=3e-3, clip_norm=1.0),
        loop=LoopConfig(epochs=4, log_every=2, validate_every=4, checkpoint_every=4),
        batch_size=4,
        publish_every=2,
    )


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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, math.log(1 + math.exp(-0.2))),  # 0.598139: beta m = 0.1 x 2
        ({"beta": 0.5}, math.log(1 + math.exp(-1))),  # 0.313262
        ({"label_smoothing": 0.1}, 0.9 * math.log(1 + math.exp(-0.2)) + 0.1 * math.log(1 + math.exp(0.2))),  # 0.618139
        ({"gamma": 0.05}, math.log(1 + math.exp(-0.2)) + 0.05 * 30),  # 2.098139
        ({"loss": "ipo"}, 9.0),  # (2 - 1 / 0.2)^2
        ({"loss": "ipo", "beta": 0.25, "gamma": 0.1}, 3.0),  # (2 - 2)^2 + 0.1 x 30
    ],
)
def test_losses_of_a_margin_of_two(options, expected):
    found = preference_loss(jnp.float32(2), jnp.float32(-30), PreferenceConfig(**options))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, -0.05),  # -beta / 2
        ({"label_smoothing": 0.2}, -0.03),  # -beta (1 - 2 x 0.2) / 2
        ({"loss": "ipo"}, -10.0),  # 2 (0 - 5)
    ],
)
def test_the_pull_on_a_margin_of_zero(options, expected):
    pull = jax.grad(lambda margin: preference_loss(margin, jnp.float32(0), PreferenceConfig(**options)))(0.0)
    np.testing.assert_allclose(pull, expected, rtol=1e-6)


def test_the_smoothed_loss_is_least_at_the_odds_it_assumes():
    # With a share s of wrong pairs, sigmoid(beta m) = 1 - s at the minimum: m = log(0.9 / 0.1) / 0.1 for s = 0.1.
    config = PreferenceConfig(label_smoothing=0.1)
    slope = jax.grad(lambda margin: preference_loss(margin, jnp.float32(0), config))
    np.testing.assert_allclose(slope(10 * math.log(9)), 0, atol=1e-7)
    assert slope(20.0) < -1e-4
    assert slope(24.0) > 1e-4


def test_metrics_of_a_pair_follow_from_log_probabilities(network, lively, pairs):
    new, old = lively(network, 1), lively(network)
    reference = reference_log_prob(old, network, pairs)
    logp = reference_log_prob(new, network, pairs)
    np.testing.assert_allclose(reference[:, 1], log_prob(old, network, pairs.rejected).total, rtol=1e-6)
    example_loss = make_pair_loss(network, PreferenceConfig(beta=0.3))
    batch_loss = jax.jit(jax.vmap(example_loss, in_axes=(None, None, 0)))
    losses, found = batch_loss(new, None, Example(*pairs, reference))
    gain = logp - reference
    margin = gain[:, 0] - gain[:, 1]
    expected = {
        "accuracy": margin > 0,
        "ranked": logp[:, 0] > logp[:, 1],
        "margin": margin,
        "logp_chosen": logp[:, 0],
        "logp_rejected": logp[:, 1],
        "reward_chosen": 0.3 * gain[:, 0],
        "reward_rejected": 0.3 * gain[:, 1],
    }
    assert 0 < expected["accuracy"].mean() < 1
    assert set(found) == set(METRICS)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(losses, np.log1p(np.exp(-0.3 * margin)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [False, True])
def test_a_key_matters_only_with_dropout(network, lively, pairs, dropout):
    example = jax.tree.map(lambda field: field[0], Example(*pairs, np.zeros((COUNT, 2), np.float32)))
    example_loss = jax.jit(make_pair_loss(network, PreferenceConfig(), dropout))
    params = lively(network)
    losses = [example_loss(params, jax.random.key(seed), example)[0] for seed in range(2)]
    assert (losses[0] == losses[1]) == (not dropout)


@pytest.mark.parametrize(
    ("name", "value"), [("beta", 0.0), ("label_smoothing", 0.5), ("label_smoothing", -0.1), ("gamma", -1.0)]
)
def test_an_impossible_preference_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} must"):
        PreferenceConfig(**{name: value})


def test_ipo_has_no_label_smoothing():
    with pytest.raises(ValueError, match="label_smoothing belongs to the loss dpo"):
        PreferenceConfig(loss="ipo", label_smoothing=0.1)


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
    examples = Example(*data.pairs, reference_log_prob(reference.params, reference.config, data.pairs))
    _, held_out = split_examples(examples, whole)
    logp = reference_log_prob(checkpoint.params, checkpoint.config, Pairs(held_out.chosen, held_out.rejected))
    gain = logp - held_out.reference
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


@pytest.mark.parametrize("step", ["save_checkpoint", "_write_rows", "claim_run"])
def test_a_run_that_dies_before_it_is_complete_can_be_begun_again(base, tmp_path, monkeypatch, step):
    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    config = dataclasses.replace(base, run_dir=tmp_path / "run", loop=LoopConfig(max_steps=1))
    with monkeypatch.context() as patch:
        patch.setattr(dpo, step, die)
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


def test_a_run_takes_its_pairs_from_a_scored_table(whole, pairs, tmp_path):
    # Best against worst over one group of 2 COUNT crystals: the i-th best is chosen i, the i-th worst rejected i.
    both = Crystals(*(np.concatenate(fields) for fields in zip(*pairs, strict=True)))
    one_group = both._replace(G=np.ones_like(both.G), W=np.minimum(both.W, 1))
    score = [*range(COUNT), *range(-1, -COUNT - 1, -1)]
    path = write_table(tmp_path / "scored.csv", one_group, score=[-value for value in score])
    config = DpoConfig(
        run_dir=tmp_path / "run",
        scored=path,
        pairing=PairingConfig(score="score", lower_is_better=True, group_by="spacegroup"),
    )
    found = load_pairs(config, load_checkpoint(whole.weights.model).config)
    np.testing.assert_array_equal(found.rows, [(i, COUNT + i) for i in reversed(range(COUNT))])
    np.testing.assert_array_equal(found.pairs.chosen.A, pairs.chosen.A[::-1])
    np.testing.assert_array_equal(found.pairs.rejected.A, pairs.rejected.A[::-1])


def test_held_out_pairs_are_disjoint_complete_and_decided_by_the_seed(base, pairs):
    numbers = np.arange(2 * COUNT, dtype=np.float32).reshape(COUNT, 2)
    examples = Example(*pairs, numbers)
    train, held_out = split_examples(examples, base)
    assert (len(train.reference), len(held_out.reference)) == (18, 6)
    assert sorted([*train.reference[:, 0], *held_out.reference[:, 0]]) == numbers[:, 0].tolist()
    rows = (held_out.reference[:, 0] / 2).astype(int)
    np.testing.assert_array_equal(held_out.chosen.W, pairs.chosen.W[rows])
    again, other = (split_examples(examples, dataclasses.replace(base, seed=seed))[1] for seed in (42, 1))
    assert again.reference.tolist() == held_out.reference.tolist() != other.reference.tolist()
    assert split_examples(examples, dataclasses.replace(base, validation_fraction=0.0))[1] is None
    with pytest.raises(ValueError, match="leaves none of 24 pairs to train on"):
        split_examples(examples, dataclasses.replace(base, validation_fraction=0.99))


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


def test_resuming_with_other_pairs_is_refused(whole, pairs, tmp_path):
    fewer = write_table(tmp_path / "fewer.csv", take_crystals(pairs.chosen, range(COUNT - 1)))
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


def test_crystals_beyond_the_vocabulary_are_refused(base, network, pairs):
    with pytest.raises(ValueError, match=r"the rejected crystals of .*: crystal \d+ has A = \d+; this network knows"):
        load_pairs(base, dataclasses.replace(network, atom_types=20))


def test_a_pair_that_the_masks_forbid_is_left_out(base, network, pairs, tmp_path, caplog):
    # Letters must not fall: in P1 there is only a, and in P-1 (2) a site on i cannot stand before one on a.
    first = take_crystals(pairs.rejected, [0, 1, 2])
    first = first._replace(
        G=np.array([1, 2, 1], np.int32), W=np.array([[1, 0, 0, 0], [9, 1, 0, 0], [1, 1, 0, 0]], np.int32)
    )
    first = first._replace(A=np.where(first.W > 0, 8, 0).astype(np.int32))
    chosen = write_table(tmp_path / "chosen.csv", first)
    rejected = write_table(tmp_path / "rejected.csv", take_crystals(pairs.rejected, [3, 4, 5]))
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
