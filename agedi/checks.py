"""Checks of counts, cells and species that several parts of AGeDi share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from agedi.config import DiffusionConfig, position_noiser
from matterform.elements import element_table

SAME_CELL = 1e-4  # Å; cells that differ by less count as equal


def check_counts(**counts: Any) -> None:
    """Checks that all are whole numbers of at least 1; `seed` may be 0.

    Raises:
        ValueError: one of them is not; the message names it.
    """
    for name, count in counts.items():
        least = 0 if name == "seed" else 1
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
            raise ValueError(f"{name} must be a whole number of at least {least}; got {count!r}")


def check_cell(config: DiffusionConfig, cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"]) -> None:
    """Checks that the model's noise of positions is defined in a cell (rows are lattice vectors, Å).

    Raises:
        ValueError: the periodic vectors are linearly dependent, or ConfinedCellPositions meets a cell that is not
            periodic along a and b or whose a and b do not lie in the xy plane.
    """
    vectors = cell[pbc]
    if len(vectors) and np.linalg.matrix_rank(vectors, tol=1e-3) < len(vectors):
        raise ValueError(f"the cell's periodic vectors must not be zero or lie in a plane; got {cell.tolist()}")
    if position_noiser(config) == "ConfinedCellPositions":
        if not pbc[:2].all():
            raise ValueError(f"ConfinedCellPositions needs pbc along the first two vectors; got {pbc.tolist()}")
        if np.abs(cell[:2, 2]).max() > SAME_CELL:
            raise ValueError(
                f"ConfinedCellPositions needs a cell whose first two vectors lie in the xy plane; got {cell.tolist()}"
            )


def check_known(config: DiffusionConfig, numbers: Sequence[int] | Int[np.ndarray, " n"], source: str) -> None:
    """Checks that the model was trained on all these atomic numbers; `source` begins the message.

    Raises:
        ValueError: some are unknown; the message names them.
    """
    unknown = sorted(set(np.asarray(numbers).tolist()) - set(config.species))
    if config.species and unknown:
        raise ValueError(f"{source} has {_symbols(unknown)}, but the model was trained on {_symbols(config.species)}")


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(str(element_table().symbol[number]) for number in numbers)
