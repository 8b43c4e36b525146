"""What the converters share: the order of files, compressed files, frames, and reasons for what cannot be read."""

import gzip
import lzma

import ase
import ase.io
import numpy as np
import pytest

from atomformer.data.converters.reading import iterate_frames, list_files, open_stream, read_entries

WATER = ase.Atoms("OHH", [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


def write_xyz(path, count: int) -> bytes:
    ase.io.write(path, [WATER] * count, format="extxyz")
    return path.read_bytes()


def row(number: int = 1) -> dict:
    return {"input_ids": [number], "coords": [[0.0, 0.0, 0.0]]}


def test_files_are_in_numerical_order_and_sub_folders_come_second(tmp_path):
    for name in ("10.extxyz", "9.extxyz.xz", "b2/1.extxyz.gz", ".hidden.extxyz", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in list_files(tmp_path, (".extxyz",))] == ["9.extxyz.xz", "10.extxyz"]
    (tmp_path / "10.extxyz").unlink()
    (tmp_path / "9.extxyz.xz").unlink()
    for name in ("a10", "a9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.extxyz.gz").touch()
    found = [str(file.relative_to(tmp_path)) for file in list_files(tmp_path, (".extxyz",))]
    assert found == ["a9/1.extxyz.gz", "a10/1.extxyz.gz", "b2/1.extxyz.gz"]
    file = tmp_path / "notes.txt"
    assert list_files(file, (".extxyz",)) == [file]  # a file is taken as it is


def test_folders_that_cannot_be_read_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        list_files(tmp_path / "absent", (".traj",))
    with pytest.raises(ValueError, match=r"has no \.extxyz or \.traj files"):
        list_files(tmp_path, (".extxyz", ".traj"))
    (tmp_path / "data.lmdb").touch()
    with pytest.raises(ValueError, match=r"its \.lmdb is not read"):
        list_files(tmp_path, (".extxyz",))
    for name in ("1.extxyz", "1.extxyz.gz"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"1\.extxyz\S* and 1\.extxyz\S* hold the same structures"):
        list_files(tmp_path, (".extxyz",))


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_frames_of_extxyz_are_parsed_one_by_one(tmp_path, suffix, compress):
    content = write_xyz(tmp_path / "plain.extxyz", 3)
    path = tmp_path / f"frames.extxyz{suffix}"
    path.write_bytes(compress(content))
    frames = [frame() for frame in iterate_frames(path)]
    assert len(frames) == 3
    for atoms in frames:
        np.testing.assert_allclose(atoms.positions, WATER.positions, atol=1e-7)
        assert atoms.get_chemical_formula() == "H2O"


def test_a_bad_frame_is_an_error_of_that_frame_and_a_bad_header_of_the_file(tmp_path):
    path = tmp_path / "frames.extxyz"
    lines = write_xyz(path, 2).decode().splitlines()
    path.write_text("\n".join([*lines[:2], "O 0.0 0.0", *lines[3:]]) + "\n")
    first, second = iterate_frames(path)
    with pytest.raises(ValueError, match="tuple of length 3"):
        first()
    assert len(second()) == 3
    path.write_text("three\n")
    with pytest.raises(ValueError, match="frame 0 must begin with its number of atoms, found 'three'"):
        list(iterate_frames(path))


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_cut_file_is_damaged(tmp_path, suffix, compress):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(compress(bytes(100_000))[:-20])
    with pytest.raises(ValueError, match=f"x{suffix} is damaged or cut off"), open_stream(path) as file:
        file.read()


def test_a_bad_entry_has_a_reason_in_one_line_and_the_rest_are_read():
    def entry(result):
        def read():
            if isinstance(result, Exception):
                raise result
            return result

        return read

    results = [row(), ValueError("a sentence\nof two lines"), KeyError("species"), row(200)]
    reads = list(read_entries("set", map(entry, results)))
    assert [read.index for read in reads] == [0, 1, 2, 3]
    assert reads[0].row is not None
    assert reads[0].reason == ""
    assert [read.row for read in reads[1:]] == [None] * 3
    assert reads[1].reason == "a sentence of two lines"
    assert "species" in reads[2].reason
    assert "token 200, which is no element" in reads[3].reason
    with pytest.raises(ValueError, match="set holds no structures"):
        list(read_entries("set", []))
