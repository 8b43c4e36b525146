"""Files of structures to train on."""

import pytest

from agedi.config import DiffusionConfig
from agedi.training.config import DataConfig
from agedi.training.sources import read_atoms, read_dataset


def test_files_without_structures_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_atoms(tmp_path / "nothing.xyz")
    (tmp_path / "broken.xyz").write_text("2\nLattice=no\nH 0 0\nH 0 0\n")
    with pytest.raises(ValueError, match=r"broken\.xyz holds no structure that can be read"):
        read_atoms(tmp_path / "broken.xyz")


def test_structures_must_come_from_somewhere():
    with pytest.raises(ValueError, match="must name a file of structures; found none"):
        read_dataset(DataConfig(), DiffusionConfig())
