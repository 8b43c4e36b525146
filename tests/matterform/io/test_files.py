"""Results appear whole or not at all."""

import os
import subprocess
import sys
import zlib

import pytest

from matterform.io.files import checksum, write_atomically


def test_nothing_is_at_the_path_until_the_block_ends(tmp_path):
    path = tmp_path / "runs" / "table.csv"
    with write_atomically(path) as temporary:
        temporary.write_text("whole")
        assert temporary.name == path.name
        assert not path.exists()
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["table.csv"]


def fail_halfway(path):
    """Stops in the middle of writing."""
    with write_atomically(path) as temporary:
        temporary.write_text("half")
        raise InterruptedError


def test_failure_leaves_no_file(tmp_path):
    with pytest.raises(InterruptedError):
        fail_halfway(tmp_path / "table.csv")
    assert os.listdir(tmp_path) == []


def test_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(InterruptedError):
        fail_halfway(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    code = (
        "import os, sys; from matterform.io.files import write_atomically\n"
        "with write_atomically(sys.argv[1]) as t: t.write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -9
    assert path.read_text() == "old"


def test_old_file_is_replaced(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with write_atomically(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_folder_appears_whole(tmp_path):
    path = tmp_path / "cifs"
    with write_atomically(path) as temporary:
        temporary.mkdir()
        (temporary / "a.cif").write_text("a")
        assert not path.exists()
    assert (path / "a.cif").read_text() == "a"


def test_folder_that_holds_something_is_never_replaced(tmp_path):
    (tmp_path / "old").write_text("old")
    with pytest.raises(ValueError, match="already holds something"), write_atomically(tmp_path):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == ["old"]


def test_permissions_follow_the_umask(tmp_path):
    path = tmp_path / "table.csv"
    old = os.umask(0o022)
    try:
        with write_atomically(path) as temporary:
            temporary.write_text("whole")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644


def test_checksums_are_of_contents_and_of_names_inside_a_folder(tmp_path):
    for name, text in (("a", "one"), ("b", "two"), ("same", "one")):
        (tmp_path / name).write_text(text)
    assert checksum(tmp_path / "a") == checksum(tmp_path / "same") == zlib.crc32(b"one") != checksum(tmp_path / "b")
    before = checksum(tmp_path)
    (tmp_path / "b").rename(tmp_path / "c")
    assert checksum(tmp_path) != before
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checksum(tmp_path / "b")
