"""The largest noise, chosen from molecules, surfaces and crystals."""

import ase
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule

from agedi.config import DiffusionConfig, ModelConfig
from agedi.data.graph import from_atoms
from agedi.noise.noise_range import largest_noise


def noise_of(atoms: ase.Atoms, noiser: str, confinement: tuple[float, float] | None = None, **fields) -> float:
    """The largest noise (Å) for one structure."""
    config = DiffusionConfig(noisers=(noiser,), confinement=confinement, **fields)
    return largest_noise(config, [from_atoms(atoms, confinement=confinement)])


def test_crystals_get_half_of_the_largest_spacing():
    assert noise_of(bulk("Cu", cubic=True, a=3.6), "CellPositions") == pytest.approx(1.8)


def test_molecules_get_three_times_their_width(caplog):
    water = molecule("H2O")
    width = np.sqrt(np.mean((water.positions - water.positions.mean(axis=0)) ** 2))
    assert noise_of(water, "Positions") == pytest.approx(3 * width, rel=1e-5)
    assert not caplog.messages
    noise_of(water, "Positions", model=ModelConfig(cutoff=1.0))
    assert "most atoms are farther apart than the cutoff" in caplog.messages[0]


def test_walls_count_as_mirrors():
    slab = fcc111("Cu", (1, 1, 2), vacuum=6.0, periodic=True)
    slab.pbc = (True, True, False)
    assert noise_of(slab, "ConfinedCellPositions", (5.0, 15.0)) == pytest.approx(10.0)
    assert noise_of(slab, "ConfinedCellPositions", (5.0, 15.0), walls="truncated") == pytest.approx(40.0)


def test_the_largest_noise_exceeds_the_smallest():
    atom = ase.Atoms("Cu", cell=[0.5, 0.5, 0.5], pbc=True)
    assert noise_of(atom, "CellPositions", sigma_min=0.4) == pytest.approx(0.8)
