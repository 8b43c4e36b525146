"""`crystalformer prepare` and `score`: places and reasons are kept."""

import csv

import pytest
from pymatgen.core import Lattice, Structure

from crystalformer.cli import main


def test_refused_rows_are_listed_with_reasons(run):
    with (run / "prepared" / "refused.csv").open(newline="") as file:
        refused = list(csv.DictReader(file))
    assert [(row["row"], row["material_id"]) for row in refused] == [("16", "broken")]
    assert refused[0]["reason"]


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
