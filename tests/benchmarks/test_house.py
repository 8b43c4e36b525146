"""Counts of imports, on a small house of known shape."""

import pathlib

import pytest

from benchmarks.house import PACKAGES, measure, read_imports

FILES = {
    "matterform/__init__.py": "",
    "matterform/cell.py": "",
    "agedi/__init__.py": "",
    "agedi/config.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from agedi import cli",
    "agedi/data/__init__.py": "",
    "agedi/data/graph.py": "import agedi.config\nfrom matterform.cell import wrap",
    "agedi/data/rows.py": "from agedi.data import graph\nfrom agedi.training import step",
    "agedi/training.py": "def f():\n    from .data.rows import row",
    "agedi/cli.py": "from agedi.training import step",
    "agedi/assets/make.py": "from agedi import cli",
}


@pytest.fixture
def checkout(tmp_path) -> pathlib.Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_house_of_known_shape(checkout):
    measured = measure("agedi", read_imports(checkout))
    assert (measured["modules"], measured["arrows"]) == (7, 5)
    assert (measured["rooms"], measured["room_arrows"]) == (5, 4)
    # cli -> (training <-> data.rows) -> data.graph -> config
    assert (measured["floors"], measured["cycles"]) == (4, [["agedi.data.rows", "agedi.training"]])
    assert (measured["room_floors"], measured["room_cycles"]) == (3, [["agedi.data", "agedi.training"]])
    assert measured["upward"] == ["agedi.data.rows -> agedi.training"]
    assert measured["outside"] == ["matterform"]


def test_no_import_of_this_house_goes_upward_or_in_a_circle():
    imports = read_imports(pathlib.Path(__file__).parents[2])
    for package in PACKAGES:
        measured = measure(package, imports)
        assert measured["cycles"] == []
        assert measured["outside"] in ([], ["matterform"])
