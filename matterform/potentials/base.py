"""The interface of potentials and property models, and batches in which a bad structure does not affect the others."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from matterform.errors import reason_of
from matterform.evaluation.validity import ATOM_DENSITY_RANGE_PER_ANG3, structural_validity

if TYPE_CHECKING:
    import ase
    import pymatgen.core

# If crystals have more atoms than this on average, batches contain fewer of them: this bounds the memory, and large
# crystals are not faster in batches.
ATOMS_PER_PLACE = 20

Quantity = Literal["energy", "forces", "stress"]  # each includes those before it


class Predictions(NamedTuple):
    """One entry per structure. Where `problems` gives a reason, the energy is NaN and the forces are None."""

    energy: Float[np.ndarray, " b"]  # eV, of the whole structure as given
    forces: "list[Float[np.ndarray, 'n 3'] | None]"  # eV/Å; None if not requested
    stress: Float[np.ndarray, "b 3 3"]  # eV/Å³, positive under tension (ASE's sign); NaN if not requested
    problems: list[str]  # empty if there are numbers


class Properties(NamedTuple):
    """One entry per structure; NaN where `problems` gives a reason."""

    values: Float[np.ndarray, " b *k"]
    problems: list[str]


class Potential(NamedTuple):
    """A force field. `corrected`: whether its energies already include the MP2020 corrections; None if unknown."""

    name: str
    predict: "Callable[[Sequence[pymatgen.core.Structure], Quantity], Predictions]"
    corrected: bool | None


class PropertyModel(NamedTuple):
    """A model of a property, in the unit of its training data."""

    name: str
    predict: "Callable[[Sequence[pymatgen.core.Structure]], Properties]"


class BatchModel(NamedTuple):
    """The functions of a package that `run_in_batches` needs.

    `prepare` converts a structure to the model's input, `run` evaluates several inputs at once.
    """

    prepare: "Callable[[pymatgen.core.Structure], Any]"
    run: Callable[[list[Any]], list[Any]]
    expected: tuple[type[Exception], ...]  # exceptions of the package for bad crystals; others are not caught


class Prediction(NamedTuple):
    """A potential's result for one structure; units as in `Predictions`."""

    energy: float
    forces: "Float[np.ndarray, 'n 3'] | None" = None
    stress: Float[np.ndarray, "3 3"] | None = None


def run_in_batches(
    structures: "Sequence[pymatgen.core.Structure]",
    model: BatchModel,
    batch_size: int,
    max_atoms: int | None = None,
) -> tuple[list[Any | None], list[str]]:
    """Evaluates structures in batches; returns results (None if there is none) and reasons ("" if there is a result).

    Impossible crystals (overlapping atoms, a flat cell, NaN, partial occupancy) are not passed to the model, because
    many models return plausible numbers for them. A batch that fails is run again one by one. Inputs are made batch by
    batch, so the memory does not depend on the number of structures.

    Args:
        max_atoms: largest number of atoms in a batch of several structures; default `ATOMS_PER_PLACE` * `batch_size`.
    """
    problems = [
        reason or _problem(structure)
        for reason, structure in zip(structural_validity(structures).reason, structures, strict=True)
    ]
    results: list[Any | None] = [None] * len(structures)
    accepted = [index for index, problem in enumerate(problems) if not problem]
    for batch in batches_of_like_size([len(structures[index]) for index in accepted], batch_size, max_atoms):
        members = [accepted[place] for place in batch]
        for index, result in zip(
            members, _evaluate_batch(model, [structures[index] for index in members]), strict=True
        ):
            if isinstance(result, Exception):
                problems[index] = reason_of(result)[:200]
            else:
                results[index] = result
    return results, problems


def batches_of_like_size(sizes: Sequence[int], batch_size: int, max_atoms: int | None = None) -> list[list[int]]:
    """Splits indices, sorted by `sizes` (numbers of atoms), into batches limited in structures and in atoms."""
    max_atoms = ATOMS_PER_PLACE * batch_size if max_atoms is None else max_atoms
    batches, atoms = [], 0
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        atoms += sizes[index]
        if not batches or len(batches[-1]) == batch_size or atoms > max_atoms:
            batches.append([])
            atoms = sizes[index]
        batches[-1].append(index)
    return batches


