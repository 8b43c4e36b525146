"""Counts, cells and species that cannot be used are named."""

import numpy as np
import pytest

from agedi.checks import SAME_CELL, check_cell, check_counts, check_known
from agedi.config import DiffusionConfig

PERIODIC = np.ones(3, bool)
SLAB = DiffusionConfig(noisers=("ConfinedCellPositions",), confinement=(2.0, 5.0), species=(8, 29))


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, np.float32(2)])
def test_counts_are_whole_numbers_of_at_least_1(value):
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1; got"):
        check_counts(steps=value)


def test_seeds_may_be_0_and_numpy_numbers_count():
    check_counts(seed=0, steps=np.int64(3))
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0"):
        check_counts(seed=-1)


def test_periodic_vectors_must_be_independent():
    flat = np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 4.0]])
    with pytest.raises(ValueError, match="must not be zero or lie in a plane"):
        check_cell(DiffusionConfig(), flat, PERIODIC)
    check_cell(DiffusionConfig(), flat, np.array([True, False, True]))
    check_cell(DiffusionConfig(), np.zeros((3, 3)), ~PERIODIC)


def test_confined_cells_are_periodic_in_the_plane():
    check_cell(SLAB, np.diag([3.0, 3.0, 9.0]), np.array([True, True, False]))
    with pytest.raises(ValueError, match="needs pbc along the first two vectors"):
        check_cell(SLAB, np.diag([3.0, 3.0, 9.0]), np.array([True, False, True]))
    tilted = np.diag([3.0, 3.0, 9.0])
    tilted[0, 2] = SAME_CELL / 2
    check_cell(SLAB, tilted, PERIODIC)
    tilted[0, 2] = 2 * SAME_CELL
    with pytest.raises(ValueError, match="lie in the xy plane"):
        check_cell(SLAB, tilted, PERIODIC)


def test_unknown_species_are_named():
    check_known(SLAB, [8, 29, 8], "formula")
    check_known(DiffusionConfig(), [1], "formula")  # without training data there is nothing to compare with
    with pytest.raises(ValueError, match="formula has Ag, Pt, but the model was trained on O, Cu"):
        check_known(SLAB, [78, 47, 8], "formula")
