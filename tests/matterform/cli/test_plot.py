"""`matterform plot`: a picture of a run or of crystals, from the command line."""

import csv

import pytest

from matterform.cli import main

pytest.importorskip("matplotlib")


def test_the_picture_of_crystals_is_written_and_named(copper, capsys):
    assert main(["plot", str(copper), "-o", str(copper.with_name("gallery.png"))]) == 0
    assert capsys.readouterr().out == f"picture: {copper.with_name('gallery.png')}\n"
    assert copper.with_name("gallery.png").read_bytes().startswith(b"\x89PNG")


def test_the_curves_of_a_run_are_written_into_its_folder(tmp_path, capsys):
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["step", "epoch", "loss"], [1, 1, 3.0], [2, 2, 2.0]])
    assert main(["plot", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"picture: {tmp_path / 'curves.png'}\n"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_one_line(tmp_path, capsys):
    assert main(["plot", str(tmp_path / "absent")]) == 2
    assert "absent does not exist" in capsys.readouterr().err
