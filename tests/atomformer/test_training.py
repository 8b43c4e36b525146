"""Training runs: every loss learns, models are taken over, runs resume exactly and publish what they validated."""

import csv
import dataclasses
import logging
import os
import pathlib
import signal
import subprocess
import sys

import ase
import jax
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

import atomformer
from atomformer.checkpoint.published import Pretrained, from_pretrained, save_pretrained
from atomformer.cli import main
from atomformer.config import AtomformerConfig, EnergyScale, FinetuneConfig, LossConfig, PretrainConfig, TrainConfig
from atomformer.data.split import load_split
from atomformer.network.features import element_features
from atomformer.network.parameters import init_params
from atomformer.network.transformer import make_apply
from atomformer.prediction.metrics import ATOM3D
from atomformer.training import first_params, resolve_model, train
from matterform.config import load_config
from matterform.io.formats import read_structures, write_structures
from matterform.training import trainer
from matterform.training.batches import bucket_lengths
from matterform.training.checkpoint import Checkpoints
from matterform.training.config import LoopConfig, OptimizerConfig

pytestmark = pytest.mark.usefixtures("quick")

TINY = {"dim": 16, "num_heads": 2, "depth": 2, "k": 8}
SMALL = ["--dim", 16, "--num-heads", 2, "--depth", 2, "--k", 8, "--batch-size", 24, "--validation-fraction", 0]
# All structures in one batch, 160 times.
LEARN = ["--learning-rate", 0.01, "--schedule", "constant", "--epochs", 160, "--log-every", 20]
LEARN += ["--checkpoint-every", 160]
BRIEF = ["--epochs", 3, "--checkpoint-every", 3]


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def metrics(run_dir: pathlib.Path) -> list[dict[str, float]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_equal(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


CLEAN = ["--forces", 10]
MASKED = ["--formation-energy", 0, "--forces", 0, "--masked", 1]
NOISE = ["--formation-energy", 0, "--forces", 0, "--denoising", 1, "--noise-ang", 0.3]
ALL = ["--forces", 10, "--masked", 1, "--denoising", 5, "--noise-ang", 0.3]
# For each term, the share of the error of one who ignores the positions (for masked: but knows all frequencies).
PRETRAINING = {
    "energies and forces": (CLEAN, {"forces": 0.6}),
    "energies and conservative forces": ([*CLEAN, "--conservative"], {"forces": 0.6}),
    "masked atoms": (MASKED, {"masked": 0.5}),
    "denoising": (NOISE, {"denoising": 0.5}),
    "conservative denoising": ([*NOISE, "--conservative"], {"denoising": 0.93}),
    "all at once": (ALL, {"forces": 0.7, "masked": 0.7, "denoising": 0.7}),
    "all at once, conservative": ([*ALL, "--conservative"], {"forces": 0.7, "masked": 0.7}),
}


@pytest.mark.parametrize(("flags", "shares"), PRETRAINING.values(), ids=PRETRAINING)
def test_pretraining_learns_more_than_constants(toys, toy_file, tmp_path, flags, shares):
    numbers = np.concatenate([atoms.numbers for atoms in toys])
    frequencies = np.unique(numbers, return_counts=True)[1] / len(numbers)
    ignorant = {
        "forces": np.abs([atoms.get_forces() for atoms in toys]).mean(),
        "masked": -np.sum(frequencies * np.log(frequencies)),
        "denoising": 0.3 * np.sqrt(2 / np.pi),
    }
    assert run("pretrain", "--train", toy_file, "--run-dir", tmp_path / "run", *SMALL, *LEARN, *flags) == 0
    last = metrics(tmp_path / "run")[-1]
    assert last["step"] == 160
    for name, share in shares.items():
        assert last[name] < share * ignorant[name], (name, last[name] / ignorant[name])
    if "formation_energy" in last:
        energies = np.array([atoms.info["formation_energy"] for atoms in toys])
        assert last["formation_energy"] < 1.5 * np.abs(energies - np.median(energies)).mean()


LABELS = {
    "regression": (["--label-columns", "gap"], lambda one: one.labels[0]),
    "binary": (["--label-columns", "polar", "--problem", "binary"], lambda one: one.probabilities[0]),
    "multiclass": (["--label-columns", "kind", "--problem", "multiclass"], lambda one: one.labels.argmax()),
}


@pytest.mark.parametrize(("flags", "answer"), LABELS.values(), ids=LABELS)
def test_finetuning_learns_labels(toys, toy_file, tmp_path, flags, answer):
    assert run("finetune", "--train", toy_file, "--run-dir", tmp_path / "run", *SMALL, *LEARN, *flags) == 0
    found = [answer(one) for one in atomformer.predict_all(from_pretrained(tmp_path / "run" / "model"), toys)]
    known = [atoms.info[flags[1]] for atoms in toys]
    np.testing.assert_allclose(found, known, atol=0.25)  # gaps are 0.9 to 5.1


def test_a_parquet_file_trains_like_the_extxyz_it_came_from(toy_file, tmp_path):
    assert run("prepare", toy_file, tmp_path / "toys.parquet") == 0
    flags = [*SMALL, "--label-columns", "gap", "mu", *BRIEF]
    for path in (toy_file, tmp_path / "toys.parquet"):
        assert run("finetune", "--train", path, "--run-dir", tmp_path / path.suffix[1:], *flags) == 0
    assert metrics(tmp_path / "xyz") == metrics(tmp_path / "parquet")
    assert from_pretrained(tmp_path / "xyz" / "model").config.label_names == ("gap", "mu[0]", "mu[1]")


def shifted(toys, shift: float, path: pathlib.Path) -> pathlib.Path:
    """The toys with other total energies."""
    structures = [atoms.copy() for atoms in toys]
    for copy, atoms in zip(structures, toys, strict=True):
        energy = atoms.get_potential_energy() + shift * len(copy)
        copy.calc = SinglePointCalculator(copy, energy=energy, forces=atoms.get_forces())
    write_structures(path, structures)
    return path


@pytest.mark.parametrize("kind", ["fit_references", "isolated_atoms"])
def test_a_million_ev_an_atom_change_no_model(toys, tmp_path, kind):
    """Absolute energies come back; 1 eV is less than float32 resolves of them."""
    models = {}
    for name, shift in (("near", 0.0), ("far", -1e6)):
        flags = ["--labels", 0, "--total-energy", 1, "--forces", 1, *BRIEF]
        if kind == "isolated_atoms":
            lone = [atoms[[0]] for atoms in toys[:3]] + [toys[0][[2]], toys[2][[1]], toys[1][[1]]]
            for atoms in lone:  # energies of lone atoms lack those of bonds
                atoms.calc = SinglePointCalculator(atoms, energy=shift + 100.0 * atoms.numbers[0])
            write_structures(tmp_path / f"{name}_atoms.xyz", lone)
            flags += ["--isolated-atoms", tmp_path / f"{name}_atoms.xyz"]
        else:
            flags += ["--fit-references"]
        path = shifted(toys, shift, tmp_path / f"{name}.xyz")
        assert run("finetune", "--train", path, "--run-dir", tmp_path / name, *SMALL, *flags) == 0
        models[name] = from_pretrained(tmp_path / name / "model")
    near, far = (atomformer.predict(models[name], toys)[0] for name in ("near", "far"))
    np.testing.assert_allclose(far - near, [-1e6 * len(atoms) for atoms in toys], atol=1e-4, rtol=0)
    if kind == "fit_references":
        known = [atoms.get_potential_energy() for atoms in toys]
        np.testing.assert_allclose(near, known, atol=2.0)  # of ten thousand eV, by composition alone


def test_an_atom3d_task_is_learned_from_a_folder_of_datasets(toys, tmp_path):
    datasets = pytest.importorskip("datasets")

    def part(chosen):
        columns = {
            "input_ids": [atoms.numbers.tolist() for atoms in chosen],
            "coords": [atoms.positions.tolist() for atoms in chosen],
            "labels": [atoms.info["gap"] for atoms in chosen],
        }
        return datasets.Dataset.from_dict(columns)

    datasets.DatasetDict({"train": part(toys[:18]), "val": part(toys[18:])}).save_to_disk(tmp_path / "lba")
    flags = ["--split", "train", "--validation-split", "val", "--task", "LBA", *SMALL, *LEARN, "--batch-size", 18]
    flags += ["--validate-every", 80]
    assert run("finetune", "--train", tmp_path / "lba", "--run-dir", tmp_path / "run", *flags) == 0
    config = load_config(FinetuneConfig, tmp_path / "run" / "config.yaml")
    split = load_split(config)
    assert [len(part.offsets) - 1 for part in (split.train, split.validation)] == [18, 6]
    model = from_pretrained(tmp_path / "run" / "model")
    assert (model.config.problem, model.config.num_labels) == (ATOM3D["LBA"].problem, ATOM3D["LBA"].num_labels)
    found = [one.labels[0] for one in atomformer.predict_all(model, toys[18:])]
    np.testing.assert_allclose(found, [atoms.info["gap"] for atoms in toys[18:]], atol=0.4)


def test_real_energies_and_forces_are_learned_from_isolated_atoms(data_dir, tmp_path):
    structures, _ = read_structures(data_dir / "acac_train_300K.extxyz.gz")
    write_structures(tmp_path / "acac.xyz", structures[:20])
    flags = ["--labels", 0, "--total-energy", 1, "--forces", 10, "--conservative", *SMALL, "--batch-size", 10]
    flags += ["--isolated-atoms", data_dir / "acac_isolated_atoms.extxyz", "--epochs", 10, "--learning-rate", 0.01]
    flags += ["--depth", 1, "--checkpoint-every", 20]
    assert run("finetune", "--train", tmp_path / "acac.xyz", "--run-dir", tmp_path / "run", *flags) == 0
    rows = metrics(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"]
    energies, forces = atomformer.predict(from_pretrained(tmp_path / "run" / "model"), structures[:20])
    known = np.array([atoms.get_potential_energy() for atoms in structures[:20]])
    assert np.abs(energies - known).max() < 3.0 < 1e-3 * np.abs(known).min()
    np.testing.assert_allclose(np.sum(forces, axis=1), np.zeros((20, 3)), atol=1e-4)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> pathlib.Path:
    """The folder of a model with energies and forces, in units of its own."""
    config = AtomformerConfig(
        **TINY, heads=("formation_energy", "forces"), energy=EnergyScale(references=((1, -3.0),), scale=2.0)
    )
    folder = tmp_path_factory.mktemp("start") / "model"
    save_pretrained(folder, Pretrained(init_params(jax.random.key(7), config), config, make_apply(config)))
    return folder


def test_encoders_and_heads_of_the_same_shape_are_taken_over(start):
    model = from_pretrained(start)
    config = dataclasses.replace(model.config, heads=("forces", "classification", "coords"), num_labels=3)
    fresh = init_params(jax.random.key(1), config)
    found = first_params(jax.random.key(1), config, model)
    assert_equal(found["encoder"], model.params["encoder"])
    assert_equal(found["heads"]["forces"], model.params["heads"]["forces"])
    assert set(found["heads"]) == {"forces", "classification", "coords"}
    for name in ("classification", "coords"):
        assert_equal(found["heads"][name], fresh["heads"][name])


@pytest.mark.parametrize("freeze", ["none", "encoder"])
def test_weight_decay_and_moving_averages_leave_what_is_frozen(toy_file, start, tmp_path, freeze):
    flags = ["--model", start, "--freeze", freeze, "--label-columns", "gap", "--batch-size", 24]
    flags += ["--weight-decay", 0.5, "--ema-decay", 0.9, "--validation-fraction", 0, *BRIEF]
    assert run("finetune", "--train", toy_file, "--run-dir", tmp_path / "run", *flags) == 0
    before, after = from_pretrained(start), from_pretrained(tmp_path / "run" / "model")
    np.testing.assert_array_equal(after.params["encoder"]["metadata"], element_features().astype(np.float32))
    moved = [
        not np.array_equal(*leaves)
        for leaves in zip(*map(jax.tree.leaves, (before.params["encoder"], after.params["encoder"])), strict=True)
    ]
    assert sum(moved) == (0 if freeze == "encoder" else len(moved) - 1)


def test_units_of_energy_heads_come_with_them(toy_file, start):
    dataset, _ = atomformer.load_dataset(toy_file)
    config = FinetuneConfig(train=toy_file, run_dir=toy_file, model=str(start), loss=LossConfig(forces=1.0))
    taken = resolve_model(config, dataset, from_pretrained(start).config)
    assert taken.energy == from_pretrained(start).config.energy
    assert (taken.dim, taken.depth, taken.heads) == (16, 2, ("forces",))
    labels = dataclasses.replace(config, loss=LossConfig(labels=1.0), label_columns=("gap",))
    assert resolve_model(labels, dataset, from_pretrained(start).config).energy == EnergyScale()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "tiny"}, r"size tiny .*dim=16"),
        ({"network": AtomformerConfig(dim=32, num_heads=2)}, "dim"),
        ({"loss": LossConfig(forces=1.0), "fit_references": True}, "references need"),
        ({"label_columns": ("gpa",)}, "no column 'gpa'"),
    ],
)
def test_what_contradicts_the_start_or_the_data_is_named(toy_file, start, changes, message):
    dataset, _ = atomformer.load_dataset(toy_file)
    config = FinetuneConfig(train=toy_file, run_dir=toy_file, model=str(start), label_columns=("gap",))
    with pytest.raises(ValueError, match=message):
        resolve_model(dataclasses.replace(config, **changes), dataset, from_pretrained(start).config)


