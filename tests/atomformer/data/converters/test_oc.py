"""OC20 and OC22: pairs of extxyz and txt as distributed, written here by ASE from EMT's energies and forces."""

import gzip
import io
import lzma

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from atomformer.data.converters import CONVERTERS, iterate_raw, oc
from atomformer.data.sources import iterate_rows, write_parquet


def adsorbed_oxygen(rng):
    """O on Cu(111): atoms below the surface are held, tags are 0 below, 1 surface, 2 adsorbate."""
    slab = ase.build.fcc111("Cu", (2, 2, 3), vacuum=8.0)
    ase.build.add_adsorbate(slab, "O", 1.2, "fcc")
    slab.pbc = True
    slab.info.clear()  # ASE's notes on the surface
    layers = slab.get_tags()  # ASE counts layers from the top; the adsorbate has 0
    slab.set_tags(np.select([layers == 0, layers == 1], [2, 1], 0))
    slab.positions[layers < 2] += 0.05 * rng.standard_normal((int((layers < 2).sum()), 3))
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 0))
    slab.calc = EMT()
    results = {"energy": slab.get_potential_energy(), "forces": slab.get_forces(apply_constraint=False)}
    slab.calc = SinglePointCalculator(slab, **results)
    return slab


def text_of(frames):
    """The frames as OC20 writes them: species, positions, move_mask, tags, forces; energies in the header."""
    file = io.StringIO()
    columns = ["symbols", "positions", "move_mask", "tags", "forces"]
    for atoms in frames:
        atoms.arrays["forces"] = atoms.calc.results["forces"]
        atoms.info |= {"energy": atoms.calc.results["energy"], "free_energy": atoms.calc.results["energy"]}
        ase.io.write(file, atoms, format="extxyz", columns=columns, write_results=False)
        del atoms.arrays["forces"], atoms.info["energy"], atoms.info["free_energy"]
    return file.getvalue()


def write_pair(folder, name, frames, lines, open_file=lzma.open, suffix=".xz"):
    folder.mkdir(exist_ok=True, parents=True)
    with open_file(folder / f"{name}.extxyz{suffix}", "wt") as file:
        file.write(text_of(frames))
    with open_file(folder / f"{name}.txt{suffix}", "wt") as file:
        file.writelines(f"{line}\n" for line in lines)


def rows_of(path, **options):
    read = list(oc.iterate_rows(path, **options))
    assert [entry.index for entry in read] == list(range(len(read)))
    return [entry.row for entry in read], {entry.index: entry.reason for entry in read if entry.row is None}


@pytest.fixture
def frames(rng):
    return [adsorbed_oxygen(rng) for _ in range(3)]


def test_header_of_the_test_file_is_that_of_oc20(frames):
    header = text_of(frames[:1]).splitlines()[1]
    assert "Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 " in header
    assert "energy=" in header
    assert 'pbc="T T T"' in header


def test_oc20_rows_have_adsorption_energies_tags_and_held_atoms(tmp_path, frames):
    write_pair(tmp_path, "0", frames, ["random11,frame0,-1.5", "random11,frame7,-1.5", "random902,frame0,2.25"])
    rows, refused = rows_of(tmp_path)
    assert refused == {}
    for row, atoms, reference in zip(rows, frames, (-1.5, -1.5, 2.25), strict=True):
        energy = atoms.get_potential_energy()
        assert row["total_energy"] == pytest.approx(energy, abs=1e-7)
        assert row["formation_energy"] == pytest.approx(energy - reference, abs=1e-7)
        np.testing.assert_array_equal(row["input_ids"], [29] * 12 + [8])
        np.testing.assert_array_equal(row["token_type_ids"], [0] * 8 + [1] * 4 + [2])
        np.testing.assert_array_equal(row["fixed"], [True] * 8 + [False] * 5)
        np.testing.assert_allclose(row["coords"], atoms.positions, atol=1e-7)
        np.testing.assert_allclose(row["forces"], atoms.calc.results["forces"], atol=1e-7)
        np.testing.assert_allclose(row["cell"], atoms.cell.array, atol=1e-7)
        assert row["pbc"].all()
    assert [(row["system_id"], row["frame_number"]) for row in rows] == [(11, 0), (11, 7), (902, 0)]


