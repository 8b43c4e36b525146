"""`crystalformer sample`: constraints, symmetry, log-probabilities, chunks and interrupts."""

import csv

import gemmi
import numpy as np

from crystalformer import table as crystal_table
from crystalformer.checkpoint.published import load_checkpoint
from crystalformer.cli import main
from crystalformer.loss import log_prob
from crystalformer.table import read_crystal_table


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
    with (run / "part" / "samples.csv").open("a") as file:
        file.write("8,F Na")  # a process that was killed while it wrote a row
    assert main([*command, "--resume"]) == 0
    parts, whole = (read_crystal_table(folder / "samples.csv", n_max=5) for folder in (run / "part", samples))
    np.testing.assert_array_equal(parts.A, whole.A)
    np.testing.assert_allclose(parts.XYZ, whole.XYZ, atol=1e-5)
    assert len(list((run / "part" / "cif").iterdir())) == len(list((samples / "cif").iterdir()))
    assert main([*command, "--resume"]) == 2
    assert "holds 20 crystals already" in capsys.readouterr().err


def test_refined_samples_do_not_depend_on_chunks(run, samples):
    weights = run / "run" / "published" / "best.pkl"
    flags = ["--spacegroup", "225", "1", "--elements", "Na", "Cl", "--num-samples=20", "--mcmc=1", "--batch-size=8"]
    assert main(["sample", f"--model={weights}", f"--out={run / 'chunks'}", *flags]) == 0
    chunks, whole = (read_crystal_table(folder / "samples.csv", n_max=5) for folder in (run / "chunks", samples))
    np.testing.assert_array_equal(chunks.A, whole.A)
    np.testing.assert_allclose(chunks.XYZ, whole.XYZ, atol=1e-5)
