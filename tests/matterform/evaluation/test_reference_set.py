"""Known crystals by formula."""

import logging

import ase.io
from pymatgen.core import Lattice, Structure

from matterform.evaluation import reference_set as known
from matterform.evaluation.reference_set import make_reference_set, read_reference_set
from matterform.io.formats import to_atoms, to_cif, write_structures


def salt(cation: str, anion: str = "Cl") -> Structure:
    return Structure(Lattice([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]]), [cation, anion], [[0] * 3, [0.5] * 3])


def test_crystals_are_found_by_reduced_formula(tmp_path):
    crystals = [salt("Na"), salt("K"), salt("Na") * (2, 1, 1), salt("Fe", "O")]
    for name in ("table.csv", "crystals.cif", "crystals.extxyz", "folder"):
        write_structures(tmp_path / name, crystals)
        found = read_reference_set(tmp_path / name)
        assert found.count == 4
        assert [len(structure) for structure in found.find("NaCl")] == [2, 4]
        assert found.find("FeO")[0].composition == crystals[3].composition
        assert found.find("MgO") == ()


def test_what_is_no_crystal_is_left_out_with_a_warning(tmp_path, caplog):
    ase.io.write(tmp_path / "mixed.extxyz", [to_atoms(salt("Na")), ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])])
    with caplog.at_level(logging.WARNING):
        assert read_reference_set(tmp_path / "mixed.extxyz").count == 1
    assert [record.getMessage() for record in caplog.records] == ["1 known crystals cannot be read and are left out"]


def test_texts_are_parsed_once_and_only_when_looked_for(monkeypatch):
    parsed = []

    def parse(text):
        parsed.append(text)
        return original(text)

    original = known.parse_structure
    monkeypatch.setattr(known, "parse_structure", parse)
    texts = [to_cif(salt("Na")), to_cif(salt("K"))]
    found = make_reference_set(texts)
    assert parsed == []
    assert len(found.find("KCl")) == len(found.find("KCl")) == 1
    assert parsed == texts[1:]


def test_a_text_without_a_formula_is_parsed_at_once():
    text = to_cif(salt("Na"))
    without = "\n".join(line for line in text.splitlines() if "_chemical_formula" not in line)
    assert len(make_reference_set([without]).find("NaCl")) == 1


def test_unreadable_texts_are_left_out_with_a_warning(caplog):
    stated = "data_x\n_chemical_formula_sum 'Na4 Cl4'\n"
    with caplog.at_level(logging.WARNING):
        found = make_reference_set(["nonsense", stated, salt("K")])
        assert found.find("NaCl") == ()
    assert [record.getMessage() for record in caplog.records] == [
        "1 known crystals cannot be read and are left out",
        "1 known crystals of NaCl cannot be read and are left out",
    ]
    assert len(found.find("KCl")) == 1
