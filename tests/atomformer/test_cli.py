"""The command line between files: preparing, predicting, evaluating, and what it says of mistakes."""

import csv
import gzip
import json
import pathlib
import re
from typing import Any

import ase
import ase.build
import ase.io
import jax
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

import atomformer
from atomformer.checkpoint.published import Pretrained, from_pretrained, save_pretrained
from atomformer.cli import COMMANDS, main
from atomformer.config import AtomformerConfig, EnergyScale
from atomformer.data.sources import iterate_rows
from atomformer.network.parameters import init_params
from atomformer.network.transformer import make_apply
from matterform.arguments import parse
from matterform.io.formats import read_structures, write_structures

pytestmark = pytest.mark.usefixtures("quick")

TINY = {"dim": 16, "num_heads": 2, "depth": 2, "k": 8}
SMALL = ["--dim", "16", "--num-heads", "2", "--depth", "2", "--k", "8", "--validation-fraction", "0"]
REFERENCES = ((1, -13.6), (6, -1028.5), (8, -2041.25), (14, -7870.0), (17, -12500.0))


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def table(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    """A folder with a random model of energies, forces and two properties, which knows five elements."""
    config = AtomformerConfig(
        **TINY,
        heads=("total_energy", "total_forces", "classification"),
        num_labels=2,
        label_names=("gap", "polar"),
        label_mean=(3.0, 0.5),
        energy=EnergyScale(references=REFERENCES),
    )
    folder = tmp_path_factory.mktemp("models") / "model"
    params = init_params(jax.random.key(3), config)
    heads = jax.tree.map(lambda x: x + 0.3 * np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape), params)
    save_pretrained(folder, Pretrained({**params, "heads": heads["heads"]}, config, make_apply(config)))
    return folder


@pytest.fixture(scope="module")
def mixed(toys, tmp_path_factory) -> pathlib.Path:
    """Six toys; the second has no place for an atom, the fourth two atoms at one place, the sixth an element unknown
    to the model."""
    structures = [atoms.copy() for atoms in toys[:6]]
    structures[1].positions[2, 0] = np.nan
    structures[3].positions[1] = structures[3].positions[0]
    structures[5].numbers[0] = 79
    path = tmp_path_factory.mktemp("mixed") / "mixed.extxyz"
    ase.io.write(path, structures, format="extxyz")
    return path


@pytest.mark.parametrize("out", ["store", "toys.parquet"])
def test_what_is_prepared_holds_all_that_can_be_used(mixed, toys, tmp_path, capsys, out):
    assert run("prepare", mixed, tmp_path / out) == 0
    assert capsys.readouterr().out == f"4 structures in {tmp_path / out}; 2 refused\n"
    rows = [read.row for read in iterate_rows(tmp_path / out)]
    np.testing.assert_allclose([row["coords"] for row in rows], [toys[i].positions for i in (0, 2, 4, 5)], atol=1e-6)
    np.testing.assert_allclose([row["gap"] for row in rows], [toys[i].info["gap"] for i in (0, 2, 4, 5)], rtol=1e-7)
    refused = table(tmp_path / f"{out}.refused.csv")
    assert [row["index"] for row in refused] == ["1", "3"]
    assert "atom 2 has" in refused[0]["reason"]
    assert "atoms 0 and 1 are at the same place" in refused[1]["reason"]


def test_a_list_of_refused_structures_goes_with_its_cause(mixed, toy_file, tmp_path):
    assert run("prepare", mixed, tmp_path / "toys.parquet") == 0
    assert (tmp_path / "toys.parquet.refused.csv").exists()
    assert run("prepare", toy_file, tmp_path / "toys.parquet") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"toys.parquet"}


def test_raw_sets_are_converted_by_kind(tmp_path):
    """OC20 as distributed: frames in extxyz, and beside each file lines of system, frame and reference energy."""
    atoms = ase.build.fcc111("Cu", (2, 2, 2), vacuum=5.0)
    ase.build.add_adsorbate(atoms, "O", 1.2)
    atoms.set_tags([0] * 4 + [1] * 4 + [2])
    del atoms.info["adsorbate_info"]
    atoms.calc = SinglePointCalculator(atoms, energy=-40.0, free_energy=-40.0, forces=np.zeros((9, 3)))
    (tmp_path / "raw").mkdir()
    write_structures(tmp_path / "raw" / "0.extxyz", [atoms, atoms])
    (tmp_path / "raw" / "0.txt").write_text("random1,frame0,-38.5\nrandom1,frame1,-37.0\n")
    assert run("prepare", tmp_path / "raw", tmp_path / "oc20.parquet", "--kind", "oc20") == 0
    rows = [read.row for read in iterate_rows(tmp_path / "oc20.parquet")]
    assert [row["formation_energy"] for row in rows] == pytest.approx([-1.5, -3.0])
    np.testing.assert_array_equal(rows[0]["input_ids"], atoms.numbers)


