"""The commands of `matterform`, and how they answer mistakes."""

import pytest

from matterform.cli import main

CALCULATOR = ["--mlff-model=ase", "--mlff-variant=ase.calculators.emt:EMT"]
EMT = [*CALCULATOR, "--mlff-corrected=True"]


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
        (["above-hull", CRYSTALS, "--hull={folder}", "--out={folder}/new.csv"], "not an indexed hull"),
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
        (
            ["evaluate", CRYSTALS, "--stability={folder}/binary.pkl", "--out={folder}/new"],
            "binary.pkl is not a table of",
        ),
        (["references", CRYSTALS, "--out={folder}/new.json", *EMT], "formation_energy_per_atom"),
        (["references", TABLE, "--column=pretty_formula", "--out={folder}/new.json", *EMT], "more than numbers"),
        (["evaluate", CRYSTALS, "--stability={folder}/table.csv", "--out={folder}/new"], "is not a table of"),
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
