"""The command line from a CSV to CIFs, and what it says of mistakes."""

import csv
import json
import subprocess
import sys

import gemmi
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalformer import table as crystal_table
from crystalformer.checkpoint.published import load_checkpoint
from crystalformer.cli import main
from crystalformer.loss import log_prob
from crystalformer.table import read_crystal_table

SIZES = ["--Nf=2", "--Kx=2", "--Kl=2", "--n-max=5", "--h0-size=8", "--num-layers=1", "--num-heads=2"]
SIZES += ["--key-size=4", "--model-size=8", "--embed-size=4", "--batch-size=8"]


@pytest.fixture(scope="module")
def run(quick, tmp_path_factory):
    """A folder with crystals.csv, prepared/ and a run of two epochs in run/."""
    folder = tmp_path_factory.mktemp("cli")
    with (folder / "crystals.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["material_id", "cif"])
        for i, (cation, anion) in enumerate((c, a) for c in ("Na", "K", "Rb", "Cs") for a in ("F", "Cl", "Br", "I")):
            salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5 + 0.1 * i), [cation, anion], [[0] * 3, [0.5] * 3])
            table.writerow([f"salt-{i}", salt.to(fmt="cif")])
        table.writerow(["broken", "data_nothing"])
    assert main(["prepare", str(folder / "crystals.csv"), str(folder / "prepared"), "--n-max=5"]) == 0
    arguments = ["train", f"--train={folder / 'prepared'}", f"--run-dir={folder / 'run'}", *SIZES, "--epochs=2"]
    assert main([*arguments, "--optimizer=adamw", "--weight-decay=0.01", "--lamb-l=0.5", "--ema-decay=0.9"]) == 0
    return folder


@pytest.fixture(scope="module")
def samples(run):
    """Twenty crystals drawn by the run's weights."""
    flags = ["--spacegroup", "225", "1", "--elements", "Na", "Cl", "--num-samples=20", "--mcmc=1"]
    weights = run / "run" / "published" / "best.pkl"
    assert main(["sample", f"--model={weights}", f"--out={run / 'samples'}", *flags]) == 0
    return run / "samples"


def test_refused_rows_are_listed_with_reasons(run):
    with (run / "prepared" / "refused.csv").open(newline="") as file:
        refused = list(csv.DictReader(file))
    assert [(row["row"], row["material_id"]) for row in refused] == [("16", "broken")]
    assert refused[0]["reason"]


def test_flags_reach_the_run(run):
    text = (run / "run" / "config.yaml").read_text()
    for line in ("optimizer: adamw", "lamb_l: 0.5", "key_size: 4", "ema_decay: 0.9", "epochs: 2"):
        assert line in text


def test_a_run_goes_on_for_more_epochs_by_its_folder_alone(run, capsys):
    assert main(["train", f"--run-dir={run / 'run'}", "--resume", "--epochs=3"]) == 0
    assert "finished after step 6" in capsys.readouterr().out  # 14 of 16 crystals in batches of 8: 2 steps an epoch
    with (run / "run" / "metrics.csv").open(newline="") as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == [1.0, 2.0, 3.0]


def test_samples_obey_groups_and_elements(samples):
    crystals = read_crystal_table(samples / "samples.csv", n_max=5)
    assert sorted(crystals.G.tolist()) == [1] * 10 + [225] * 10
    assert set(np.unique(crystals.A)) <= {0, 11, 17}


def test_every_possible_cell_has_a_cif_with_its_symmetry(samples):
    with (samples / "samples.csv").open(newline="") as file:
        rows = {int(row["index"]): row for row in csv.DictReader(file)}
    files = sorted((samples / "cif").iterdir())
    assert [int(path.name[:6]) for path in files] == sorted(i for i, row in rows.items() if not row["problem"])
    for path in files:
        group = int(path.stem.rsplit("_", 1)[1])
        structure = gemmi.make_small_structure_from_block(gemmi.cif.read(str(path)).sole_block())
        assert structure.spacegroup.number == group == int(rows[int(path.name[:6])]["G"])