def test_a_published_size_replaces_the_four_numbers_and_labels_get_origin_and_unit(toy_file):
    dataset, _ = atomformer.load_dataset(toy_file)
    config = FinetuneConfig(train=toy_file, run_dir=toy_file, size="mini", label_columns=("gap",))
    model = resolve_model(config, dataset, None)
    assert (model.dim, model.num_heads, model.depth, model.k) == (256, 8, 8, 256)
    gaps = dataset.structures["gap"]
    assert (model.label_mean, model.label_scale) == ((pytest.approx(gaps.mean()),), (pytest.approx(gaps.std()),))
    plain = resolve_model(dataclasses.replace(config, standardize=False), dataset, None)
    assert (plain.label_mean, plain.label_scale) == ((), ())


@pytest.fixture(scope="module")
def base(toy_file, tmp_path_factory) -> TrainConfig:
    """Every source of chance at once: order, masks, noise, dropout; 3 steps an epoch."""
    return PretrainConfig(
        train=toy_file,
        run_dir=tmp_path_factory.mktemp("runs") / "whole",
        validation_fraction=0.25,
        network=AtomformerConfig(**TINY, dropout=0.1),
        loss=LossConfig(formation_energy=1.0, forces=1.0, masked=0.5, denoising=1.0),
        optimizer=OptimizerConfig(learning_rate=0.05, schedule="constant", clip_norm=5.0),
        loop=LoopConfig(epochs=4, log_every=2, validate_every=2, checkpoint_every=3),
        batch_size=6,
        ema_decay=0.5,
    )


