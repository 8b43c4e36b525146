"""Reference energies per element, and the scale of the residual energies."""

import os

import numpy as np

from atomformer.config import EnergyScale
from atomformer.data.dataset import Dataset, atom_counts, elements, pieces
from atomformer.data.rows import row_from_atoms
from matterform.elements import element_table
from matterform.io.formats import read_structures, to_atoms

ROUNDING = 1e-11  # relative rounding error of fitted energies in double precision
STRUCTURES_AT_ONCE = 10_000  # bounds the memory for a data set that is larger than it


def isolated_energies(path: str | os.PathLike[str]) -> dict[int, float]:
    """Energies (eV) by atomic number, from a file of single atoms.

    Raises:
        ValueError: an entry is not a single atom with an energy.
    """
    structures, refused = read_structures(path)
    if refused:
        index, reason = next(iter(refused.items()))
        raise ValueError(f"{path}: entry {index} cannot be read: {reason}")
    energies = {}
    for index, structure in enumerate(structures):
        row = row_from_atoms(to_atoms(structure))
        if len(row["input_ids"]) != 1 or "total_energy" not in row:
            raise ValueError(f"{path}: entry {index} must be a single atom with an energy")
        energies[int(row["input_ids"][0])] = row["total_energy"]
    return energies


def fit_energy_scale(
    dataset: Dataset, column: str, per_atom: bool, isolated: dict[int, float] | None = None
) -> EnergyScale:
    """Reference energies (eV) per element that leave residuals of mean zero, and the scale (eV) of the residuals.

    Args:
        column: the energies, `formation_energy` or `total_energy`.
        per_atom: whether the network predicts energies per atom.
        isolated: energies (eV) of isolated atoms by atomic number. With them, the references are these, shifted by the
            same energy for every atom. Without, they are the least-squares solution, of least norm if the compositions
            do not determine it.

    Returns:
        The references, and as the scale the root mean square of the forces times 1 Å, or without forces that of the
        residuals (per atom if `per_atom`).

    Raises:
        ValueError: no energy is known, or `isolated` lacks an element of the data.
    """
    if column not in dataset.structures:
        raise ValueError(f"the data have no column {column!r} to fit references to")
    numbers = elements(dataset)
    table = element_table().symbol
    if isolated is not None and (missing := [str(table[z]) for z in numbers if int(z) not in isolated]):
        raise ValueError(f"the isolated atoms lack {', '.join(missing)}; add one of every element of the data")
    counts = composition(dataset, numbers)
    energies = np.asarray(dataset.structures[column])
    known = np.isfinite(energies)
    if not known.any():
        raise ValueError(f"no structure has a {column}, so no references can be fitted")
    counts, energies = counts[known], energies[known]
    if isolated is None:
        references = np.linalg.lstsq(counts, energies, rcond=None)[0]
    else:
        references = np.array([isolated[int(z)] for z in numbers])
        references = references + np.mean(energies - counts @ references) / np.mean(counts.sum(axis=1))
    scale = _force_scale(dataset)
    if not scale > 0:
        left = energies - counts @ references
        # After an exact fit only rounding errors remain, which must not set the scale.
        left = np.where(np.abs(left) > ROUNDING * np.abs(energies), left, 0.0)
        scale = float(np.sqrt(np.mean((left / counts.sum(axis=1) if per_atom else left) ** 2)))
    named = tuple((int(z), float(energy)) for z, energy in zip(numbers, references, strict=True))
    return EnergyScale(references=named, scale=scale if scale > 0 else 1.0, per_atom=per_atom)


def composition(dataset: Dataset, numbers: np.ndarray) -> np.ndarray:
    """Number of atoms of each element in `numbers` (atomic numbers) in every structure, (m, elements)."""
    all_sizes, e = atom_counts(dataset), len(numbers)
    place = np.zeros(256, np.int64)
    place[numbers] = np.arange(e)
    counts = np.zeros((len(all_sizes), e), np.int32)
    for first in range(0, len(counts), STRUCTURES_AT_ONCE):
        sizes = all_sizes[first : first + STRUCTURES_AT_ONCE]
        tokens = dataset.atoms["input_ids"][dataset.offsets[first] : dataset.offsets[first + len(sizes)]]
        cells = np.repeat(np.arange(len(sizes)), sizes) * e + place[tokens]
        counts[first : first + len(sizes)] = np.bincount(cells, minlength=len(sizes) * e).reshape(-1, e)
    return counts


def _force_scale(dataset: Dataset) -> float:
    """Root mean square of the known force components (eV/Å), in double precision; 0 if none is known."""
    total, count = 0.0, 0
    for part in pieces(dataset.atoms["forces"]) if "forces" in dataset.atoms else ():
        known = part[np.isfinite(part)].astype(np.float64)
        total, count = total + float(known @ known), count + len(known)
    return (total / count) ** 0.5 if count else 0.0