def test_the_table_holds_the_log_probabilities_of_its_crystals(run, samples):
    checkpoint = load_checkpoint(run / "run" / "published" / "best.pkl")
    crystals = read_crystal_table(samples / "samples.csv", n_max=5)
    with (samples / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    again = log_prob(checkpoint.params, checkpoint.config, crystals)
    for part in ("w", "a", "xyz"):
        found = [float(row[f"logp_{part}"]) for row in rows]
        np.testing.assert_allclose(found, getattr(again, part), rtol=1e-3, atol=1e-3)  # six decimals of coordinates


def test_the_same_seed_gives_the_same_table(run, samples):
    weights = run / "run" / "published" / "best.pkl"
    flags = ["--spacegroup", "225", "1", "--elements", "Na", "Cl", "--num-samples=20", "--mcmc=1"]
    assert main(["sample", f"--model={weights}", f"--out={run / 'again'}", *flags]) == 0
    assert (run / "again" / "samples.csv").read_text() == (samples / "samples.csv").read_text()


def test_interrupted_sampling_is_continued_to_the_same_table(run, samples, monkeypatch, capsys):
    weights = run / "run" / "published" / "best.pkl"
    flags = ["--spacegroup", "225", "1", "--elements", "Na", "Cl", "--n-samples=20", "--mcmc=1", "--batch-size=8"]
    command = ["sample", str(weights), f"--out={run / 'part'}", *flags]
    chunks, original = [], crystal_table.table_rows

    def stop(*given):
        chunks.append(given)
        if len(chunks) > 1:
            raise KeyboardInterrupt
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(crystal_table, "table_rows", stop)
        assert main(command) == 130
    error = capsys.readouterr().err
    assert f"stopped; 8 crystals are in {run / 'part' / 'samples.csv'}; go on with: crystalformer sample" in error
    assert error.endswith(" --resume\n")
    (run / "part" / "cif" / sorted(path.name for path in (run / "part" / "cif").iterdir())[0]).unlink()
    assert main([*command, "--resume"]) == 0
    parts, whole = (read_crystal_table(folder / "samples.csv", n_max=5) for folder in (run / "part", samples))
    np.testing.assert_array_equal(parts.A, whole.A)
    np.testing.assert_allclose(parts.XYZ, whole.XYZ, atol=1e-5)
    assert len(list((run / "part" / "cif").iterdir())) == len(list((samples / "cif").iterdir()))
    assert main([*command, "--resume"]) == 2
    assert "holds 20 crystals already" in capsys.readouterr().err


def test_score_reads_csv_and_cif_alike(run, samples):
    weights = run / "run" / "published" / "best.pkl"
    cif = run / "one.cif"
    Structure.from_spacegroup("Fm-3m", Lattice.cubic(5), ["Na", "F"], [[0] * 3, [0.5] * 3]).to(str(cif), fmt="cif")
    tables = {}
    for name, source in (("csv", run / "crystals.csv"), ("cif", cif)):
        assert main(["score", str(source), f"--model={weights}", f"--out={run / name}.csv"]) == 0
        with (run / f"{name}.csv").open(newline="") as file:
            tables[name] = {row["index"]: float(row["logp"]) for row in csv.DictReader(file)}
    assert len(tables["csv"]) == 16
    assert tables["cif"]["0"] == pytest.approx(tables["csv"]["0"], abs=1e-3)


def test_scores_keep_the_places_of_their_crystals(run, capsys):
    weights = run / "run" / "published" / "best.pkl"
    folder = run / "cifs"
    folder.mkdir()
    (folder / "0.cif").write_text("data_nothing\n")
    for i, cation in enumerate(("K", "Rb"), start=1):
        salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(6), [cation, "F"], [[0] * 3, [0.5] * 3])
        salt.to(str(folder / f"{i}.cif"), fmt="cif")
    assert main(["score", str(folder), f"--model={weights}", f"--out={run / 'places'}.csv"]) == 0
    assert "structure 0 refused" in capsys.readouterr().err
    with (run / "places.csv").open(newline="") as file:
        found = {int(row["index"]): row["formula"] for row in csv.DictReader(file)}
    assert found == {1: "F4 K4", 2: "F4 Rb4"}


def test_refined_samples_do_not_depend_on_chunks(run, samples):
    weights = run / "run" / "published" / "best.pkl"
    flags = ["--spacegroup", "225", "1", "--elements", "Na", "Cl", "--num-samples=20", "--mcmc=1", "--batch-size=8"]
    assert main(["sample", f"--model={weights}", f"--out={run / 'chunks'}", *flags]) == 0
    chunks, whole = (read_crystal_table(folder / "samples.csv", n_max=5) for folder in (run / "chunks", samples))
    np.testing.assert_array_equal(chunks.A, whole.A)
    np.testing.assert_allclose(chunks.XYZ, whole.XYZ, atol=1e-5)


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


@pytest.mark.slow
def test_two_processes_train_and_resume_as_one(run, reserved_port):
    """Two real processes on this machine, joined by a coordinator, write the losses of a single one."""
    command = [sys.executable, "-c", "import sys; from crystalformer.cli import main; sys.exit(main(sys.argv[1:]))"]
    command += ["train", f"--train={run / 'prepared'}", *SIZES, "--seed=1"]
    subprocess.run([*command, f"--run-dir={run / 'one'}", "--epochs=2"], check=True, timeout=300)
    for flags in (["--epochs=1"], ["--epochs=2", "--resume"]):
        with reserved_port() as port:
            both = [
                subprocess.Popen(
                    [*command, f"--run-dir={run / 'two'}", *flags, f"--coordinator=localhost:{port}", *process]
                )
                for process in (["--num-processes=2", "--process-id=0"], ["--num-processes=2", "--process-id=1"])
            ]
            assert [process.wait(timeout=300) for process in both] == [0, 0]
    losses = {}
    for name in ("one", "two"):
        with (run / name / "metrics.csv").open(newline="") as file:
            losses[name] = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses["one"]) == 2
    np.testing.assert_allclose(losses["two"], losses["one"], rtol=1e-5)
