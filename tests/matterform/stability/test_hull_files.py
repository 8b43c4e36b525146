"""Files of reference entries: what pymatgen reads from them, damage, and memory."""

import bz2
import gzip
import inspect
import json
import pathlib
import tracemalloc
import warnings

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PhaseDiagram
from pymatgen.core import Lattice, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import (
    CompositionEnergyAdjustment,
    ComputedEntry,
    ComputedStructureEntry,
    ConstantEnergyAdjustment,
    TemperatureEnergyAdjustment,
)

import matterform.io.json_stream
from matterform.stability.hull import open_hull
from matterform.stability.hull_entries import select
from matterform.stability.hull_files import computed_entry, index_hull, iterate_computed_entries, read_entries


def salt(cation="Na", anion="Cl"):
    return Structure.from_spacegroup(225, Lattice.cubic(5.6), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


ADJUSTMENTS = [
    CompositionEnergyAdjustment(-0.614, 4),
    ConstantEnergyAdjustment(0.1),
    TemperatureEnergyAdjustment(-1e-4, 300, 8),
]
ENTRIES = {
    "plain": ComputedEntry("Na4Cl4", -27.0),
    "correction": ComputedEntry("Na4Cl4", -27.0, correction=-2.5),
    "adjustments": ComputedEntry("Fe2O3", -40.0, energy_adjustments=ADJUSTMENTS),
    "structure": ComputedStructureEntry(salt(), -27.0, energy_adjustments=ADJUSTMENTS[:1]),
    "charges": ComputedStructureEntry(salt("Na+", "Cl-"), -27.0),
    "data": ComputedEntry("NaCl", -6.0, data={"elements": ["Na", "Cl"], "text": 'a "quoted" } ] text, é'}),
}


def as_json(entry, **changes):
    return json.loads(json.dumps({**entry.as_dict(), **changes}))


@pytest.mark.parametrize("name", ENTRIES)
def test_energies_are_pymatgens(name):
    record = as_json(ENTRIES[name])
    expected = type(ENTRIES[name]).from_dict(record)
    entry = computed_entry(record)
    assert entry.energy_per_atom == pytest.approx(expected.energy_per_atom, abs=1e-12)
    elements = expected.composition.element_composition
    assert list(entry.fractions.system) == sorted(element.Z for element in elements)
    np.testing.assert_allclose(sorted(entry.fractions.values), sorted(elements.fractional_composition.values()))


def test_a_correction_of_old_files_counts_only_without_adjustments():
    old = as_json(ENTRIES["plain"], correction=-2.5, energy_adjustments=None)
    assert computed_entry(old).energy_per_atom == pytest.approx(-29.5 / 8)
    assert computed_entry(old).energy_per_atom == pytest.approx(ComputedEntry.from_dict(old).energy_per_atom)
    new = as_json(ENTRIES["adjustments"])
    assert new["correction"] != 0
    assert computed_entry(new).energy_per_atom == pytest.approx(ENTRIES["adjustments"].energy_per_atom)


def test_a_structure_stands_in_for_a_composition():
    record = as_json(ENTRIES["structure"])
    del record["composition"]
    assert computed_entry(record).fractions.system == bytes([11, 17])


RECORDS = [as_json(entry) for entry in ENTRIES.values()]
WRITERS = {".json": lambda path, text: path.write_text(text, encoding="utf-8")}
WRITERS[".json.gz"] = lambda path, text: path.write_bytes(gzip.compress(text.encode()))
WRITERS[".json.bz2"] = lambda path, text: path.write_bytes(bz2.compress(text.encode()))


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize(
    "content", [RECORDS, {"entries": RECORDS}, {"date": [1, {"a": 2}], "entries": RECORDS, "z": 1}]
)
@pytest.mark.parametrize("chunk", [7, 2**20])
def test_every_layout_is_read_whole(tmp_path, monkeypatch, suffix, content, chunk):
    monkeypatch.setattr(matterform.io.json_stream, "CHUNK", chunk)
    path = tmp_path / f"convex_hull_pbe_2024.12.15{suffix}"
    WRITERS[suffix](path, json.dumps(content))
    found = [entry.energy_per_atom for entry in iterate_computed_entries(path)]
    assert found == pytest.approx([entry.energy_per_atom for entry in ENTRIES.values()])


def test_real_entries_of_the_materials_project_are_read_as_pymatgen_reads_them(tmp_path):
    """423 computed entries come with pymatgen, for fitting its corrections; here they carry these corrections."""
    source = pathlib.Path(inspect.getfile(MaterialsProject2020Compatibility)).parent / "calc_compounds.json.gz"
    if not source.is_file():
        pytest.skip("this version of pymatgen keeps its computed entries elsewhere")
    with gzip.open(source) as file:
        entries = [ComputedEntry.from_dict(record) for record in json.load(file).values()]
    scheme = MaterialsProject2020Compatibility(check_potcar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        corrected = scheme.process_entries(entries, inplace=False)
    assert len(corrected) > 400
    assert sum(abs(entry.correction) > 0.1 for entry in corrected) > 200
    path = tmp_path / "mp.json"
    path.write_text(json.dumps([as_json(entry) for entry in corrected]))
    found = [entry.energy_per_atom for entry in iterate_computed_entries(path)]
    np.testing.assert_allclose(found, [entry.energy_per_atom for entry in corrected], rtol=0, atol=1e-9)
    # Oxides of four elements against a phase diagram of all of them.
    oxides = [e for e in corrected if {x.symbol for x in e.elements} <= {"Fe", "Na", "Si", "Mn", "O"}]
    diagram = PhaseDiagram(oxides)
    above = open_hull(path).energy_above_hull([e.composition for e in oxides], np.array([e.energy for e in oxides]))
    expected = [diagram.get_e_above_hull(entry, allow_negative=True, check_stable=False) for entry in oxides]
    np.testing.assert_allclose(above.values, expected, rtol=0, atol=1e-9)
    assert len(oxides) > 15


def test_only_the_lowest_of_a_composition_is_kept(tmp_path):
    (tmp_path / "some.json").write_text(json.dumps(RECORDS))
    entries = read_entries(tmp_path / "some.json")
    assert entries.kind == "total"
    assert (entries.count, len(entries.energies)) == (6, 2)
    fractions, energies = select(entries, bytes([11, 17]))
    np.testing.assert_allclose(fractions, [[0.5, 0.5]])
    np.testing.assert_allclose(energies, [-29.5 / 8])


def test_a_folder_of_json_files_is_one_hull(tmp_path):
    for index, record in enumerate(RECORDS):
        (tmp_path / f"alexandria_{index}.json").write_text(json.dumps([record]))
    assert read_entries(tmp_path).count == 6


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(matterform.io.json_stream, "CHUNK", 2**14)
    path, peaks = tmp_path / "large.json", []
    for count in (50, 500):
        record = RECORDS[0] | {"data": {"text": "x" * 10_000}}
        path.write_text(json.dumps({"entries": [record] * count}))
        tracemalloc.start()
        assert sum(1 for _ in iterate_computed_entries(path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < 500_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(RECORDS)[:-1], "after 6 entries, at its end"),
        (json.dumps(RECORDS)[:-30], "after 5 entries"),
        ("[{}]", "entry 0 is not a computed entry"),
        (
            '{"entries": [{"energy": -1, "composition": [1]}]}',
            "entry 0 .* composition: expected a dictionary, found list",
        ),
        (json.dumps([RECORDS[0] | {"energy_adjustments": ["x"]}]), "entry 0 .* energy adjustment: .* found str"),
        (json.dumps([RECORDS[0], {"composition": {"Na": 1}}]), "entry 1 is not a computed entry: it has no 'energy'"),
        (json.dumps([RECORDS[0] | {"energy": None}]), "entry 0 .* energy is None"),
        (json.dumps([RECORDS[0] | {"energy": float("nan")}]), "entry 0 .* energy is nan"),
        (json.dumps([RECORDS[0] | {"composition": {"Zz": 1}}]), "entry 0"),
        (json.dumps([RECORDS[0] | {"energy_adjustments": [{"@class": "New"}]}]), "unknown kind, New"),
        ("[1]", "entry 0 .* found int"),
        ('{"results": []}', 'no key "entries"'),
        ('{"entries": {"a": 1}}', "expected \\["),
        ("[]", "holds no entries"),
        ("", "after 0 entries, at its end"),
        ("no json", "after 0 entries, at 'no json'"),
    ],
)
def test_damage_and_other_layouts_are_named(tmp_path, text, message):
    path = tmp_path / "hull.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_entries(path)
    assert str(path) in str(error.value)


def test_damaged_compression_is_named(tmp_path):
    path = tmp_path / "hull.json.bz2"
    for content in (bz2.compress(json.dumps(RECORDS).encode())[:-20], b"no bzip2", b"\x80\x04pickle"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"hull.json.bz2 is damaged"):
            read_entries(path)
    path = tmp_path / "hull.json"
    path.write_bytes(b"\x80\x04\x95")
    with pytest.raises(ValueError, match="damaged or no text"):
        read_entries(path)


@pytest.mark.parametrize("column", ["pretty_formula", "formula", "cif"])
def test_a_table_gives_formation_energies(tmp_path, column):
    crystal = salt()
    cells = {"cif": f'"{crystal.to(fmt="cif")}"'}
    path = tmp_path / "table.csv"
    path.write_text(f"id,formation_energy_per_atom,{column}\na,-2.0,{cells.get(column, 'Na4Cl4')}\n")
    entries = read_entries(path)
    assert (entries.kind, entries.count) == ("formation", 1)
    fractions, energies = select(entries, bytes([11, 17]))
    order = np.argsort(energies)
    np.testing.assert_allclose(energies[order], [-2, 0, 0])
    np.testing.assert_allclose(fractions[order[0]], [0.5, 0.5])


def test_sodium_nitride_is_no_missing_value(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("formula,formation_energy_per_atom\nNaN,-0.1\n")
    assert select(read_entries(path), bytes([7, 11])).energies.min() == -0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("formula,energy\nNaCl,1\n", "lacks the column formation_energy_per_atom; its columns are formula, energy"),
        ("name,formation_energy_per_atom\nNaCl,1\n", "needs a column pretty_formula, formula or cif"),
        ("formula,formation_energy_per_atom\nNaCl,1\nNaCl,\n", "row 1: formation_energy_per_atom is ''"),
        ("formula,formation_energy_per_atom\nNaCl,1\nsalt,1\n", "row 1: 'salt' is not a formula"),
        ("cif,formation_energy_per_atom\ndata_,1\n", "row 0: its CIF has no _chemical_formula_sum"),
        ("formula,formation_energy_per_atom\n", "holds no entries"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_entries(path)


def test_an_index_holds_what_the_file_holds(tmp_path):
    path = tmp_path / "hull.json.gz"
    WRITERS[".json.gz"](path, json.dumps(RECORDS))
    counts = []
    entries = index_hull(path, tmp_path / "index", counts.append)
    assert counts == [6]
    assert entries.count == 6
    compositions, energies = [ENTRIES["plain"].composition], np.array([-27.0])
    problem = open_hull(tmp_path / "index").energy_above_hull(compositions, energies).problems[0]
    assert problem == "no elemental entry in the hull: Na, Cl"


def test_an_index_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "hull.json"
    path.write_text(json.dumps(RECORDS)[:-10])
    with pytest.raises(ValueError, match="after 5 entries"):
        index_hull(path, tmp_path / "index")
    assert [file.name for file in tmp_path.iterdir()] == ["hull.json"]
    path.write_text(json.dumps(RECORDS))
    index_hull(path, tmp_path / "index")
    with pytest.raises(ValueError, match="already holds something"):
        index_hull(path, tmp_path / "index")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "hull.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a .csv or .json"):
        open_hull(tmp_path / "hull.pkl")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_hull(tmp_path / "nothing.json")