def bare_atoms(structure: "pymatgen.core.Structure") -> "ase.Atoms":
    """ASE Atoms with numbers, positions and cell only; pymatgen's adaptor takes four times as long."""
    import ase

    return ase.Atoms(structure.atomic_numbers, structure.cart_coords, cell=structure.lattice.matrix, pbc=True)


def check_elements(structure: "pymatgen.core.Structure", known: Sequence[str] | Sequence[int]) -> None:
    """Checks that a model supports all elements of a structure.

    Args:
        known: supported chemical symbols or atomic numbers.

    Raises:
        ValueError: an element is not supported.
    """
    for element in structure.elements:
        symbol = getattr(element, "symbol", str(element))
        if symbol not in known and element.Z not in known:
            raise ValueError(f"element unknown to the model: {symbol} (Z = {element.Z})")


def check_neighbors(structure: "pymatgen.core.Structure", centers: np.ndarray, cutoff_ang: float) -> None:
    """Checks that every atom has a neighbour within the cutoff (Å), because models are not trained on isolated atoms.

    Args:
        centers: index of the first atom of each neighbour pair.

    Raises:
        ValueError: an atom has no neighbour.
    """
    lonely = np.setdiff1d(np.arange(len(structure)), centers)
    if len(lonely):
        raise ValueError(f"isolated atom: site {lonely[0]} has no neighbor within {cutoff_ang:g} Å")


def collect_predictions(results: Sequence[Prediction | None], problems: Sequence[str]) -> Predictions:
    """Collects the results of `run_in_batches` as `Predictions`; a non-finite result becomes a problem."""
    problems = list(problems)
    nothing = np.full((3, 3), np.nan)
    for index, result in enumerate(results):
        if result is not None and not _is_finite(result):
            problems[index] = "the model's result is not finite"
    kept = [None if problem else result for result, problem in zip(results, problems, strict=True)]
    return Predictions(
        np.array([np.nan if result is None else result.energy for result in kept], np.float64),
        [None if result is None else result.forces for result in kept],
        np.array([nothing if result is None or result.stress is None else result.stress for result in kept]).reshape(
            -1, 3, 3
        ),
        problems,
    )


def collect_properties(
    results: Sequence[np.ndarray | float | None], problems: Sequence[str], shape: tuple[int, ...] = ()
) -> Properties:
    """Collects the results of `run_in_batches`, arrays of `shape`, as `Properties`; see `collect_predictions`."""
    problems = list(problems)
    values = np.full((len(results), *shape), np.nan)
    for index, result in enumerate(results):
        if result is None:
            continue
        if np.isfinite(result).all():
            values[index] = result
        else:
            problems[index] = "the model's result is not finite"
    return Properties(values, problems)


def _problem(structure: "pymatgen.core.Structure") -> str:
    """The reason why a structure is not passed to a model (overlapping atoms are checked elsewhere); empty if it is."""
    from pymatgen.core import DummySpecies

    if not structure.is_ordered:
        return "sites with partial occupancy"
    if any(isinstance(specie, DummySpecies) for specie in structure.species):
        return "sites that are no element"
    if not all(structure.lattice.pbc):
        return "not periodic in all directions"
    density, limit = len(structure) / structure.volume, ATOM_DENSITY_RANGE_PER_ANG3[1]
    # Three times the density of diamond; the number of bond angles, and so the memory, grows with its cube.
    return "" if density <= limit else f"atom density too high: {density:.3g} atoms/Å³, above {limit:g} atoms/Å³"


def _evaluate_batch(model: BatchModel, structures: "Sequence[pymatgen.core.Structure]") -> list[Any]:
    """Results of one batch; an exception for each structure that fails."""
    results: list[Any] = []
    for structure in structures:
        try:
            results.append(model.prepare(structure))
        except model.expected as error:
            results.append(error)
    ready = [index for index, result in enumerate(results) if not isinstance(result, Exception)]
    if ready:
        for index, result in zip(ready, _run(model, [results[index] for index in ready]), strict=True):
            results[index] = result
    return results


def _run(model: BatchModel, inputs: list[Any]) -> list[Any]:
    """Results of the inputs; an exception for each input that also fails by itself."""
    try:
        return model.run(inputs)
    except model.expected as error:
        if len(inputs) == 1:
            return [error]
    return [_run(model, [single])[0] for single in inputs]


def _is_finite(result: Prediction) -> bool:
    return all(np.isfinite(part).all() for part in result if part is not None)