@pytest.fixture(scope="module")
def whole(base):
    """The result of the run that `base` describes."""
    result = train(base)
    assert result.outcome == "finished"
    assert int(result.state.step) == 12
    return result


class Terminator(logging.Handler):
    """Sends the process SIGTERM when step 4 has been logged."""

    def emit(self, record):
        if record.getMessage().startswith("step 4:"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupted_run_resumes_to_the_same_numbers(base, whole, tmp_path):
    config = dataclasses.replace(base, run_dir=tmp_path / "run")
    logger, handler = logging.getLogger("matterform.training.loop"), Terminator()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        stopped = train(config)
    finally:
        logger.removeHandler(handler)
    assert (stopped.outcome, int(stopped.state.step)) == ("interrupted", 4)  # in the midst of an epoch
    assert not (config.run_dir / "model").exists()
    resumed = train(config, resume=True)
    assert resumed.outcome == "finished"
    assert_equal(resumed.state, whole.state)
    assert (resumed.best_loss, resumed.best_step) == (whole.best_loss, whole.best_step)
    for name in ("metrics.csv", "model/model.safetensors", "model/config.json"):
        assert (config.run_dir / name).read_bytes() == (base.run_dir / name).read_bytes()


def test_the_average_of_the_best_step_is_published(base, whole):
    rows = [row for row in metrics(base.run_dir) if "validation_loss" in row]
    best = min(rows, key=lambda row: row["validation_loss"])
    assert best["step"] == whole.best_step < 12  # so fast a descent overshoots
    checkpoints = Checkpoints(base.run_dir / "best")
    state, _ = checkpoints.restore(whole.state)
    checkpoints.close()
    published = from_pretrained(base.run_dir / "model").params
    np.testing.assert_array_equal(published["heads"]["forces"]["w"], state.ema["heads"]["forces"]["w"])
    assert_equal({**published["encoder"], "metadata": 0}, {**state.ema["encoder"], "metadata": 0})
    assert not np.array_equal(state.ema["heads"]["forces"]["w"], state.params["heads"]["forces"]["w"])


def test_the_published_model_has_the_errors_that_validation_reported(base, whole):
    held_out = load_split(base).validation
    best = next(row for row in metrics(base.run_dir) if row["step"] == whole.best_step)
    pairs = list(zip(held_out.offsets[:-1], held_out.offsets[1:], strict=True))
    structures = [
        {"input_ids": held_out.atoms["input_ids"][i:j], "coords": held_out.atoms["coords"][i:j]} for i, j in pairs
    ]
    found = list(atomformer.predict_all(from_pretrained(base.run_dir / "model"), structures))
    energies = [one.formation_energy for one in found] - held_out.structures["formation_energy"]
    forces = np.concatenate([one.forces for one in found]) - held_out.atoms["forces"]
    assert np.abs(energies).mean() == pytest.approx(best["validation_formation_energy"], rel=1e-4)
    assert np.abs(forces).mean() == pytest.approx(best["validation_forces"], rel=1e-4)


def test_a_run_folder_describes_itself(base, whole):
    assert load_config(PretrainConfig, base.run_dir / "config.yaml") == base
    names = {path.name for path in base.run_dir.iterdir() if not path.name.startswith("events.")}
    assert names == {"config.yaml", "data.json", "metrics.csv", "checkpoints", "best", "model"}
    assert [row["step"] for row in metrics(base.run_dir)] == [2, 4, 6, 8, 10, 12]


def test_another_run_or_other_data_are_not_resumed(base, whole, toys, tmp_path):
    with pytest.raises(ValueError, match="holds a run already"):
        train(base)
    loss = dataclasses.replace(base.loss, forces=2.0)
    with pytest.raises(ValueError, match=r"another loss\.forces: the run has 1\.0, given 2\.0"):
        train(dataclasses.replace(base, loss=loss), resume=True)
    write_structures(tmp_path / "other.xyz", toys[::-1])
    with pytest.raises(ValueError, match="cannot resume with other data"):
        train(dataclasses.replace(base, train=tmp_path / "other.xyz"), resume=True)
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(dataclasses.replace(base, run_dir=tmp_path / "new"), resume=True)


def test_mixed_sizes_compile_one_program_a_bucket(monkeypatch, tmp_path, rng):
    chains = [np.arange(size)[:, None] * [1.3, 0.0, 0.0] for size in (3, 4, 7, 8) * 4]
    structures = [ase.Atoms(f"C{len(chain)}", chain + 0.05 * rng.standard_normal(chain.shape)) for chain in chains]
    write_structures(tmp_path / "chains.xyz", structures)
    steps, make_train_step = [], trainer.make_train_step

    def recorded(*arguments, **options):
        steps.append(make_train_step(*arguments, **options))
        return steps[-1]

    monkeypatch.setattr(trainer, "make_train_step", recorded)
    flags = [
        *SMALL,
        "--depth",
        1,
        "--batch-size",
        2,
        "--formation-energy",
        0,
        "--forces",
        0,
        "--masked",
        1,
        "--epochs",
        2,
    ]
    assert run("pretrain", "--train", tmp_path / "chains.xyz", "--run-dir", tmp_path / "run", *flags) == 0
    buckets = bucket_lengths(np.array([3, 4, 7, 8]))
    assert len(buckets) == 3  # 7 goes with 8
    assert steps[0]._cache_size() == 3


@pytest.mark.slow
def test_four_devices_train_like_one(base, toys, tmp_path):
    """Other devices, other order of sums, nothing more."""
    flags = [*SMALL, "--train", base.train, "--masked", 1, "--denoising", 1, "--epochs", 3, "--learning-rate", 1e-3]
    code = "import sys; from atomformer.cli import main; sys.exit(main(sys.argv[1:]))"
    for devices in (1, 4):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
        environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
        command = ["pretrain", "--run-dir", tmp_path / str(devices), *flags]
        subprocess.run([sys.executable, "-c", code, *map(str, command)], env=environment, check=True, timeout=300)
    one, four = (metrics(tmp_path / name) for name in ("1", "4"))
    np.testing.assert_allclose([row["loss"] for row in four], [row["loss"] for row in one], rtol=1e-5)
    # Weights without influence have gradients of rounding alone, which Adam makes as large as any: compare predictions.
    models = [from_pretrained(tmp_path / name / "model") for name in ("1", "4")]
    energies, forces = zip(*(atomformer.predict(model, toys) for model in models), strict=True)
    np.testing.assert_allclose(energies[1], energies[0], atol=1e-5)
    np.testing.assert_allclose(forces[1], forces[0], atol=1e-5)
