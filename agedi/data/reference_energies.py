"""Reference energies: one energy per element; the force field learns the remainder."""

import dataclasses
import logging

import numpy as np

from agedi.config import ForceFieldConfig, ReferenceEnergies, parse_reference_energies
from agedi.data.dataset import Dataset

SMALLEST_SCALE = 1e-2  # eV per atom

logger = logging.getLogger(__name__)


def fit_reference_energies(dataset: Dataset) -> tuple[tuple[int, float], ...]:
    """Reference energies (eV) by atomic number: the least-squares fit of sums over atoms to the structures' energies.

    Where the compositions leave them undetermined (all structures have the same composition, say), the solution of
    smallest norm is returned, with a warning.

    Raises:
        ValueError: no structure has an energy.
    """
    labelled = np.flatnonzero(np.isfinite(dataset.energies))
    if not len(labelled):
        raise ValueError("reference energies need energies, but no structure has one; give them, or none")
    numbers = np.unique(np.concatenate([dataset.graphs[row].x for row in labelled]))
    counts = np.array([[np.sum(dataset.graphs[row].x == number) for number in numbers] for row in labelled], float)
    energies, _, rank, _ = np.linalg.lstsq(counts, dataset.energies[labelled], rcond=None)
    if rank < len(numbers):
        logger.warning(
            "the compositions of %d structures do not determine the energies of %d elements; the smallest are used",
            *(len(labelled), len(numbers)),
        )
    return tuple((int(number), float(energy)) for number, energy in zip(numbers, energies, strict=True))


def normalize_energies(
    config: ForceFieldConfig, dataset: Dataset, reference_energies: ReferenceEnergies
) -> ForceFieldConfig:
    """The force field's config with reference energies, and with the spread of energies about them as its unit.

    Values that `config` already has are kept.

    Raises:
        ValueError: as in `parse_reference_energies`.
    """
    labelled = np.flatnonzero(np.isfinite(dataset.energies))
    if not len(labelled):
        return config
    if not config.reference_energies:
        given = parse_reference_energies(reference_energies)
        fitted = fit_reference_energies(dataset) if given is None else given
        config = dataclasses.replace(config, reference_energies=fitted)
    if config.energy_scale == 1.0:
        references = dict(config.reference_energies)
        remainders = [
            (dataset.energies[row] - sum(references.get(number, 0.0) for number in dataset.graphs[row].x.tolist()))
            / len(dataset.graphs[row].x)
            for row in labelled
        ]
        config = dataclasses.replace(config, energy_scale=max(float(np.std(remainders)), SMALLEST_SCALE))
    return config
