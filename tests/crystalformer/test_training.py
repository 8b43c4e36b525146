"""Training end to end: a run folder, interruption, resuming, and what is refused."""

import csv
import dataclasses
import functools
import itertools
import logging
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalformer.checkpoint.published import load_checkpoint, save_checkpoint
from crystalformer.config import TrainConfig
from crystalformer.data.crystals import iterate_crystals
from crystalformer.data.dataset import load_crystals, open_dataset, prepare
from crystalformer.network.parameters import init_params
from crystalformer.training import load_split, train
from matterform.config import load_config
from matterform.training.config import LoopConfig, OptimizerConfig

CACHE = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}
PROTOTYPES = {
    "CsCl": ("Pm-3m", lambda a: Lattice.cubic(a), [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "NaCl": ("Fm-3m", lambda a: Lattice.cubic(1.6 * a), [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "ZnS": ("F-43m", lambda a: Lattice.cubic(1.6 * a), [[0, 0, 0], [0.25, 0.25, 0.25]]),
    "wurtzite": ("P6_3mc", lambda a: Lattice.hexagonal(a, 1.6 * a), [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.38]]),
}


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """The runs of this file compile the same programs: on disk, each is compiled once."""
    former = {name: getattr(jax.config, name) for name in CACHE}
    settings = CACHE | {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache"))}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield settings
    for name, value in former.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def csv_path(tmp_path_factory) -> pathlib.Path:
    """Forty crystals of two sites each, so that a step is compiled for one length only."""
    path = tmp_path_factory.mktemp("data") / "crystals.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["material_id", "cif"])
        cations = ["Li", "Na", "K", "Rb", "Cs"]
        for number, (anion, cation, name) in enumerate(itertools.product("FO", cations, PROTOTYPES)):
            group, lattice, sites = PROTOTYPES[name]
            structure = Structure.from_spacegroup(group, lattice(3.5 + 0.02 * number), [cation, anion], sites)
            table.writerow([f"toy-{number}", structure.to(fmt="cif")])
    return path


@pytest.fixture(scope="module")
def data(csv_path) -> pathlib.Path:
    folder = csv_path.parent / "prepared"
    assert prepare(csv_path, folder, n_max=6).accepted == 40
    return folder


@pytest.fixture(scope="module")
def base(data, tiny_config, tmp_path_factory) -> TrainConfig:
    return TrainConfig(
        train=data,
        run_dir=tmp_path_factory.mktemp("run") / "whole",
        transformer=dataclasses.replace(tiny_config, n_max=5, num_layers=1),
        optimizer=OptimizerConfig(learning_rate=3e-3, clip_norm=1.0, schedule="inverse_time", decay=0.01),
        loop=LoopConfig(epochs=3, log_every=2, validate_every=5, checkpoint_every=4),
        batch_size=8,
        ema_decay=0.9,
        publish_every=2,
    )


@pytest.fixture(scope="module")
def whole(base) -> TrainConfig:
    """A finished run."""
    result = train(base)
    assert result.outcome == "finished"
    assert int(result.state.step) == 15
    return base


def metrics(config: TrainConfig) -> list[dict[str, float]]:
    with (config.run_dir / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_published_equal(first: pathlib.Path, second: pathlib.Path) -> None:
    found, expected = load_checkpoint(first), load_checkpoint(second)
    jax.tree.map(np.testing.assert_array_equal, (found.params, found.opt_state), (expected.params, expected.opt_state))
    assert found.config == expected.config


def test_a_run_folder_describes_itself(whole):
    assert load_config(TrainConfig, whole.run_dir / "config.yaml") == whole
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert losses == sorted(losses, reverse=True)
    for row in rows:
        parts = sum(row[f"loss_{name}"] for name in ("w", "xyz", "a", "l"))
        np.testing.assert_allclose(parts, row["loss"], rtol=1e-5)
    assert sorted(path.name for path in (whole.run_dir / "published").iterdir()) == [
        "best.pkl",
        "epoch_000002.pkl",
        "epoch_000003.pkl",
    ]


def test_the_published_best_needs_no_hyperparameters(whole):
    checkpoint = load_checkpoint(whole.run_dir / "published" / "best.pkl")
    assert checkpoint.config == whole.transformer
    # The loss fell at every validation, so the last state is the best; both are the moving average.
    assert_published_equal(whole.run_dir / "published/best.pkl", whole.run_dir / "published/epoch_000003.pkl")


def test_a_run_stopped_by_a_signal_goes_on_as_if_nothing_had_happened(whole, tmp_path):
    class Terminator(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("step 6:"):
                os.kill(os.getpid(), signal.SIGTERM)

    logger, handler = logging.getLogger("matterform.training.loop"), Terminator()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    config = dataclasses.replace(whole, run_dir=tmp_path / "stopped")
    try:
        stopped = train(config)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert stopped.outcome == "interrupted"
    assert int(stopped.state.step) == 6
    assert not (config.run_dir / "published" / "best.pkl").exists()
    assert train(config, resume=True).outcome == "finished"
    for run in (config, whole):
        assert len(metrics(run)) == 9
    assert (config.run_dir / "metrics.csv").read_text() == (whole.run_dir / "metrics.csv").read_text()
    for name in ("best.pkl", "epoch_000002.pkl", "epoch_000003.pkl"):
        assert_published_equal(config.run_dir / "published" / name, whole.run_dir / "published" / name)


@pytest.mark.slow
def test_four_devices_give_the_losses_of_one(whole, tmp_path):
    code = f"""
import dataclasses, pathlib, jax
from crystalformer.training import train
from crystalformer.config import TrainConfig
from matterform.config import load_config
assert jax.device_count() == 4
config = load_config(TrainConfig, {str(whole.run_dir / "config.yaml")!r})
train(dataclasses.replace(config, run_dir=pathlib.Path({str(tmp_path / "run")!r})))
"""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    found = metrics(dataclasses.replace(whole, run_dir=tmp_path / "run"))
    for row, expected in zip(found, metrics(whole), strict=True):
        assert row.keys() == expected.keys()
        for name in row.keys() - {"grad_norm"}:
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "cannot resume with another seed: the run has 42, given 1"),
        ({"optimizer": OptimizerConfig(learning_rate=1.0)}, "cannot resume with another optimizer"),
        ({"batch_size": 4}, "cannot resume with another batch_size"),
    ],
)
def test_resuming_another_run_is_refused(whole, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(dataclasses.replace(whole, **change), resume=True)
    assert "\n" not in str(caught.value)


def test_a_second_run_in_the_same_folder_is_refused(whole):
    before = (whole.run_dir / "metrics.csv").read_bytes()
    with pytest.raises(ValueError, match="holds a run already; give --resume"):
        train(whole)
    assert (whole.run_dir / "metrics.csv").read_bytes() == before


def test_resuming_needs_a_run(base, tmp_path):
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(dataclasses.replace(base, run_dir=tmp_path), resume=True)


def test_a_run_that_ended_before_its_first_checkpoint_cannot_be_resumed(whole, tmp_path):
    config = dataclasses.replace(whole, run_dir=tmp_path)
    (tmp_path / "config.yaml").write_bytes((whole.run_dir / "config.yaml").read_bytes())
    with pytest.raises(ValueError, match="ended before its first checkpoint; delete it and begin anew"):
        train(config, resume=True)


def test_a_run_whose_data_cannot_be_read_leaves_nothing(base, tmp_path):
    config = dataclasses.replace(base, run_dir=tmp_path / "run", train=tmp_path / "misspelt.csv")
    with pytest.raises(FileNotFoundError, match=r"misspelt\.csv"):
        train(config)
    assert not config.run_dir.exists()


def test_training_starts_from_published_weights(base, tmp_path):
    params = init_params(jax.random.key(7), base.transformer)
    path = save_checkpoint(tmp_path / "epoch_000100.pkl", params)
    config = dataclasses.replace(
        base,
        run_dir=tmp_path / "run",
        model=path,
        optimizer=OptimizerConfig(learning_rate=1e-12),
        loop=LoopConfig(max_steps=1),
        validation_fraction=0.0,
        ema_decay=None,
    )
    train(config)
    after = load_checkpoint(config.run_dir / "published/best.pkl").params
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-11), after, params)


def test_published_weights_of_other_sizes_are_refused(golden, base, tmp_path):
    config = dataclasses.replace(base, run_dir=tmp_path / "run", model=golden.path)
    with pytest.raises(ValueError, match=rf"{golden.path.name}: \w+=\S+ was given, but the weights have"):
        train(config)
    assert not config.run_dir.exists()


def test_split_is_disjoint_complete_and_decided_by_the_seed(base, data):
    everything = open_dataset(data)

    def identity(crystals):
        return {(int(one.G), *one.A[:2].tolist(), float(one.L[0])) for one in iterate_crystals(crystals)}

    first, again = load_split(base), load_split(base)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert len(first.train.G) == 36
    assert len(first.validation.G) == 4
    assert identity(first.train).isdisjoint(identity(first.validation))
    assert identity(first.train) | identity(first.validation) == identity(everything)
    other = load_split(dataclasses.replace(base, seed=1))
    assert identity(other.validation) != identity(first.validation)
    given = load_split(dataclasses.replace(base, validation=data))
    assert len(given.train.G) == len(given.validation.G) == 40
    assert load_split(dataclasses.replace(base, validation_fraction=0.0)).validation is None


def test_csv_and_prepared_folder_are_the_same_data(base, csv_path, data):
    from_csv, from_folder = (load_crystals(path, base.transformer) for path in (csv_path, data))
    jax.tree.map(np.testing.assert_array_equal, from_csv, from_folder)
    assert from_csv.W.shape == (40, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_max": 2}, "needs n_max of at least 3; the network has 2"),
        ({"atom_types": 50}, "needs atom_types of at least 56; the network has 50"),
        ({"wyck_types": 2}, r"needs wyck_types of at least \d; the network has 2"),
    ],
)
def test_data_beyond_the_network_are_refused(base, data, change, message):
    with pytest.raises(ValueError, match=message):
        load_crystals(data, dataclasses.replace(base.transformer, **change))


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("accumulate", 0), ("keep", 0), ("validation_fraction", 1.0)]
)
def test_an_impossible_value_is_refused_by_name(base, name, value):
    with pytest.raises(ValueError, match=f"{name} must"):
        dataclasses.replace(base, **{name: value})
