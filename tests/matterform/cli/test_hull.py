"""The command line from entries and crystals to tables, and what it says of mistakes."""

import csv
import json

import numpy as np
import pytest
from pymatgen.core import Composition, Structure

from matterform.cli import main
from matterform.stability import above_hull
from matterform.stability.hull import open_hull
from matterform.stability.references import load_references

METALS = {"Cu": 3.7, "Ni": 3.6, "Al": 4.1, "Au": 4.2}
CALCULATOR = ["--mlff-model=ase", "--mlff-variant=ase.calculators.emt:EMT"]
EMT = [*CALCULATOR, "--mlff-corrected=True"]


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_indexed_hull_equals_its_source(folder):
    compositions, energies = [Composition("CuNi3"), Composition("CuAu")], np.array([0.0, 0.0])
    for source, index, kind in (("table.csv", "formation", "formation"), ("hull.json", "total", "total")):
        hull = open_hull(folder / index)
        assert hull.kind == kind
        expected = open_hull(folder / source).energy_above_hull(compositions, energies)
        np.testing.assert_array_equal(hull.energy_above_hull(compositions, energies).values, expected.values)


def test_hull_counts_what_it_read(folder, tmp_path, capsys):
    assert main(["hull", str(folder / "table.csv"), str(tmp_path / "again")]) == 0
    # 12 alloys A B3 and 4 elements in 6 binary systems and 4 of one element.
    assert "16 entries of 16 compositions in 10 chemical systems" in capsys.readouterr().out


def test_references_and_what_they_leave_are_reported(folder, tmp_path, capsys):
    out = tmp_path / "references.json"
    assert main(["references", str(folder / "table.csv"), f"--out={out}", "--limit=6", *EMT]) == 0
    said = capsys.readouterr().out
    assert "4 elements fitted to 6 crystals" in said
    assert "eV/atom rms" in said
    assert set(load_references(folder / "references.json").energies) == set(METALS)
    notes = json.loads((folder / "references.json").read_text())
    assert (notes["crystals"], notes["table"]) == (16, "table.csv")
    assert notes["potential"] == "ase ase.calculators.emt:EMT"
    assert 0 < notes["residual_mean_absolute_ev_per_atom"] <= notes["residual_rms_ev_per_atom"]


@pytest.mark.parametrize("batch_size", [1, 100])
def test_energies_above_the_hull_are_listed_with_reasons(folder, tmp_path, capsys, batch_size):
    out = tmp_path / "new" / "above.csv"
    arguments = [str(folder / "crystals.csv"), f"--hull={folder / 'formation'}", f"--out={out}"]
    arguments += [f"--references={folder / 'references.json'}", f"--batch-size={batch_size}"]
    assert main(["above-hull", *arguments, *EMT]) == 0
    assert "4 crystals, 2 with an energy above the hull" in capsys.readouterr().out
    rows = read_table(out)
    assert [row["index"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["formula"] for row in rows] == ["CuNi3", "", "NaF3", "Cu"]
    assert rows[1]["problem"]
    assert rows[2]["problem"]
    assert rows[2]["e_above_hull"] == rows[2]["cif"] == ""
    # Copper is on the hull at zero, CuNi3 on it at -0.1 eV/atom.
    above, formation = (float(rows[0][name]) for name in ("e_above_hull", "formation_energy_per_atom"))
    assert above == pytest.approx(formation + 0.1)
    assert float(rows[3]["e_above_hull"]) == pytest.approx(float(rows[3]["formation_energy_per_atom"]))


def test_relaxed_crystals_stand_in_the_table(folder, copper, tmp_path):
    tables = []
    for steps in (0, 10):
        out = tmp_path / f"{steps}.csv"
        arguments = [str(copper), f"--hull={folder / 'total'}", f"--relax-steps={steps}", f"--out={out}"]
        assert main(["above-hull", *arguments, *EMT]) == 0
        tables.append(read_table(out)[0])
    assert float(tables[1]["e_above_hull"]) < float(tables[0]["e_above_hull"])
    assert "steps" in tables[1]["relaxation"]
    assert Structure.from_str(tables[1]["cif"], fmt="cif").lattice.a < 3.75
    assert Structure.from_str(tables[0]["cif"], fmt="cif").lattice.a == pytest.approx(3.8)
    assert tables[0]["relaxation"] == ""


def test_an_interrupted_table_is_continued_to_the_same_rows(folder, tmp_path, monkeypatch, capsys):
    def arguments(name):
        table = [str(folder / "crystals.csv"), f"--hull={folder / 'formation'}", f"--out={tmp_path / name}"]
        return ["above-hull", *table, f"--references={folder / 'references.json'}", "--batch-size=2", *EMT]

    assert main(arguments("whole.csv")) == 0
    whole = capsys.readouterr().out.replace("whole", "part")
    chunks, original = [], above_hull.above_hull

    def stop(*given):
        chunks.append(given)
        if len(chunks) > 1:
            raise KeyboardInterrupt
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(above_hull, "above_hull", stop)
        assert main(arguments("part.csv")) == 130
    error = capsys.readouterr().err
    assert f"stopped; 2 rows are in {tmp_path / 'part.csv'}; go on with: matterform above-hull" in error
    assert "--resume" in error
    assert len(read_table(tmp_path / "part.csv")) == 2
    assert main(arguments("part.csv")) == 2  # nothing is overwritten by mistake
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments("part.csv"), "--resume"]) == 0
    assert capsys.readouterr().out == whole
    assert (tmp_path / "part.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_there_must_be_a_table_to_continue(folder, tmp_path, capsys):
    absent = tmp_path / "absent.csv"
    command = ["above-hull", str(folder / "crystals.csv"), f"--hull={folder / 'total'}", f"--out={absent}", "--resume"]
    assert main([*command, *EMT]) == 2
    assert "nothing to resume" in capsys.readouterr().err
