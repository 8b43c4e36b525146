"""CIF and CSV entries as text, and their translation."""

import csv
import gzip
import json
import random

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from matterform.io.cif import (
    CifSite,
    UnreadableStructure,
    iterate_cifs,
    iterate_csv,
    parse_cell,
    parse_structure,
    sites_to_cif,
    to_cif,
)


@pytest.fixture
def salt():
    """Rock salt, 8 atoms."""
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.mark.parametrize("symprec", [None, 0.01])
def test_crystal_survives_as_text(salt, symprec):
    text = to_cif(salt, symprec)
    assert f"_symmetry_Int_Tables_number   {225 if symprec else 1}\n" in text
    matcher = StructureMatcher(ltol=1e-6, stol=1e-6, angle_tol=1e-4, primitive_cell=False, scale=False)
    assert matcher.fit(parse_structure(text), salt)


def test_json_of_a_structure_survives_exactly(salt):
    found = parse_structure(json.dumps(salt.as_dict()))
    np.testing.assert_array_equal(found.lattice.matrix, salt.lattice.matrix)
    np.testing.assert_array_equal(found.frac_coords, salt.frac_coords)
    assert found.species == salt.species


def test_wyckoff_sites_become_the_whole_crystal_in_both_readers(salt):
    sites = [CifSite("Na", 4, "a", (0.0, 0.0, 0.0)), CifSite("Cl", 4, "b", (0.5, 0.5, 0.5))]
    text = sites_to_cif("Na4 Cl4", 225, (5.6, 5.6, 5.6, 90.0, 90.0, 90.0), sites)
    matcher = StructureMatcher(ltol=1e-6, stol=1e-6, angle_tol=1e-4, primitive_cell=False, scale=False)
    assert matcher.fit(parse_structure(text), salt)
    cell = parse_cell(text)
    assert matcher.fit(Structure(cell.lattice, cell.numbers.tolist(), cell.frac), salt)


def test_the_fast_reader_reads_what_the_tolerant_one_reads(salt):
    cell, structure = parse_cell(to_cif(salt)), parse_structure(to_cif(salt))
    np.testing.assert_allclose(cell.frac, structure.frac_coords, atol=1e-9)
    np.testing.assert_array_equal(cell.numbers, structure.atomic_numbers)
    np.testing.assert_allclose(np.linalg.norm(cell.lattice, axis=1), structure.lattice.abc, rtol=1e-9)


@pytest.mark.parametrize("text", ["nonsense", "{}", "data_x\n_cell_length_a 1\n"])
def test_the_fast_reader_leaves_what_is_not_plain_to_the_tolerant_one(salt, text):
    assert parse_cell(text) is None
    assert parse_cell(to_cif(salt) + to_cif(salt, block_prefix="again_")) is None


def test_the_fast_reader_refuses_partial_occupancy(salt):
    with pytest.raises(UnreadableStructure, match="partial occupancy"):
        parse_cell(to_cif(salt).replace("0.00000000  1\n", "0.00000000  0.5\n"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the text is empty"),
        (" \n", "the text is empty"),
        ("nonsense", "ValueError: Invalid CIF file with no structures!"),
        ("data_x\n_cell_length_a 1\n", "No structure parsed"),
        ("{nonsense", "JSONDecodeError"),
        ('{"a": 1}', "KeyError"),
        ('{"lattice": 3}', "AttributeError"),
        ("data_a\ndata_b\n", "expected one crystal, found 2 data blocks"),
    ],
)
def test_text_that_is_no_crystal_gets_a_reason_of_one_line(text, reason):
    with pytest.raises(UnreadableStructure) as caught:
        parse_structure(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_text_is_read_or_refused_but_never_stops_the_reader(salt):
    generator = random.Random(0)
    refused = 0
    for _ in range(300):
        words = to_cif(salt).split(" ")
        for _ in range(generator.randrange(1, 4)):
            words[generator.randrange(len(words))] = generator.choice(
                ["", "?", ".", "x", "-1", "1e400", "nan", "'", "0"]
            )
        try:
            parse_structure(" ".join(words)[: generator.randrange(400, 2000)])
        except UnreadableStructure:
            refused += 1
    assert 100 < refused < 300


def test_blocks_are_split_where_they_begin_and_not_in_text_fields(tmp_path, salt):
    text = to_cif(salt)
    broken = "DATA_broken\nloop_\n_atom_site_label\nNa 'unclosed\n;\ndata_inside a text field\n;\n"
    (tmp_path / "x.cif").write_text(f"{text}{broken}{text}")
    records = list(iterate_cifs(tmp_path / "x.cif"))
    assert [record.index for record in records] == [0, 1, 2]
    assert [record.columns["block"] for record in records] == ["NaCl", "broken", "NaCl"]
    assert records[1].text.startswith(broken)
    assert parse_structure(records[0].text) == parse_structure(records[2].text) == parse_structure(text)


def test_folder_is_read_in_the_order_of_names(tmp_path, salt):
    for name in ("b.cif", "a.cif"):
        (tmp_path / name).write_text(to_cif(salt))
    with gzip.open(tmp_path / "c.cif.gz", "wt") as file:
        file.write(to_cif(salt))
    (tmp_path / "notes.txt").write_text("data_no\n")
    assert [record.columns["file"] for record in iterate_cifs(tmp_path)] == ["a.cif", "b.cif", "c.cif.gz"]


def test_stray_bytes_in_a_comment_do_no_harm(tmp_path, salt):
    (tmp_path / "x.cif").write_bytes(b"# J. M\xfcller\n" + to_cif(salt).encode())
    assert len([parse_structure(record.text) for record in iterate_cifs(tmp_path / "x.cif")]) == 1


def test_cells_of_a_table_keep_their_meaning(tmp_path):
    table = 'formula,gap,cif,note\nNaN,0.1,"data_a\nx",\nNone,-2.3688600585416677,,"a, b"\n'
    (tmp_path / "x.csv").write_text(table)
    first, second = iterate_csv(tmp_path / "x.csv")
    assert (first.index, first.text, second.index, second.text) == (0, "data_a\nx", 1, "")
    assert (first.columns["formula"], first.columns["gap"]) == ("NaN", 0.1)
    assert second.columns == {"formula": "None", "gap": -2.3688600585416677, "note": "a, b"}


def test_column_can_be_chosen(tmp_path):
    pd.DataFrame({"cif": ["a"], "relaxed": ["b"]}).to_csv(tmp_path / "x.csv", index=False)
    assert next(iterate_csv(tmp_path / "x.csv")).text == "a"
    assert next(iterate_csv(tmp_path / "x.csv", "relaxed")).text == "b"
    with pytest.raises(ValueError, match="has no column 'final'; its columns are cif, relaxed"):
        next(iterate_csv(tmp_path / "x.csv", "final"))


def test_text_of_every_row_is_the_text_in_the_file(data_dir):
    path = data_dir / "mp20_biternary.csv.gz"
    with gzip.open(path, "rt") as file:
        expected = [(row["cif"], row["pretty_formula"]) for row in csv.DictReader(file)]
    records = list(iterate_csv(path))
    assert [record.index for record in records] == list(range(7140))
    assert [(record.text, record.columns["pretty_formula"]) for record in records] == expected