def test_predictions_and_features_are_those_of_the_library(model, toys, toy_file, tmp_path):
    files = ["-o", tmp_path / "out.extxyz", "--features", tmp_path / "features.npz"]
    assert run("predict", toy_file, "--model", model, *files) == 0
    written, refused = read_structures(tmp_path / "out.extxyz")
    assert not refused
    expected = list(atomformer.predict_all(from_pretrained(model), toys, features=True))
    assert len(written) == len(expected) == 24
    for atoms, source, one in zip(written, toys, expected, strict=True):
        assert atoms.get_potential_energy() == pytest.approx(one.total_energy, abs=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), one.forces, atol=1e-6)
        np.testing.assert_allclose([atoms.info["gap"], atoms.info["polar"]], one.labels, rtol=1e-5)
        np.testing.assert_allclose(atoms.positions, source.positions, atol=1e-6)
        assert atoms.info["formation_energy"] == pytest.approx(source.info["formation_energy"])
    assert np.std([one.total_energy for one in expected]) > 1.0
    assert np.ptp([one.labels[0] for one in expected]) > 0.1
    with np.load(tmp_path / "features.npz") as features:
        np.testing.assert_allclose(features["system"], [one.system_features for one in expected], rtol=1e-6)
        np.testing.assert_array_equal(features["offsets"], 3 * np.arange(25))
        np.testing.assert_allclose(features["atoms"][3:6], expected[1].atom_features, rtol=1e-6)


def test_structures_that_cannot_be_used_are_named_and_left_out(model, mixed, toys, tmp_path, capsys):
    assert run("predict", mixed, "--model", model, "-o", tmp_path / "out.xyz") == 0
    output = capsys.readouterr()
    assert output.out == f"3 structures in {tmp_path / 'out.xyz'}\n"
    lines = output.err.splitlines()
    assert [re.search(r"structure (\d) left out: ", line)[1] for line in lines] == ["1", "3", "5"]
    assert "no reference energies of Au" in lines[2]
    written, _ = read_structures(tmp_path / "out.xyz")
    kept = [atoms for i, atoms in enumerate(toys[:6]) if i in (0, 2, 4)]
    energies, _ = atomformer.predict(from_pretrained(model), kept)
    np.testing.assert_allclose([atoms.get_potential_energy() for atoms in written], energies, atol=1e-6)


def test_nothing_usable_leaves_no_file(model, tmp_path, capsys):
    ase.io.write(tmp_path / "bad.extxyz", ase.Atoms("CO"), format="extxyz")
    assert run("predict", tmp_path / "bad.extxyz", "--model", model, "-o", tmp_path / "out.xyz") == 2
    assert "holds no structure that can be used" in capsys.readouterr().err
    assert not (tmp_path / "out.xyz").exists()


