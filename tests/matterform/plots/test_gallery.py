import sys

import numpy as np
import pytest
from matplotlib.image import imread

from matterform.evaluation.summary import evaluate, tabulate
from matterform.plots.gallery import choose_for_gallery, write_picture


def test_a_picture_is_written_for_any_set(tmp_path, absurd, rock_salt):
    structures = [*absurd.values(), rock_salt()]
    table = evaluate(structures).table
    write_picture(tmp_path / "few.png", structures, table)
    write_picture(tmp_path / "reference.png", structures, table, tabulate([rock_salt(5.7)]))
    few, both = (imread(tmp_path / name) for name in ("few.png", "reference.png"))
    assert few.shape == both.shape
    orange = np.abs(both[..., :3] - np.array([0xD9, 0x8B, 0x3A]) / 255).max(-1) < 0.01
    assert orange.sum() > 500  # the reference is seen, and only where it was given
    assert (np.abs(few[..., :3] - np.array([0xD9, 0x8B, 0x3A]) / 255).max(-1) < 0.01).sum() == 0


def test_only_absurd_crystals_leave_the_gallery_empty(tmp_path, absurd):
    structures = [absurd["nan cell"], absurd["overlap"], absurd["no atoms"]]
    table = evaluate(structures).table
    assert choose_for_gallery(structures, table, 8) == []
    write_picture(tmp_path / "absurd.png", structures, table)
    assert (tmp_path / "absurd.png").stat().st_size > 10_000


def test_gallery_prefers_other_space_groups_and_elements(rock_salt):
    tetragonal = rock_salt(anion="F")
    tetragonal.apply_strain([0, 0, 0.1])
    structures = [rock_salt(), rock_salt(), rock_salt(anion="Br"), tetragonal, rock_salt(0.9)]
    assert choose_for_gallery(structures, evaluate(structures).table, 3) == [0, 3, 2]


def test_missing_matplotlib_is_explained(tmp_path, monkeypatch, rock_salt):
    table = evaluate([rock_salt()]).table
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'matterform\[viz\]'"):
        write_picture(tmp_path / "none.png", [rock_salt()], table)
    assert list(tmp_path.iterdir()) == []
