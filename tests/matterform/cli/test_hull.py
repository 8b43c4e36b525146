"""The command line from entries and crystals to tables, and what it says of mistakes."""

import csv
import json

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry

from matterform.cli import main
from matterform.stability import above_hull
from matterform.stability.hull import open_hull
from matterform.stability.references import load_references

METALS = {"Cu": 3.7, "Ni": 3.6, "Al": 4.1, "Au": 4.2}
CALCULATOR = ["--mlff-model=ase", "--mlff-variant=ase.calculators.emt:EMT"]
EMT = [*CALCULATOR, "--mlff-corrected=True"]


def write_table(path, structures, **columns):
    """A CSV of CIFs."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["cif", *columns])
        for index, structure in enumerate(structures):
            text = structure if isinstance(structure, str) else structure.to(fmt="cif")
            table.writerow([text, *(column[index] for column in columns.values())])


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def metal(symbols, edge):
    sites = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Structure(Lattice.cubic(edge), symbols, sites)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Crystals that EMT knows, with made-up energies of formation, one CIF that nobody can read, and two hulls."""
    folder = tmp_path_factory.mktemp("cli")
    pairs = [(a, b) for a in METALS for b in METALS]
    structures = [metal([a, b, b, b], (METALS[a] + 3 * METALS[b]) / 4) for a, b in pairs]
    formation = [0.0 if a == b else -0.1 for a, b in pairs]
    names = [structure.composition.reduced_formula for structure in structures]
    write_table(folder / "table.csv", structures, formation_energy_per_atom=formation, pretty_formula=names, G=[1] * 16)
    fluoride = metal(["Na", "F", "F", "F"], 4.0)
    write_table(folder / "crystals.csv", [structures[1], "data_broken", fluoride, structures[0]], G=[221, 1, 1, 225])
    holes = [structures[0], "data_broken", structures[1]]
    write_table(folder / "holes.csv", holes, G=[225, "", ""], wrong=[225.5, 1, 231])
    entries = [ComputedEntry(symbol, 0.0).as_dict() for symbol in METALS]
    write_table(folder / "broken.csv", ["data_broken", ""])
    (folder / "binary.pkl").write_bytes(b"\x80\x04\x95")
    (folder / "hull.json").write_text(json.dumps({"entries": entries}))
    assert main(["hull", str(folder / "table.csv"), str(folder / "formation")]) == 0
    assert main(["hull", str(folder / "hull.json"), str(folder / "total")]) == 0
    assert main(["references", str(folder / "table.csv"), f"--out={folder / 'references.json'}", *EMT]) == 0
    others = json.loads((folder / "references.json").read_text()) | {"potential": "chgnet 0.3.0"}
    (folder / "others.json").write_text(json.dumps(others))
    return folder


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


def test_relaxed_crystals_stand_in_the_table(folder, tmp_path):
    write_table(tmp_path / "one.csv", [metal(["Cu"] * 4, 3.8)])
    tables = []
    for steps in (0, 10):
        out = tmp_path / f"{steps}.csv"
        arguments = [str(tmp_path / "one.csv"), f"--hull={folder / 'total'}", f"--relax-steps={steps}", f"--out={out}"]
        assert main(["above-hull", *arguments, *EMT]) == 0
        tables.append(read_table(out)[0])
    assert float(tables[1]["e_above_hull"]) < float(tables[0]["e_above_hull"])
    assert "steps" in tables[1]["relaxation"]
    assert Structure.from_str(tables[1]["cif"], fmt="cif").lattice.a < 3.75
    assert Structure.from_str(tables[0]["cif"], fmt="cif").lattice.a == pytest.approx(3.8)
    assert tables[0]["relaxation"] == ""