def test_oc22_has_no_formation_energy(tmp_path, frames):
    write_pair(tmp_path, "0", frames[:1], ["random11,frame0"])
    (row,), _ = rows_of(tmp_path, release="oc22")
    assert "formation_energy" not in row
    assert row["total_energy"] == pytest.approx(frames[0].get_potential_energy(), abs=1e-7)
    assert row["system_id"] == 11


def test_oc22_trajectories_are_read_from_sub_folders(tmp_path, frames):
    (tmp_path / "raw_trajs").mkdir()
    ase.io.write(tmp_path / "raw_trajs" / "a.traj", frames)
    rows, refused = rows_of(tmp_path, release="oc22")
    assert refused == {}
    np.testing.assert_array_equal(rows[2]["coords"], frames[2].positions)
    np.testing.assert_array_equal(rows[2]["fixed"], [True] * 8 + [False] * 5)
    assert "formation_energy" not in rows[0]


@pytest.mark.parametrize(("open_file", "suffix"), [(open, ""), (gzip.open, ".gz")])
def test_other_compressions_give_the_same_rows(tmp_path, frames, open_file, suffix):
    lines = [f"random{i},frame{i},0.5" for i in range(3)]
    write_pair(tmp_path / "xz", "0", frames, lines)
    write_pair(tmp_path / "other", "0", frames, lines, open_file, suffix)
    (expected, _), (found, _) = rows_of(tmp_path / "xz"), rows_of(tmp_path / "other")
    np.testing.assert_equal(found, expected)


def test_files_come_in_numerical_order(tmp_path, frames):
    for number, atoms in zip((10, 2, 1), frames, strict=True):
        write_pair(tmp_path, str(number), [atoms], [f"random{number},frame0,0.0"])
    rows, _ = rows_of(tmp_path)
    assert [row["system_id"] for row in rows] == [1, 2, 10]


def test_a_split_below_the_folder_is_found(tmp_path, frames):
    write_pair(tmp_path / "s2ef_train_2M", "0", frames, [f"random{i},frame0,0.0" for i in range(3)])
    assert len(rows_of(tmp_path)[0]) == 3


def test_compressed_and_decompressed_twins_are_an_error(tmp_path, frames):
    write_pair(tmp_path / "split", "0", frames[:1], ["random1,frame0,0.0"])
    write_pair(tmp_path / "split_uncompressed", "0", frames[:1], ["random1,frame0,0.0"], open, "")
    with pytest.raises(ValueError, match=r"hold the same structures; keep one of them"):
        rows_of(tmp_path)


@pytest.mark.parametrize("num_lines", [2, 4])
def test_counts_that_disagree_are_an_error_with_both_counts(tmp_path, frames, num_lines):
    write_pair(tmp_path, "0", frames, [f"random{i},frame0,0.0" for i in range(num_lines)])
    with pytest.raises(ValueError, match=rf"0\.extxyz\.xz has 3 frames but 0\.txt\.xz has {num_lines} lines"):
        rows_of(tmp_path)


def test_oc20_without_its_txt_is_an_error(tmp_path, frames):
    write_pair(tmp_path, "0", frames, [])
    (tmp_path / "0.txt.xz").unlink()
    with pytest.raises(ValueError, match=r"has no 0\.txt \(\.xz, \.gz\) beside it"):
        rows_of(tmp_path)
    assert len(rows_of(tmp_path, release="oc22")[0]) == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "random1,frame0",
            "line 2 of 0.txt.xz: expected system_id,frame_number,reference_energy, found 'random1,frame0'",
        ),
        ("random1,frame0,abc", "line 2 of 0.txt.xz: expected a reference energy (eV), found 'abc'"),
        ("random,frame0,0.0", "line 2 of 0.txt.xz: expected ids such as random2181546,frame0, found 'random,frame0'"),
        ("", "line 2 of 0.txt.xz: expected system_id,frame_number,reference_energy, found ''"),
    ],
)
def test_a_bad_line_refuses_its_frame_alone(tmp_path, frames, line, reason):
    write_pair(tmp_path, "0", frames, ["random1,frame0,0.0", line, "random3,frame0,0.0"])
    rows, refused = rows_of(tmp_path)
    assert refused == {1: reason}
    assert rows[2]["system_id"] == 3


