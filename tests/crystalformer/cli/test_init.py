"""The commands of `crystalformer`, and how they answer mistakes."""

import json

import pytest

from crystalformer.cli import main


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(word in usage for word in ("prepare", "train", "sample", "score"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "unknown command 'fly'"),
        (["prepare", "absent.csv", "out"], "absent.csv"),
        (["train", "--train=absent.csv", "--run-dir=new"], "absent.csv"),
        (["train", "--train=crystals.csv", "--run-dir=run"], "holds a run already"),
        (["train", "--train=crystals.csv", "--run-dir=new", "--resume"], "no run to resume"),
        (["train", "--train=crystals.csv", "--run-dir=new", "--num-layers=0"], "num_layers must be at least 1"),
        (
            ["train", "--run-dir=run", "--resume", "--learning-rate=0.5"],
            "cannot resume with another optimizer.learning_rate: the run has 0.0001, given 0.5",
        ),
        (
            ["train", "--run-dir=run", "--resume", "--train=crystals.csv", "--seed=42", "--validation=half.csv"],
            "other data",
        ),
        (
            ["train", "--train=crystals.csv", "--run-dir=new", "--validation-fraction=0.99"],
            "leaves none of 16 crystals",
        ),
        (["train", "--run-dir"], "--run-dir"),
        (["train", "--config=absent.yaml", "--run-dir=new"], "absent.yaml"),
        (["sample", "--out=new", "--model=absent.pkl"], "absent.pkl"),
        (["sample", "--out=new", "--model=crystals.csv"], "crystals.csv"),
        (["sample", "--out=new", "--spacegroup", "231"], "1..230; got 231"),
        (["sample", "--out=new", "--spacegroup", "225", "--elements", "Xy"], "Xy"),
        (["sample", "--out=new", "--spacegroup", "1", "--letters", "b"], "space group 1 has a to a"),
        (["sample", "--out=new", "--spacegroup", "1", "--spacegroups-from=crystals.csv"], "not both"),
        (["sample", "--out=new", "--spacegroup", "1", "--temperature=0"], "temperature must lie in"),
        (["sample", "--out=new", "--spacegroup", "1", "--constraints=bad.json"], "bad.json"),
        (["sample", "--out=samples", "--spacegroup", "1"], "holds samples already"),
        (["sample", "--out=new", "--spacegroup", "1", "--mcmc=-1"], "must be a number of sweeps"),
        (["sample", "--out=new", "--spacegroup", "1", "--mcmc=1", "--mcmc-width=0"], "width must be at least"),
        (
            ["sample", "--out=new", "--spacegroup", "1", "--num-heads=4"],
            "num_heads=4 was given, but it was trained with 2",
        ),
        (
            ["sample", "--out=new", "--bogus", "3"],
            "unknown flag --bogus; `crystalformer sample --help` lists the flags",
        ),
        (["score", "absent.cif"], "absent.cif"),
    ],
)
def test_a_mistake_ends_in_one_line_and_status_2(arguments, words, run, samples, monkeypatch, capsys):
    monkeypatch.chdir(run)
    (run / "bad.json").write_text(json.dumps({"atoms": []}))
    (run / "half.csv").write_text("".join((run / "crystals.csv").read_text().partition("salt-8")[:1]))
    if arguments[0] == "sample" and not any(word.startswith("--model") for word in arguments):
        arguments = [*arguments, "--model=run/published/best.pkl"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1, error
    assert not (run / "new").exists()
