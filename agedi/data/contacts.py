"""Check for atoms that are closer to each other than any bond."""

import math

import numpy as np

from agedi.data.graph import AtomsGraph
from matterform.neighbors import image_counts, image_grid

TOO_CLOSE = 0.3  # Å, shorter than any bond


def check_contacts(graph: AtomsGraph) -> None:
    """Checks that no two atoms, periodic images included, are closer than `TOO_CLOSE`.

    Raises:
        ValueError: two atoms are closer; the message names them and their distance.
    """
    distance, first, second = closest_pair(graph)
    if distance < TOO_CLOSE:
        what = f"atoms {first} and {second}" if first != second else f"atom {first} and its own image"
        raise ValueError(f"has {what} only {distance:.3f} angstrom apart (at least {TOO_CLOSE}): remove or correct it")


def closest_pair(graph: AtomsGraph) -> tuple[float, int, int]:
    """The shortest distance (Å) and its two atoms, periodic images included.

    Only distances below `TOO_CLOSE` are certain to be found; the distance of a single, not periodic atom is infinite.
    """
    pos, cell, pbc = np.asarray(graph.pos, float), np.asarray(graph.cell, float), np.asarray(graph.pbc)
    difference = pos[None] - pos[:, None]
    vectors = np.where(pbc[:, None], cell, 0.0)
    difference -= np.round(difference @ np.linalg.pinv(vectors)) @ vectors
    shifts = image_grid(image_counts(cell, pbc, TOO_CLOSE)) @ cell
    square = np.sum((difference[..., None, :] + shifts) ** 2, axis=-1)
    np.einsum("iik->ik", square)[:, len(shifts) // 2] = np.inf
    first, second, _ = np.unravel_index(np.argmin(square), square.shape)
    return math.sqrt(square.min()), int(first), int(second)
