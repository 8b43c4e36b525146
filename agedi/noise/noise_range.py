"""The largest noise of positions, chosen from the structures of a data set."""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from agedi.config import DiffusionConfig, position_noiser
from agedi.data.graph import AtomsGraph
from agedi.noise.noisers import choose_sigma_max

OPEN_WIDTHS = 3.0  # sigma_max over a molecule's width: hides where atoms were, but keeps them within the cutoff

logger = logging.getLogger(__name__)


def largest_noise(config: DiffusionConfig, graphs: Sequence[AtomsGraph]) -> float:
    """Standard deviation (Å) of the noise at t = 1.

    This noise makes positions uniform along periodic vectors and between walls. In the other directions it is several
    times as wide as the structure. Formula: docs/formulas/agedi.md.
    """
    cells, pbcs = np.stack([graph.cell for graph in graphs]), np.stack([graph.pbc for graph in graphs])
    noiser = position_noiser(config)
    if noiser == "ConfinedCellPositions":
        assert config.confinement is not None
        low, high = config.confinement
        # A truncated normal has no mirror images, so it takes a larger deviation to become uniform.
        width = (high - low) * (4 if config.walls == "truncated" else 1)
        return choose_sigma_max(cells, pbcs & np.array([True, True, False]), width)
    if noiser == "Positions":
        pbcs = np.zeros_like(pbcs)
    widths = [
        _open_width(np.asarray(graph.pos), cell, pbc) for graph, cell, pbc in zip(graphs, cells, pbcs, strict=True)
    ]
    largest = max(choose_sigma_max(cells, pbcs), OPEN_WIDTHS * max(widths), 2 * config.sigma_min)
    if max(widths) > 0 and largest > config.model.cutoff:
        logger.warning(
            "sigma_max is %.1f angstrom and the cutoff %.1f: at t = 1 most atoms are farther apart than the cutoff; "
            "use a larger cutoff, or sde vp with Positions",
            *(largest, config.model.cutoff),
        )
    return largest


def _open_width(pos: Float[np.ndarray, "n 3"], cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"]) -> float:
    """Standard deviation (Å) of a coordinate along the directions that are not periodic."""
    if pbc.all():
        return 0.0
    periodic = cell[pbc].astype(float)
    across = np.eye(3) - np.linalg.pinv(periodic) @ periodic if pbc.any() else np.eye(3)
    centred = (pos - pos.mean(axis=0)) @ across
    return float(np.sqrt(np.sum(centred**2) / (len(pos) * (3 - pbc.sum()))))
