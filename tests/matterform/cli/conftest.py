"""Crystals that EMT knows, in files as users have them, with hulls and references of them."""

import csv
import json

import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry

from matterform.cli import main

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


def metal(symbols, edge):
    sites = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Structure(Lattice.cubic(edge), symbols, sites)


@pytest.fixture(scope="session")
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


@pytest.fixture
def copper(tmp_path):
    """A CSV with one crystal of stretched copper."""
    write_table(tmp_path / "one.csv", [metal(["Cu"] * 4, 3.8)])
    return tmp_path / "one.csv"
