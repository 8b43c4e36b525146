"""From structures to a model and back through the command line: training, resuming, predicting, and what is refused."""

import csv
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys

import ase.build
import ase.io
import jax
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import atomformer
from atomformer.cli import main
from atomformer.train import FinetuneConfig, PretrainConfig, resolve_model
from matterform.config import load_config
from matterform.formats import read_structures, write_structures
from matterform.training.checkpoint import Checkpoints

TINY = ["--dim", "16", "--num-heads", "2", "--depth", "2", "--k", "8", "--batch-size", "8"]
FAST = ["--learning-rate", "0.01", "--schedule", "constant"]
NAMES = ("CH3CH2OH", "H2O", "CH4", "C2H2")


@pytest.fixture(scope="module")
def molecules(tmp_path_factory) -> pathlib.Path:
    """40 molecules with EMT energies and forces, a number (`gap`), a truth value and a class to learn."""
    structures = []
    for i in range(40):
        atoms = ase.build.molecule(NAMES[i % 4])
        atoms.rattle(0.05, seed=i)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy() - 900.0 * len(atoms), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        atoms.info.update(gap=2.0 * len(atoms) + 1, wet=float("O" in NAMES[i % 4]), kind=float(i % 4))
        atoms.info["formation_energy"] = energy + 900.0 * len(atoms)
        structures.append(atoms)
    path = tmp_path_factory.mktemp("data") / "molecules.xyz"
    write_structures(path, structures)
    return path


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def losses(run_dir: pathlib.Path) -> list[float]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def assert_equal_trees(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


TERMS = {
    "s2ef": [],
    "masked": ["--formation-energy", 0, "--forces", 0, "--masked", 1],
    "denoising": ["--formation-energy", 0, "--forces", 0, "--denoising", 1, "--conservative", "--noise-ang", 0.3],
    "all": ["--masked", 0.5, "--denoising", 1, "--conservative"],
}


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_pretraining_learns_each_term(molecules, tmp_path, terms):
    epochs = 60 if "--conservative" in terms else 8  # whose energy head starts at zero
    command = ["pretrain", "--train", molecules, "--run-dir", tmp_path / "run", *TINY, *FAST, "--epochs", epochs]
    assert run(*command, *terms) == 0
    found = losses(tmp_path / "run")
    assert np.mean(found[-2:]) < 0.95 * found[0]
    assert (tmp_path / "run" / "curves.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture(scope="module")
def pretrained(molecules, tmp_path_factory) -> pathlib.Path:
    """The run folder of a short pre-training with decay."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    terms = ["--masked", 0.1, "--ema-decay", 0.9]
    assert run("pretrain", "--train", molecules, "--run-dir", folder, *TINY, "--epochs", 2, *terms) == 0
    return folder


def test_the_table_of_elements_is_never_trained(pretrained):
    model = atomformer.from_pretrained(pretrained / "model")
    fresh, _ = atomformer.make_transformer(jax.random.key(0), model.config)
    np.testing.assert_array_equal(model.params["encoder"]["metadata"], fresh["encoder"]["metadata"])
    moved = np.asarray(model.params["encoder"]["features"]["w"]) != np.asarray(fresh["encoder"]["features"]["w"])
    assert moved.any()


def test_frozen_encoders_stay_and_matching_heads_are_taken_over(molecules, pretrained, tmp_path):
    finetune = ["finetune", "--train", molecules, "--start-from", pretrained / "model", "--batch-size", 8]
    labels = ["--label-columns", "gap", "--freeze", "encoder", "--epochs", 1]
    assert run(*finetune, "--run-dir", tmp_path / "frozen", *labels) == 0
    before, after = (atomformer.from_pretrained(folder / "model") for folder in (pretrained, tmp_path / "frozen"))
    assert_equal_trees(before.params["encoder"], after.params["encoder"])
    assert set(after.params["heads"]) == {"classification"}
    s2ef = ["--labels", 0, "--formation-energy", 1, "--forces", 1, "--learning-rate", 1e-12, "--epochs", 1]
    assert run(*finetune, "--run-dir", tmp_path / "s2ef", *s2ef) == 0
    again = atomformer.from_pretrained(tmp_path / "s2ef" / "model")
    assert set(again.params["heads"]) == {"formation_energy", "forces"}
    np.testing.assert_allclose(
        again.params["heads"]["forces"]["w"], before.params["heads"]["forces"]["w"], rtol=1e-4, atol=1e-7
    )


PROBLEMS = {
    "regression": (["--label-columns", "gap"], "gap/mae", lambda error: error < 1.0),
    "binary": (["--label-columns", "wet", "--problem", "binary"], "wet/accuracy", lambda share: share == 1.0),
    "multiclass": (
        ["--label-columns", "kind", "--problem", "multiclass"],
        "kind/accuracy",
        lambda share: share == 1.0,
    ),
}


@pytest.mark.parametrize(("flags", "metric", "good"), PROBLEMS.values(), ids=PROBLEMS)
def test_finetuning_learns_labels_and_evaluation_says_so(molecules, tmp_path, flags, metric, good):
    command = ["finetune", "--train", molecules, "--run-dir", tmp_path / "run", *TINY, *FAST, "--epochs", 30, *flags]
    assert run(*command) == 0
    out = tmp_path / "evaluation"
    columns = ["--label-columns", flags[1]]
    assert run("evaluate", molecules, "--model", tmp_path / "run" / "model", "--out", out, *columns) == 0
    metrics = json.loads((out / "evaluation.json").read_text())
    assert good(metrics[metric]), metrics
    assert (out / "parity.csv").read_text().startswith("quantity,known,predicted\n")


def test_large_energies_come_back_in_double_precision(molecules, tmp_path):
    """Energies down to -8100 eV, of which float32 resolves half a meV only."""
    flags = ["--labels", 0, "--total-energy", 1, "--forces", 1, "--conservative", "--fit-references"]
    assert run("finetune", "--train", molecules, "--run-dir", tmp_path / "run", *TINY, *flags, "--epochs", 1) == 0
    model = atomformer.from_pretrained(tmp_path / "run" / "model")
    structures, _ = read_structures(molecules)
    energies, forces = atomformer.predict(model, structures[:4])
    known = [atoms.get_potential_energy() for atoms in structures[:4]]
    # One constant for each composition: references alone are right to the spread of the rattled copies.
    np.testing.assert_allclose(energies, known, atol=3.0)
    out = tmp_path / "predicted.extxyz"
    assert run("predict", molecules, "--model", tmp_path / "run" / "model", "-o", out) == 0
    written, _ = read_structures(out)
    np.testing.assert_allclose(written[0].get_potential_energy(), energies[0], atol=1e-6)
    np.testing.assert_allclose(written[0].get_forces(), forces[0], atol=1e-5)


def test_validation_and_evaluation_agree(molecules, tmp_path):
    """The published model gives the errors that the last validation reported."""
    store = tmp_path / "store"
    assert run("prepare", molecules, store) == 0
    run_dir = tmp_path / "run"
    flags = ["--validation", molecules, *TINY, "--epochs", 2]
    assert run("pretrain", "--train", store, "--run-dir", run_dir, *flags) == 0
    with (run_dir / "metrics.csv").open(newline="") as file:
        best = min(csv.DictReader(file), key=lambda row: float(row["validation_loss"]))
    rows = [read for read in read_structures(molecules)[0]]
    found = list(atomformer.predict_all(atomformer.from_pretrained(run_dir / "model"), rows))
    known = np.array([atoms.info["formation_energy"] for atoms in rows])
    error = np.abs(np.array([prediction.formation_energy for prediction in found]) - known).mean()
    assert error == pytest.approx(float(best["validation_formation_energy"]), rel=1e-4)
    forces = np.concatenate([p.forces - atoms.get_forces() for p, atoms in zip(found, rows, strict=True)])
    assert np.abs(forces).mean() == pytest.approx(float(best["validation_forces"]), rel=1e-4)


class Terminator(logging.Handler):
    """Sends the process SIGTERM when step 6 has been logged."""

    def emit(self, record):
        if record.getMessage().startswith("step 6:"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupted_run_resumes_to_the_same_numbers(molecules, tmp_path):
    flags = ["--train", molecules, *TINY, "--epochs", 3, "--masked", 0.5, "--denoising", 1, "--ema-decay", 0.9]
    periods = ["--log-every", 2, "--dropout", 0.1]
    assert run("pretrain", "--run-dir", tmp_path / "whole", *flags, *periods) == 0
    logger, handler = logging.getLogger("matterform.training.loop"), Terminator()
    logger.addHandler(handler)
    try:
        assert run("pretrain", "--run-dir", tmp_path / "parts", *flags, *periods) == 130
    finally:
        logger.removeHandler(handler)
    assert not (tmp_path / "parts" / "model").exists()
    assert run("pretrain", "--run-dir", tmp_path / "parts", "--resume") == 0
    one, other = (atomformer.from_pretrained(tmp_path / name / "model").params for name in ("whole", "parts"))
    assert_equal_trees(one, other)
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "parts" / "metrics.csv").read_text()


@pytest.mark.slow
def test_four_devices_give_the_losses_of_one(molecules, tmp_path):
    arguments = ["pretrain", "--train", str(molecules), "--run-dir", str(tmp_path / "four"), *TINY, "--epochs", "1"]
    code = f"from atomformer.cli import main; raise SystemExit(main({arguments!r}))"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert run(*[str(tmp_path / "one") if a == str(tmp_path / "four") else a for a in arguments]) == 0
    np.testing.assert_allclose(losses(tmp_path / "four"), losses(tmp_path / "one"), rtol=1e-5)


def test_atom3d_tasks_by_name_from_a_folder_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)

    def part(count):
        rows = [ase.build.molecule(NAMES[i % 4]) for i in range(count)]
        return datasets.Dataset.from_dict(
            {
                "input_ids": [atoms.numbers.tolist() for atoms in rows],
                "coords": [(atoms.positions + rng.normal(0, 0.02, (len(atoms), 3))).tolist() for atoms in rows],
                "labels": [float(len(atoms)) for atoms in rows],
            }
        )

    datasets.DatasetDict({"train": part(24), "val": part(8), "test": part(8)}).save_to_disk(tmp_path / "lba")
    flags = ["--split", "train", "--validation-split", "val", "--task", "LBA", *TINY, *FAST, "--epochs", 25]
    assert run("finetune", "--train", tmp_path / "lba", "--run-dir", tmp_path / "run", *flags) == 0
    model = ["--model", tmp_path / "run" / "model", "--task", "LBA"]
    assert run("evaluate", tmp_path / "lba", *model, "--split", "test", "--out", tmp_path / "out") == 0
    metrics = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(metrics) == {"labels/rmse", "labels/pearson", "labels/spearman", "labels/count"}
    assert metrics["labels/pearson"] > 0.9


def test_isolated_atoms_are_references_up_to_a_shift(molecules, tmp_path):
    single = [ase.Atoms([number]) for number in (1, 6, 8)]
    for atoms, energy in zip(single, (-10.0, -900.0, -2000.0), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    write_structures(tmp_path / "atoms.xyz", single)
    flags = ["--labels", 0, "--total-energy", 1, "--isolated-atoms", tmp_path / "atoms.xyz", *TINY, "--max-steps", 1]
    assert run("finetune", "--train", molecules, "--run-dir", tmp_path / "run", *flags) == 0
    references = dict(atomformer.from_pretrained(tmp_path / "run" / "model").config.energy.references)
    assert references[6] - references[1] == pytest.approx(-890.0)
    assert references[8] - references[1] == pytest.approx(-1990.0)


# --- what the user can mend: one line, exit status 2 ------------------------------------------------------------------


def write(path: pathlib.Path, change) -> pathlib.Path:
    """Three water molecules, one of them changed."""
    structures = [ase.build.molecule("H2O") for _ in range(3)]
    for atoms in structures:
        forces = np.zeros((3, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=forces)
    change(structures[1])
    ase.io.write(path, structures, format="extxyz")
    return path


def misplace(atoms):
    atoms.positions[1] = atoms.positions[0]


def lose(atoms):
    atoms.positions[2, 0] = np.nan


@pytest.mark.parametrize(("change", "words"), [(misplace, "atoms 0 and 1 are at one place"), (lose, "atom 2")])
def test_unusable_structures_are_named_and_left_out(tmp_path, capfd, pretrained, change, words):
    path = write(tmp_path / "bad.xyz", change)
    assert run("predict", path, "--model", pretrained / "model", "-o", tmp_path / "out.extxyz") == 0
    error = capfd.readouterr().err
    assert "structure 1 left out" in error
    assert words in error
    assert len(read_structures(tmp_path / "out.extxyz")[0]) == 2
    assert run("prepare", path, tmp_path / "store") == 0
    with (tmp_path / "store.refused.csv").open(newline="") as file:
        assert [row["index"] for row in csv.DictReader(file)] == ["1"]


REFUSED = {
    "no command": ([], None),
    "unknown command": (["trian"], "unknown command"),
    "unknown flag": (["finetune", "--train", "{data}", "--run-dir", "{new}", "--epoch-s", "1"], "epoch-s"),
    "missing data": (["pretrain", "--train", "nowhere.xyz", "--run-dir", "{new}"], "nowhere.xyz does not exist"),
    "missing column": (["finetune", "--train", "{data}", "--run-dir", "{new}", "--label-columns", "gpa"], "gpa"),
    "no such term": (["pretrain", "--train", "{water}", "--run-dir", "{new}", *TINY], "formation_energy"),
    "classes": (
        ["finetune", "--train", "{data}", "--run-dir", "{new}", *TINY, "--label-columns", "gap", "--problem", "binary"],
        "classes 0 to 1",
    ),
    "no model": (["predict", "{data}", "--model", "{data}"], "molecules.xyz"),
    "another folder": (["predict", "{data}", "--model", "{folder}"], "model.safetensors"),
    "run exists": (["pretrain", "--train", "{data}", "--run-dir", "{run}", *TINY], "holds a run already"),
    "other settings": (
        ["pretrain", "--run-dir", "{run}", "--resume", "--seed", "7"],
        "cannot resume with another seed",
    ),
    "other data": (["pretrain", "--run-dir", "{run}", "--resume", "--train", "{water}"], "water.xyz"),
    "other size": (
        [
            *["finetune", "--train", "{data}", "--run-dir", "{new}", "--label-columns", "gap"],
            *["--start-from", "{run}/model", "--size", "tiny"],
        ],
        "size",
    ),
    "no weights": (["pretrain", "--train", "{data}", "--run-dir", "{new}", "--forces", "-1"], "forces"),
    "hub id": (["predict", "{data}", "--model", "no-such/model"], "no-such/model"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_mistakes_end_in_one_line_and_status_2(arguments, words, molecules, pretrained, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "folder").mkdir()
    places = {"data": molecules, "run": pretrained, "new": tmp_path / "new", "folder": tmp_path / "folder"}
    places["water"] = write(tmp_path / "water.xyz", lambda atoms: None)
    assert run(*[argument.format(**places) for argument in arguments]) == 2
    if words is not None:
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("atomformer: ")]
        assert len(lines) == 1
        assert words in lines[0]
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_a_config_that_disagrees_with_the_weights_is_named(pretrained, molecules, tmp_path, capfd):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (pretrained / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"depth": 5}))
    assert run("predict", molecules, "--model", folder, "-o", tmp_path / "out.extxyz") == 2
    assert "depth is 5 but the weights have 2" in capfd.readouterr().err
    assert not (tmp_path / "out.extxyz").exists()


def test_saved_configs_are_those_of_their_command(pretrained):
    config = load_config(PretrainConfig, pretrained / "config.yaml")
    assert config.loss.masked == 0.1
    assert config.model.dim == 16
    steps = Checkpoints(pretrained / "checkpoints").latest_step()
    assert steps == 2 * 5  # 38 structures of 40, 8 a step


def test_published_sizes_replace_the_four_numbers(molecules):
    config = FinetuneConfig(train=molecules, run_dir=molecules, size="mini", label_columns=("gap",))
    dataset, _ = atomformer.load_dataset(molecules)
    model = resolve_model(config, dataset, None)
    assert (model.dim, model.num_heads, model.depth, model.k) == (256, 8, 8, 256)
    assert model.label_names == ("gap",)
    gaps = dataset.structures["gap"]
    np.testing.assert_allclose([model.label_mean[0], model.label_scale[0]], [gaps.mean(), gaps.std()])
