"""What sampling, inpainting and relaxation refuse alike."""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from agedi.config import DiffusionConfig, position_noiser
from agedi.data.graph import AtomsGraph
from agedi.network.score import ScoreModel
from agedi.noise.noisers import choose_sigma_max

logger = logging.getLogger(__name__)

SAME_CELL = 1e-4  # Å: cells that differ by less are the same


def check_counts(**counts: int) -> None:
    """Whole numbers, at least 1; a seed may be 0."""
    for name, count in counts.items():
        least = 0 if name == "seed" else 1
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
            raise ValueError(f"{name} must be a whole number of at least {least}; got {count!r}")


def check_noise(config: DiffusionConfig, graph: AtomsGraph) -> None:
    """Warns where t = 1 is not the prior: in a cell, or between walls, larger than those of the training data."""
    noiser = position_noiser(config)
    if config.sde != "ve" or config.sigma_max is None or noiser not in ("CellPositions", "ConfinedCellPositions"):
        return
    cells, pbcs, width = graph.cell[None], graph.pbc[None], None
    if noiser == "ConfinedCellPositions":
        pbcs, width = pbcs & np.array([True, True, False]), float(np.ptp(graph.confinement))
    needed = choose_sigma_max(cells, pbcs, width)
    if needed > 1.1 * config.sigma_max:
        logger.warning(
            "the cell is larger than those of the training data: it takes noise of %.2f angstrom to become uniform, "
            "and the model has %.2f; expect uneven samples",
            *(needed, config.sigma_max),
        )


def check_cell(config: DiffusionConfig, cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"]) -> None:
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


def check_force_field(model: ScoreModel, purpose: str) -> None:
    """Refuses what needs a force field where there is none."""
    if model.force_field is None:
        raise ValueError(f"{purpose} needs a force field, and this model was trained without one (--force_field)")


def check_known(config: DiffusionConfig, numbers: Sequence[int] | Int[np.ndarray, " n"], source: str) -> None:
    """Every species must be one that the model was trained on."""
    unknown = sorted(set(np.asarray(numbers).tolist()) - set(config.species))
    if config.species and unknown:
        raise ValueError(f"{source} has {_symbols(unknown)}, but the model was trained on {_symbols(config.species)}")


def _symbols(numbers: Sequence[int]) -> str:
    from matterform.elements import element_table

    return ", ".join(str(element_table().symbol[number]) for number in numbers)
