"""MPtrj: JSON in the real layout, written here with pymatgen's dictionaries and EMT's energies, forces and stresses."""

import gzip
import json
import tracemalloc

import ase.build
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.units import GPa
from pymatgen.io.ase import AseAtomsAdaptor

from atomformer.data.converters import mptrj
from atomformer.data.sources import iterate_rows, write_parquet

CORRECTION = -0.687  # eV per atom; that of oxides in MP2020, though EMT is none


def copper_gold(rng):
    """Cu3Au, rattled; ASE Atoms with EMT."""
    atoms = ase.build.bulk("Cu", "fcc", a=3.75, cubic=True)
    atoms.symbols[0] = "Au"
    atoms.positions += 0.1 * rng.standard_normal((4, 3))
    atoms.calc = EMT()
    return atoms


def frame_of(atoms, mp_id, reference=-3.0):
    """A frame as `MPtrj_2022.9_full.json` has it; VASP's stress is in kbar, with the opposite sign of ASE's."""
    energy, n = atoms.get_potential_energy(), len(atoms)
    corrected = energy + CORRECTION * n
    return {
        "structure": AseAtomsAdaptor.get_structure(atoms).as_dict(),
        "uncorrected_total_energy": energy,
        "corrected_total_energy": corrected,
        "energy_per_atom": corrected / n,
        "ef_per_atom": corrected / n - reference,
        "e_per_atom_relaxed": corrected / n,
        "ef_per_atom_relaxed": corrected / n - reference,
        "force": atoms.get_forces().tolist(),
        "stress": (-10 / GPa * atoms.get_stress(voigt=False)).tolist(),
        "magmom": None,
        "bandgap": 0.25,
        "mp_id": mp_id,
    }


@pytest.fixture
def atoms(rng):
    return copper_gold(rng)


@pytest.fixture
def frame(atoms):
    return frame_of(atoms, "mp-2258")


def write(path, frames):
    path.write_text(json.dumps({"mp-2258": {f"mp-2258-0-{i}": frame for i, frame in enumerate(frames)}}))
    return path


def rows_of(path, **options):
    read = list(mptrj.iterate_rows(path, **options))
    assert [entry.index for entry in read] == list(range(len(read)))
    return [entry.row for entry in read], {entry.index: entry.reason for entry in read if entry.row is None}


def test_rows_have_the_numbers_of_the_calculation(tmp_path, atoms, frame):
    (row,), refused = rows_of(write(tmp_path / "mptrj.json", [frame]))
    assert refused == {}
    energy = atoms.get_potential_energy() + 4 * CORRECTION
    assert row["total_energy"] == pytest.approx(energy, rel=1e-12)
    assert row["formation_energy"] == pytest.approx(energy + 4 * 3.0, rel=1e-12)
    np.testing.assert_array_equal(row["input_ids"], [79, 29, 29, 29])
    # pymatgen keeps fractional coordinates; wrapping none, it gives the same Cartesian ones back.
    np.testing.assert_allclose(row["coords"], atoms.positions, atol=1e-12)
    np.testing.assert_allclose(row["cell"], 3.75 * np.eye(3))
    np.testing.assert_allclose(row["forces"], atoms.get_forces())
    np.testing.assert_allclose(row["stress"], atoms.get_stress(), rtol=1e-12)
    assert row["pbc"].all()
    assert (row["bandgap"], row["mp_id"], row["frame_id"]) == (0.25, "mp-2258", "mp-2258-0-0")


def test_stress_of_ten_kbar_compression_is_minus_one_gigapascal(tmp_path, frame):
    frame["stress"] = [[10.0, 1.0, 2.0], [1.0, 20.0, 3.0], [2.0, 3.0, 30.0]]
    (row,), _ = rows_of(write(tmp_path / "mptrj.json", [frame]))
    # 1 GPa is 0.0062415091 eV/Å³.
    np.testing.assert_allclose(row["stress"], -0.00062415091 * np.array([10, 20, 30, 3, 2, 1]), rtol=1e-8)


def test_total_energy_can_be_the_uncorrected_one(tmp_path, atoms, frame):
    (row,), _ = rows_of(write(tmp_path / "mptrj.json", [frame]), energy="uncorrected")
    assert row["total_energy"] == atoms.get_potential_energy()
    with pytest.raises(ValueError, match="energy: expected 'corrected' or 'uncorrected', found 'free'"):
        mptrj.iterate_rows(tmp_path / "mptrj.json", energy="free")