def test_evaluation_joins_validity_and_stability(folder, tmp_path, capsys):
    stability = tmp_path / "above.csv"
    stability.write_text("index,e_above_hull\n0,0.05\n1,\n2,0.3\n3,-0.1\n")
    arguments = [str(folder / "crystals.csv"), f"--reference={folder / 'table.csv'}", f"--stability={stability}"]
    assert main(["evaluate", *arguments, "--requested=G", f"--out={tmp_path / 'judged'}"]) == 0
    said = capsys.readouterr()
    assert "structure 1 refused" in said.err
    rows = read_table(tmp_path / "judged" / "judged.csv")
    assert [row["index"] for row in rows] == ["0", "2", "3"]
    assert [row["novel"] for row in rows] == ["False", "True", "False"]
    assert [row["space_group_kept"] for row in rows] == ["True", "False", "True"]
    summary = json.loads((tmp_path / "judged" / "summary.json").read_text())
    # Of four crystals one is on the hull, two are below 0.1 eV/atom, and the only novel one is not.
    assert summary["stability"] == {"stable": 0.25, "metastable": 0.5, "sun": 0, "metastable_sun": 0}
    assert list(summary["unreadable"]) == ["1"]
    assert "valid" in summary["metrics"]


def run_with(folder, *argv):
    return main([word.format(folder=folder) for word in argv])


TABLE, CRYSTALS, FORMATION = "{folder}/table.csv", "{folder}/crystals.csv", "--hull={folder}/formation"
NEW = "--out={folder}/new.csv"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["hull", "{folder}/nothing.json", "{folder}/new"], "does not exist"),
        (["hull", CRYSTALS, "{folder}/new"], "formation_energy_per_atom"),
        (["hull", TABLE, "{folder}/formation"], "already holds something"),
        (["above-hull", CRYSTALS, FORMATION, "--out={folder}/new.csv"], "matterform references"),
        (["above-hull", CRYSTALS, "--hull={folder}/nothing", "--out={folder}/new.csv"], "does not exist"),
        (["above-hull", CRYSTALS, "--hull={folder}", "--out={folder}/new.csv"], "no indexed hull"),
        (["above-hull", CRYSTALS, "--hull={folder}/total", "--references={folder}/hull.json"], "no reference energies"),
        (["above-hull", CRYSTALS, "--hull={folder}/total", "--out={folder}/table.csv"], "exists already"),
        (["above-hull", CRYSTALS, "--hull={folder}/total", "--out={folder}/new.csv", "--batch-size=0"], "batch_size"),
        (["above-hull", CRYSTALS], "--hull"),
        (["above-hull", CRYSTALS, "--hull={folder}/total", NEW, *CALCULATOR], "--mlff-corrected True"),
        (["above-hull", "{folder}/broken.csv", "--hull={folder}/total", NEW, *EMT], "broken.csv holds no crystal that"),
        (
            ["above-hull", CRYSTALS, FORMATION, "--references={folder}/others.json", NEW, *EMT],
            "the references are of chgnet 0.3.0, and the energies of ase ase.calculators.emt:EMT",
        ),
        (["references", TABLE, "--out={folder}/new.json", *CALCULATOR], "--mlff-corrected True"),
        (["evaluate", CRYSTALS, "--stability={folder}/binary.pkl", "--out={folder}/new"], "binary.pkl is no table of"),
        (["references", CRYSTALS, "--out={folder}/new.json", *EMT], "formation_energy_per_atom"),
        (["references", TABLE, "--column=pretty_formula", "--out={folder}/new.json", *EMT], "more than numbers"),
        (["evaluate", CRYSTALS, "--stability={folder}/table.csv", "--out={folder}/new"], "is no table of"),
        (
            ["evaluate", "{folder}/holes.csv", "--requested=G", "--out={folder}/new"],
            "holes.csv, structure 2: column 'G' should hold a space group's number, 1 to 230; found nothing",
        ),
        (["evaluate", "{folder}/holes.csv", "--requested=wrong", "--out={folder}/new"], "structure 0: column 'wrong'"),
        (["evaluate", CRYSTALS, "--requested=group", "--out={folder}/new"], "no column 'group'; it has G"),
        (["evaluate", CRYSTALS, "--out={folder}/formation"], "exists already"),
        (["judge"], "unknown command 'judge'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(folder, capsys, argv, message):
    capsys.readouterr()
    assert run_with(folder, *argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "refused" not in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(folder.glob("new*"))


@pytest.mark.parametrize("command", ["hull", "references", "above-hull", "evaluate", "plot"])
def test_help_is_enough_to_work_from(command, capsys):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"matterform {command} " in said.split("usage:")[1]
    assert f"matterform {command} " in said.split("options")[0].split("[-h]")[1]  # an example


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
