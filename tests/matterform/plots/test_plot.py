"""`matterform.plot` finds out what is to be drawn."""

import pytest

import matterform
from matterform.io.formats import write_structures

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_run_gets_its_curves(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,loss\n2,0.5,4.0\n4,1.0,3.0\n")
    assert matterform.plot(tmp_path) == tmp_path / "curves.png"
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    out = matterform.plot(str(tmp_path / "metrics.csv"), tmp_path / "new" / "x.svg")
    assert out.read_text().startswith("<?xml")


@pytest.mark.parametrize("name", ["samples.csv", "samples.csv.gz", "samples", "samples.extxyz"])
def test_crystals_get_a_gallery_beside_them(tmp_path, rock_salt, name):
    write_structures(tmp_path / name, [rock_salt(), rock_salt(anion="Br")])
    assert matterform.plot(tmp_path / name) == tmp_path / "samples.png"
    assert (tmp_path / "samples.png").read_bytes().startswith(PNG)


def test_what_cannot_be_drawn_is_named(tmp_path, rock_salt):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is neither a run folder \(with metrics.csv\) nor a folder of CIFs"):
        matterform.plot(tmp_path / "empty")
    (tmp_path / "metrics.csv").write_text("step,epoch,loss\n")
    with pytest.raises(ValueError, match="has no row yet; try again after the first epoch"):
        matterform.plot(tmp_path)
    (tmp_path / "bad.csv").write_text("cif\nnonsense\n")
    with pytest.raises(ValueError, match=r"bad.csv holds no crystal that can be read; the first reason: ValueError"):
        matterform.plot(tmp_path / "bad.csv")
    write_structures(tmp_path / "x.cif", [rock_salt()])
    with pytest.raises(ValueError, match="expected a picture's suffix"):
        matterform.plot(tmp_path / "x.cif", tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        matterform.plot(tmp_path / "nothing")