def test_evaluation_is_what_one_computes_by_hand(model, toys, toy_file, tmp_path, capsys):
    out = tmp_path / "evaluation"
    assert run("evaluate", toy_file, "--model", model, "--out", out) == 0
    text = (out / "evaluation.json").read_text()
    found = json.loads(text)
    predictions = list(atomformer.predict_all(from_pretrained(model), toys))
    energy = np.array(
        [one.total_energy - atoms.get_potential_energy() for one, atoms in zip(predictions, toys, strict=True)]
    )
    forces = np.concatenate([one.forces - atoms.get_forces() for one, atoms in zip(predictions, toys, strict=True)])
    gap = np.array([one.labels[0] - atoms.info["gap"] for one, atoms in zip(predictions, toys, strict=True)])
    expected = {
        "total_energy/mae_mev": 1000 * np.abs(energy).mean(),
        "total_energy/rmse_mev": 1000 * np.sqrt((energy**2).mean()),
        "total_energy/mae_mev_per_atom": 1000 * np.abs(energy).mean() / 3,
        "total_energy/rmse_mev_per_atom": 1000 * np.sqrt((energy**2).mean()) / 3,
        "total_energy/count": 24,
        "forces/mae_mev_per_ang": 1000 * np.abs(forces).mean(),
        "forces/rmse_mev_per_ang": 1000 * np.sqrt((forces**2).mean()),
        "forces/count": 24 * 9,
        "gap/mae": np.abs(gap).mean(),
        "gap/rmse": np.sqrt((gap**2).mean()),
        "polar/count": 24,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert -1 < found["forces/cosine"] < 1
    rows = table(out / "parity.csv")
    assert {row["quantity"] for row in rows} == {"total_energy", "forces", "labels"}
    values = [(float(row["known"]), float(row["predicted"])) for row in rows if row["quantity"] == "total_energy"]
    np.testing.assert_allclose(values[5], [toys[5].get_potential_energy(), predictions[5].total_energy], atol=1e-5)
    assert sum(row["quantity"] == "forces" for row in rows) == 24 * 9
    picture = (out / "parity.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture.endswith(b"IEND\xaeB`\x82")
    assert f"{found['forces/mae_mev_per_ang']:.6g}" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"evaluation.json", "parity.csv", "parity.png"}


def test_an_undefined_metric_is_null_in_json(model, toys, tmp_path):
    """The correlation with a constant."""
    structures = [atoms.copy() for atoms in toys[:3]]
    for atoms in structures:
        atoms.info["gap"] = 1.0
    write_structures(tmp_path / "same.xyz", structures)
    assert run("evaluate", tmp_path / "same.xyz", "--model", model, "--out", tmp_path / "out") == 0

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    found = json.loads((tmp_path / "out" / "evaluation.json").read_text(), parse_constant=refuse)
    assert found["gap/pearson"] is None
    assert found["gap/mae"] > 0


@pytest.fixture(scope="module")
def place(toys, toy_file, model, mixed, tmp_path_factory) -> pathlib.Path:
    """A folder with good and bad files under short names, and a run."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "toys.xyz").write_bytes(toy_file.read_bytes())
    write_structures(folder / "other.xyz", toys[::-1])
    (folder / "model").symlink_to(model)
    for name, changes in {
        "deeper": {"depth": 3},
        "wider": {"dim": 32},
        "family": {"model_type": "bert"},
        "odd": {"dim": "16"},
    }.items():
        (folder / name).mkdir()
        for file in model.iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
        config = json.loads((model / "config.json").read_text()) | changes
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "cut").mkdir()
    (folder / "cut" / "config.json").write_bytes((model / "config.json").read_bytes())
    (folder / "cut" / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:5000])
    (folder / "random").mkdir()
    (folder / "random" / "notes.txt").write_text("nothing")
    (folder / "crystals.pkl").write_bytes(b"\x80\x04N.")
    (folder / "running").mkdir()
    (folder / "running" / "config.yaml").write_text("seed: 1\n")
    (folder / "empty.xyz").write_text("")
    (folder / "noise.parquet").write_bytes(b"noise")
    with gzip.open(folder / "whole.xyz.gz", "wb") as file:
        file.write((folder / "toys.xyz").read_bytes())
    (folder / "cut.xyz.gz").write_bytes((folder / "whole.xyz.gz").read_bytes()[:500])
    bare = [ase.Atoms(atoms.numbers, atoms.positions) for atoms in toys[:4]]
    write_structures(folder / "bare.xyz", bare)
    wrong = (folder / "bare.xyz").read_text().replace(" H ", " Xy ").replace("\nH ", "\nXy ")
    (folder / "unknown.xyz").write_text(re.sub(r"^(C|O|Si|Cl) ", "Xy ", wrong, flags=re.MULTILINE))
    for atoms in bare:
        atoms.positions[0] = np.nan
    ase.io.write(folder / "nan.extxyz", bare, format="extxyz")
    (folder / "forces.json").write_text("{}")
    lone = ase.Atoms("H")
    lone.calc = SinglePointCalculator(lone, energy=-13.0)
    write_structures(folder / "hydrogen.xyz", [lone])
    assert run("pretrain", "--train", folder / "toys.xyz", "--run-dir", folder / "run", *SMALL, "--max-steps", 1) == 0
    return folder


def parsed(name: str, *argv: str) -> Any:
    command = next(command for command in COMMANDS if command.name == name)
    return parse(command, "atomformer", argv)


def test_published_names_of_flags_are_understood_silently(capsys):
    run = ["--output_dir", "runs/x", "--train_file", "a.xyz", "--validation_file", "b.xyz"]
    loop = ["--num_train_epochs", "3", "--logging_steps", "5", "--eval_steps", "7", "--save_steps", "9"]
    start = ["--model_name_or_path", "base"]
    step = ["--max_grad_norm", "2", "--warmup_ratio", "0.1", "--lr_scheduler_type", "cosine", "--lr", "1e-3"]
    config = parsed("finetune", *run, *start, *loop, *step, "--save_total_limit", "4", "--weight_decay=0.5").config
    paths = (config.run_dir, config.train, config.validation, config.model)
    assert paths == (pathlib.Path("runs/x"), pathlib.Path("a.xyz"), pathlib.Path("b.xyz"), "base")
    loop = config.loop
    assert (loop.epochs, loop.log_every, loop.validate_every, loop.checkpoint_every) == (3, 5, 7, 9)
    optimizer = config.optimizer
    assert (optimizer.clip_norm, optimizer.warmup_fraction, optimizer.schedule) == (2.0, 0.1, "cosine")
    assert (optimizer.learning_rate, optimizer.weight_decay, config.keep) == (1e-3, 0.5, 4)
    predict = parsed("predict", "a.xyz", "--checkpoint", "base", "--output", "b.xyz")
    assert (predict.model, predict.out) == ("base", pathlib.Path("b.xyz"))
    assert parsed("predict", "a.xyz", "base", "-o", "b.xyz") == predict
    assert parsed("evaluate", "a.xyz", "base") == parsed("evaluate", "--model", "base", "a.xyz")
    prepare = parsed("prepare", "--kind", "oc20", "-o", "b", "a")
    assert parsed("prepare", "a", "b", "--kind", "oc20") == prepare
    assert parsed("finetune", "base", "--train", "a.xyz", "--run-dir", "x").config.model == "base"
    assert capsys.readouterr() == ("", "")


def write_wrong_forces(path: pathlib.Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"input_ids": [[1, 8]], "coords": [[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]], "forces": [[[1.0, 2.0, 3.0]]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def finetune(*flags: str, data: str = "toys.xyz") -> list[str]:
    return ["finetune", "--train", data, "--run-dir", "new", *flags]


def pretrain(*flags: str, data: str = "toys.xyz") -> list[str]:
    return ["pretrain", "--train", data, "--run-dir", "new", *SMALL, *flags]


def predict(*flags: str, data: str = "toys.xyz", model: str = "model") -> list[str]:
    return ["predict", data, "--model", model, "-o", "new", *flags]


def evaluate(*flags: str, data: str = "toys.xyz") -> list[str]:
    return ["evaluate", data, "--model", "model", "--out", "new", *flags]


GAP = ["--label-columns", "gap"]
TOTAL = ["--labels", "0", "--total-energy", "1"]
START = ["--model", "model"]

MISTAKES = {
    "command": (["trian"], "unknown command 'trian'"),
    "flag": (pretrain("--bogus", "3"), "--bogus"),
    "flag without value": (["pretrain", "--train"], "--train"),
    "choice": (finetune("--task", "LBB"), "LBB"),
    "kind": (["prepare", "toys.xyz", "new", "--kind", "oc21"], "oc21"),
    # data
    "absent data": (pretrain(data="absent.xyz"), "absent.xyz does not exist"),
    "empty data": (pretrain(data="empty.xyz"), "empty.xyz holds no structures"),
    "damaged table": (pretrain(data="noise.parquet"), "noise.parquet"),
    "damaged archive": (pretrain(data="cut.xyz.gz"), "cut.xyz.gz is damaged or cut off"),
    "unknown suffix": (["prepare", "crystals.pkl", "new"], "crystals.pkl has an unknown suffix"),
    "unknown elements": (pretrain(data="unknown.xyz"), "Xy"),
    "NaN coordinates": (pretrain(data="nan.extxyz"), "coords: atom 0 has [nan, nan, nan]"),
    "forces of wrong shape": (["prepare", "forces.parquet", "new"], "forces: expected shape (2, 3)"),
    "a split of no parts": (finetune("--split", "train", *GAP), "has no split 'train'"),
    "no energies": (pretrain(data="bare.xyz"), "no column 'formation_energy'"),
    "no forces": (pretrain("--formation-energy", "0", data="bare.xyz"), "no column 'forces'"),
    "no labels": (finetune(*GAP, data="bare.xyz"), "no column 'gap' to learn"),
    "default labels": (finetune(), "no column 'labels' to learn"),
    "no classes": (finetune(*GAP, "--problem", "binary"), "must hold classes 0 to 1"),
    "no whole classes": (finetune(*GAP, "--problem", "multiclass"), "must hold classes 0 to"),
    "labels of a task": (
        finetune(*GAP, "--task", "SMP"),
        "task SMP learns 20 labels per structure; the label columns gap hold 1",
    ),
    "references": (finetune(*TOTAL, "--isolated-atoms", "hydrogen.xyz"), "the isolated atoms lack C, O, Si, Cl"),
    "no lone atoms": (finetune(*TOTAL, "--isolated-atoms", "toys.xyz"), "must be a single atom with an energy"),
    "two references": (
        finetune(*TOTAL, "--isolated-atoms", "hydrogen.xyz", "--fit-references"),
        "fit_references or isolated_atoms, not both",
    ),
    "everything held out": (pretrain("--validation-fraction", "0.99"), "leaves none of 24 structures"),
    "no loss": (pretrain("--formation-energy", "0", "--forces", "0"), "must be positive"),
    "negative weight": (pretrain("--forces", "-1"), "forces is a weight, at least 0"),
    "indivisible width": (pretrain("--dim", "17"), "dim must be a multiple of num_heads"),
    # models
    "absent start": (finetune(*GAP, "--model", "absent"), "absent does not exist"),
    "size of another start": (finetune(*GAP, *START, "--size", "tiny"), "dim=16"),
    "width of another start": (finetune(*GAP, *START, "--dim", "32"), "dim is given as 32, but model makes it 16"),
    "size and width": (finetune(*GAP, "--size", "tiny", "--dim", "32"), "dim is given as 32, but size tiny"),
    "deeper config": (predict(model="deeper"), "depth is 3 but the weights have 2"),
    "wider config": (predict(model="wider"), "dim is 32 but the weights have 16"),
    "another family": (predict(model="family"), "this is not an AtomFormer"),
    "a config of strings": (predict(model="odd"), "dim: expected int, found '16'"),
    "cut weights": (predict(model="cut"), "model.safetensors is not a safetensors file"),
    "a random folder": (predict(model="random"), "random has no model.safetensors"),
    "a pickle": (predict(model="crystals.pkl"), "crystals.pkl is a pickle"),
    "a run without a model": (predict(model="running"), "running is a run without a model yet"),
    # predicting
    "nothing to predict": (predict(data="empty.xyz"), "empty.xyz holds no structures"),
    "output of no format": (predict("-o", "new.png"), "new.png has an unknown suffix"),
    "nothing to compare": (evaluate(data="bare.xyz"), "no structure has a known value of what the model predicts"),
    "a metric of another problem": (evaluate("--task", "RES"), "regression has no metric 'accuracy'"),
    # runs
    "a run that is there": (["pretrain", "--train", "toys.xyz", "--run-dir", "run", *SMALL], "holds a run already"),
    "nothing to resume": (pretrain("--resume"), "no run to resume"),
    "a folder without a run": (["pretrain", "--run-dir", "random", "--resume"], "random"),
    "other settings": (
        ["pretrain", "--run-dir", "run", "--resume", "--forces", "2"],
        "cannot resume with another loss.forces: the run has 1.0, given 2.0",
    ),
    "other data": (["pretrain", "--run-dir", "run", "--resume", "--train", "other.xyz"], "other data"),
    "the other command": (["finetune", "--run-dir", "run", "--resume", "--labels", "1"], "cannot resume with another"),
    "a saved config of another kind": (
        ["pretrain", "--config", "model/config.json", "--run-dir", "new"],
        "config.json",
    ),
}


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_one_line_and_status_2(arguments, words, place, monkeypatch, capsys, caplog):
    monkeypatch.chdir(place)
    write_wrong_forces(place / "forces.parquet")
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "left out" not in line]
    assert len(lines) == 1, error
    assert words in lines[0]
    assert not any((place / name).exists() for name in ("new", "new.png")), "it left something behind"


def test_an_interrupt_says_what_is_safe(toy_file, model, tmp_path, monkeypatch, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("atomformer.data.sources.prepare_dataset", stop)
    assert run("prepare", toy_file, tmp_path / "store") == 130
    again = f"atomformer prepare {toy_file} {tmp_path / 'store'}"
    expected = f"atomformer: stopped; nothing was written to {tmp_path / 'store'}; start again with: {again}\n"
    assert capsys.readouterr().err == expected
    monkeypatch.setattr("atomformer.prediction.predict.predict_all", stop)
    assert run("predict", toy_file, model, "-o", tmp_path / "out.xyz") == 130
    assert f"nothing was written to {tmp_path / 'out.xyz'}; start again with" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("atomformer.training.train", stop)
    train = ["pretrain", "--train", toy_file, "--run-dir", tmp_path / "run", *SMALL]
    assert run(*train) == 130
    assert "training had not begun; start again with: atomformer pretrain --train" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert run(*train) == 130
    assert f"go on with: atomformer pretrain --run-dir {tmp_path / 'run'} --resume" in capsys.readouterr().err