def test_order_is_that_of_the_file(tmp_path, frame):
    path = tmp_path / "mptrj.json"
    path.write_text(json.dumps({"mp-9": {"mp-9-1-0": frame, "mp-9-0-0": frame}, "mp-10": {"mp-10-0-0": frame}}))
    assert [row["frame_id"] for row in rows_of(path)[0]] == ["mp-9-1-0", "mp-9-0-0", "mp-10-0-0"]


def test_a_missing_formation_energy_keeps_the_row(tmp_path, frame):
    frame |= {"ef_per_atom": None, "bandgap": None}
    (row,), refused = rows_of(write(tmp_path / "mptrj.json", [frame]))
    assert refused == {}
    assert "total_energy" in row
    assert not {"formation_energy", "bandgap"} & row.keys()


def test_bad_frames_are_refused_by_name_and_reason(tmp_path, frame):
    def changed(change):
        copy = json.loads(json.dumps(frame))
        change(copy, copy["structure"]["sites"])
        return copy

    frames = [
        changed(lambda _, sites: sites[1]["species"].append({"element": "Ag", "occu": 0.5})),
        changed(lambda _, sites: sites[2]["species"][0].update(element="Xx")),
        changed(lambda _, sites: sites[3].update(abc=sites[2]["abc"])),
        changed(lambda frame, _: frame["force"].pop()),
        changed(lambda frame, _: frame.pop("structure")),
        changed(lambda _, sites: sites[0].pop("abc")),
        changed(lambda _, sites: sites[0].update(abc=None)),
        changed(lambda _, sites: sites.clear()),
        frame,
    ]
    rows, refused = rows_of(write(tmp_path / "mptrj.json", frames))
    assert [row is None for row in rows] == [True] * 8 + [False]
    assert refused[0] == "atom 1: expected one element that fills its site, found Cu 1, Ag 0.5"
    assert "unknown chemical symbol 'Xx'" in refused[1]
    assert "atoms 2 and 3 are at the same place" in refused[2]
    assert refused[3] == "forces: expected shape (4, 3) for 4 atoms, found (3, 3)"
    assert refused[4].startswith("mp-2258, mp-2258-0-4: expected a frame with a structure, found ")
    assert refused[5] == "KeyError: 'abc'"
    assert "no atoms" in refused[7]


def test_a_material_that_is_no_table_is_refused(tmp_path, frame):
    path = tmp_path / "mptrj.json"
    path.write_text(json.dumps({"mp-1": None, "mp-2": {"mp-2-0-0": frame}}))
    rows, refused = rows_of(path)
    assert refused == {0: "mp-1, mp-1: expected a frame with a structure, found 'None'"}
    assert rows[1] is not None


def test_a_cut_off_file_gives_what_came_before_and_one_clear_error(tmp_path, frame):
    path = tmp_path / "mptrj.json"
    text = json.dumps({f"mp-{i}": {f"mp-{i}-0-0": frame} for i in range(100)})
    path.write_text(text[: len(text) - 500])
    read = []
    with pytest.raises(ValueError, match=r"mptrj\.json is not JSON, or is cut off"):
        read.extend(entry.index for entry in mptrj.iterate_rows(path))
    for text in ("", "[]", "{}", '{"mp-1": {"a": NaN}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"is not JSON, or is cut off|holds no structures"):
            rows_of(path)


def test_compressed_json_gives_the_same_rows(tmp_path, frame):
    path = write(tmp_path / "mptrj.json", [frame])
    (tmp_path / "packed.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_equal(rows_of(tmp_path / "packed.json.gz"), rows_of(path))


def test_memory_does_not_grow_with_the_file(tmp_path, frame):
    def peak(count):
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps({f"mp-{i}": {f"mp-{i}-0-0": frame} for i in range(count)}))
        tracemalloc.start()
        assert sum(1 for _ in mptrj.iterate_rows(path)) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)  # imports
    assert peak(800) < 1.5 * peak(100)


def test_rows_survive_parquet(tmp_path, frame):
    bare = frame | {"ef_per_atom": None}
    rows, _ = rows_of(write(tmp_path / "mptrj.json", [frame, bare]))
    write_parquet(tmp_path / "mptrj.parquet", rows)
    np.testing.assert_equal([entry.row for entry in iterate_rows(tmp_path / "mptrj.parquet")], rows)