def test_a_missing_energy_keeps_the_row_without_it(tmp_path, frames):
    frames[0].calc.results["energy"] = float("nan")
    write_pair(tmp_path, "0", frames, [f"random{i},frame0,1.0" for i in range(3)])
    rows, refused = rows_of(tmp_path)
    assert refused == {}
    assert not {"total_energy", "formation_energy"} & rows[0].keys()
    assert "forces" in rows[0]


def test_bad_frames_are_refused_and_the_others_read(tmp_path, frames):
    frames[1].positions[4] = np.nan
    frames[2].positions[12] = frames[2].positions[11]
    write_pair(tmp_path, "0", frames, [f"random{i},frame0,1.0" for i in range(3)])
    text = lzma.decompress((tmp_path / "0.extxyz.xz").read_bytes()).decode()
    bad_number = text_of(frames[:1]).replace("Cu ", "Cu x", 1)
    (tmp_path / "0.extxyz.xz").write_bytes(lzma.compress((text + bad_number).encode()))
    (tmp_path / "0.txt.xz").write_bytes(lzma.compress(b"random1,frame0,0.0\n" * 4))
    rows, refused = rows_of(tmp_path)
    assert rows[0] is not None
    assert refused.keys() == {1, 2, 3}
    assert "atom 4" in refused[1]
    assert "atoms 11 and 12 are at the same place" in refused[2]


def test_a_cut_off_archive_is_one_clear_error(tmp_path, frames):
    write_pair(tmp_path, "0", frames, [f"random{i},frame0,1.0" for i in range(3)])
    whole = (tmp_path / "0.extxyz.xz").read_bytes()
    (tmp_path / "0.extxyz.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"0\.extxyz\.xz is damaged or cut off"):
        rows_of(tmp_path)
    (tmp_path / "0.extxyz.xz").write_bytes(b"not xz at all")
    with pytest.raises(ValueError, match=r"0\.extxyz\.xz is damaged or cut off"):
        rows_of(tmp_path)


def test_a_decompressed_file_cut_inside_a_frame_loses_that_frame_only(tmp_path, frames):
    write_pair(tmp_path, "0", frames, [f"random{i},frame0,1.0" for i in range(3)], open, "")
    lines = (tmp_path / "0.extxyz").read_text().splitlines(keepends=True)
    (tmp_path / "0.extxyz").write_text("".join(lines[:-2]))
    rows, refused = rows_of(tmp_path)
    assert refused.keys() == {2}
    assert rows[1] is not None


def test_lost_alignment_of_frames_is_an_error_with_its_place(tmp_path, frames):
    write_pair(tmp_path, "0", frames, [f"random{i},frame0,1.0" for i in range(3)], open, "")
    lines = (tmp_path / "0.extxyz").read_text().splitlines(keepends=True)
    (tmp_path / "0.extxyz").write_text("".join(lines[:5] + lines[6:]))
    with pytest.raises(ValueError, match=r"frame 1 must begin with its number of atoms, found 'Lattice="):
        rows_of(tmp_path)


def test_a_folder_of_lmdbs_says_that_pickles_are_not_read(tmp_path):
    (tmp_path / "data.0000.lmdb").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no \.extxyz files.*it holds pickles"):
        rows_of(tmp_path)


@pytest.mark.parametrize("kind", ["oc20", "oc22"])
def test_rows_survive_parquet(tmp_path, frames, kind):
    frames[1].calc.results["energy"] = float("nan")
    write_pair(tmp_path / "split", "0", frames, [f"random{i},frame0,1.0" for i in range(3)])
    rows = [entry.row for entry in iterate_raw(kind, tmp_path / "split")]
    assert ["formation_energy" in row for row in rows] == [kind == "oc20", False, kind == "oc20"]
    write_parquet(tmp_path / "rows.parquet", rows)
    np.testing.assert_equal([entry.row for entry in iterate_rows(tmp_path / "rows.parquet")], rows)


@pytest.mark.parametrize("kind", CONVERTERS)
def test_every_kind_says_that_a_file_is_missing(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        next(iterate_raw(kind, tmp_path / "nowhere"))


def test_unknown_kinds_and_releases_are_named():
    with pytest.raises(ValueError, match=r"expected one of mptrj, oc20, oc22, odac23, spice; found 'oc23'"):
        iterate_raw("oc23", "nowhere")
    with pytest.raises(ValueError, match=r"release: expected 'oc20' or 'oc22', found 'oc23'"):
        oc.iterate_rows("nowhere", release="oc23")
