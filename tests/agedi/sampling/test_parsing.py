"""Formulas, numbers, cells and walls in every form that users give them."""

import ase.build
import numpy as np
import pytest

from agedi.config import DiffusionConfig
from agedi.sampling.parsing import parse_cell, parse_confinement, parse_formula, parse_numbers, parse_pbc

SURFACE = ase.build.fcc111("Cu", (2, 2, 2), vacuum=6.0)
SLAB = DiffusionConfig(noisers=("ConfinedCellPositions",), confinement=(5.0, 8.0))


def test_cells_are_read_in_every_form():
    np.testing.assert_allclose(parse_cell([3, 4, 5]), np.diag([3, 4, 5]))
    np.testing.assert_allclose(parse_cell([3, 3, 5, 90, 90, 120])[1], [-1.5, 3 * 0.75**0.5, 0], atol=1e-9)
    np.testing.assert_allclose(parse_cell(range(9)), np.arange(9).reshape(3, 3))
    np.testing.assert_allclose(parse_cell(SURFACE.cell), SURFACE.cell.array)


def test_formulas_keep_their_order():
    assert parse_formula("OCu2").tolist() == [8, 29, 29]
    assert parse_formula("Cu(OH)2").tolist() == [29, 8, 8, 1, 1]
    assert parse_pbc(True).tolist() == [True] * 3


@pytest.mark.parametrize("given", [[], [0], [119], [1.5], 3, [[1]]])
def test_atomic_numbers_are_a_list_of_elements(given):
    assert parse_numbers((1, 118)).tolist() == [1, 118]
    with pytest.raises(ValueError, match="atomic_numbers must be whole numbers from 1 to 118"):
        parse_numbers(given)


def test_walls_are_those_given_or_of_the_training_data():
    cell, pbc = np.diag([3.0, 3.0, 9.0]), np.array([True, True, False])
    assert parse_confinement(SLAB, None, cell, pbc) == (5.0, 8.0)
    assert parse_confinement(SLAB, np.array([1, 12]), cell, pbc) == (1.0, 12.0)
    assert parse_confinement(DiffusionConfig(), None, cell, pbc) is None
    with pytest.raises(ValueError, match=r"wider than the cell is high \(9.000 angstrom\)"):
        parse_confinement(SLAB, (0.0, 9.5), cell, np.ones(3, bool))
