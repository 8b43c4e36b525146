"""The command from tables to published weights, and what it says of mistakes."""

import csv
import dataclasses
import pathlib
import sys

import numpy as np
import pytest

from crystalformer.checkpoint.published import load_checkpoint, save_checkpoint
from crystalformer.cli import main
from crystalformer.loss import LogProb
from crystalformer.rl.config import DpoConfig, PreferenceConfig
from crystalformer.table import COLUMNS, TableWriter, table_rows
from matterform.config import load_config
from matterform.training.config import LoopConfig

pytestmark = pytest.mark.usefixtures("quick")

FLAGS = ["--model=start.pkl", "--scored=scored.csv", "--score=energy", "--lower-is-better", "--batch-size=4"]
FLAGS += ["--group-by=spacegroup"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, lively, random_crystals):
    """Weights, a scored table of 16 crystals in one space group, and a run of two epochs in run/."""
    folder = tmp_path_factory.mktemp("cli")
    network = dataclasses.replace(tiny_config, n_max=4, num_layers=1)
    save_checkpoint(folder / "start.pkl", lively(network), config=network)
    crystals = random_crystals(16, 4, most=2)
    crystals = crystals._replace(G=np.ones_like(crystals.G), W=np.minimum(crystals.W, 1))
    rows = table_rows(crystals, LogProb(*np.zeros((4, 16), np.float32)), range(16))
    for name, count in (("scored", 16), ("short", 3)):
        writer = TableWriter(folder / f"{name}.csv", [*COLUMNS, "energy"])
        writer.write({**row, "energy": row["index"] / 8} for row in rows[:count])
        writer.finish()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["dpo", *FLAGS, "--run-dir=run", "--epochs=2", "--validation-fraction=0.25", "--beta=0.2"]) == 0
    return folder


def test_flags_reach_the_run_and_its_weights_need_none(folder):
    config = load_config(DpoConfig, folder / "run" / "config.yaml")
    assert config.preference == PreferenceConfig(beta=0.2)
    assert (config.pairing.score, config.pairing.lower_is_better) == ("energy", True)
    assert load_checkpoint(folder / "run/published/best.pkl").config.n_max == 4
    with (folder / "run" / "pairs.csv").open(newline="") as file:
        rows = [(int(row["chosen_row"]), int(row["rejected_row"])) for row in csv.DictReader(file)]
    assert rows == [(i, 15 - i) for i in range(8)]


def test_a_run_goes_on_for_more_epochs_by_its_folder_alone(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["dpo", "--run-dir=run", "--resume", "--epochs=3"]) == 0
    assert "finished after step 6" in capsys.readouterr().out  # 6 of 8 pairs in batches of 4: 2 steps an epoch
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == [1.0, 2.0, 3.0]


def test_a_recipe_replaces_the_defaults(folder, monkeypatch):
    monkeypatch.chdir(folder)
    recipe = DpoConfig(
        run_dir=pathlib.Path("recipe"), preference=PreferenceConfig(loss="ipo"), loop=LoopConfig(max_steps=1)
    )
    assert main(["dpo", *FLAGS, "--beta=0.2"], recipe) == 0
    config = load_config(DpoConfig, folder / "recipe" / "config.yaml")
    assert config.preference == PreferenceConfig(loss="ipo", beta=0.2)
    assert config.loop == LoopConfig(max_steps=1)


def test_what_is_not_installed_is_said_before_the_folder_is_claimed(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["dpo", *FLAGS, "--run-dir=new", "--wandb-project=mine"]) == 2
    assert "pip install 'matterform[wandb]'" in capsys.readouterr().err
    assert not (folder / "new").exists()


def test_help_explains_by_example(capsys):
    assert main(["dpo", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("crystalformer dpo --scored scored.csv --score e_above_hull", "--label-smoothing", "refused.csv"):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--run-dir must be given"),
        (["--run-dir=new"], "give the pairs as chosen and rejected, or as one scored table"),
        (["--run-dir=new", "--chosen=scored.csv"], "rejected is missing"),
        (["--run-dir=new", "--chosen=scored.csv", "--rejected=absent.csv"], "absent.csv does not exist"),
        (["--run-dir=new", *FLAGS, "--chosen=scored.csv"], "or as one scored table"),
        (["--run-dir=new", "--scored=scored.csv"], "the name of the column of scores is missing"),
        (["--run-dir=new", *FLAGS, "--score=energies"], "no column 'energies'; its columns are index"),
        (["--run-dir=new", *FLAGS, "--score-margin=9"], "no two of one spacegroup differ by 9 or more"),
        (["--run-dir=new", *FLAGS, "--score=G"], "no two of one spacegroup differ; none of its rows"),
        (["--run-dir=new", *FLAGS, "--accumulate=3"], "multiple of devices x accumulate = 1 x 3 = 3; got 4"),
        (["--run-dir=new", *FLAGS, "--model=scored.csv"], "scored.csv"),
        (["--run-dir=new", *FLAGS, "--num-heads=4"], "num_heads=4 was given, but it was trained with 2"),
        (["--run-dir=new", *FLAGS, "--beta=0"], "beta must be positive; got 0.0"),
        (["--run-dir=new", *FLAGS, "--loss=hinge"], "--loss"),
        (["--run-dir=new", *FLAGS, "--validation-fraction=0.99"], "leaves none of 8 pairs"),
        (["--run-dir=new", *FLAGS, "--resume"], "no run to resume"),
        (["--run-dir=run", *FLAGS], "holds a run already"),
        (["--run-dir=run", "--resume", "--beta=0.5"], "cannot resume with another preference.beta: the run has 0.2"),
        (["--run-dir=run", "--resume", "--scored=short.csv"], "cannot resume with other data"),
    ],
)
def test_a_mistake_ends_in_one_line_and_status_2(arguments, words, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["dpo", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1, error
    assert not (folder / "new").exists()
