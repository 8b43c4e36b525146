"""Data sets: checked structures with their labels, from which batches are made."""

import logging
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from agedi.config import from_keywords
from agedi.data.buckets import bucket
from agedi.data.conditions import condition_kinds
from agedi.data.config import DatasetConfig
from agedi.data.contacts import check_contacts
from agedi.data.graph import NO_WALLS, AtomsGraph, convert, full_cell
from agedi.data.labels import calculator_results, placeholder, read_energy_and_forces, read_property

if TYPE_CHECKING:
    import ase

MAX_LISTED = 10  # refused structures listed in an error

logger = logging.getLogger(__name__)


class Dataset(NamedTuple):
    """Structures without padding, in the order given, followed by those for the force field only.

    With `repeat`, training also uses repeated cells, which are built on demand: row r of n structures is
    structure r modulo n, repeated k times along a and b with k = 1 + r // n.
    """

    graphs: list[AtomsGraph]
    conditions: dict[str, list[np.ndarray]]  # one value per structure, of shape () or (atoms,)
    energies: Float[np.ndarray, " n"]  # eV, NaN where unknown
    forces: list[np.ndarray]  # eV/Å, (atoms 3), NaN where unknown
    diffuse: Bool[np.ndarray, " n"]  # False: used by the force field loss only
    extensive: tuple[str, ...]  # conditions that grow with the number of atoms
    repeat: int  # largest number of copies along a and b; 1 for none
    repeat_epoch: int  # epochs after which the next larger repeated cells are added


class LabelledGraph(NamedTuple):
    """One structure with its labels."""

    graph: AtomsGraph
    conditions: dict[str, np.ndarray]
    energy: float  # eV
    forces: Float[np.ndarray, "n 3"]  # eV/Å


def create_dataset(
    data: "Sequence[ase.Atoms]",
    config: DatasetConfig | None = None,
    *,
    conditioning: str | Sequence[str] = "none",
    conditioning_type: str | Sequence[str] = "scalar",
    properties: "Sequence[Mapping[str, Any]] | None" = None,
    cutoff: float = 6.0,
    force_field: bool = False,
    regressor_data: "Sequence[ase.Atoms] | None" = None,
    **settings: Any,
) -> Dataset:
    """Checks structures and reads their labels.

    Properties are looked up by `agedi.data.labels.read_property`. Energies and forces are the stored results of a
    calculator; nothing is calculated.

    Args:
        conditioning: names of properties, or "none".
        conditioning_type: `scalar`, `integer` or `node` (one number per atom): one for all properties or one for each.
        properties: values by name for each structure.
        cutoff: neighbor cutoff of the model, Å.
        force_field: whether energies or forces are required.
        regressor_data: structures that only the force field learns from.
        settings: fields of `DatasetConfig` that replace those of `config`.

    Raises:
        ValueError: a structure is faulty or lacks a label (the message lists all such structures), or arguments
            contradict each other.
    """
    config = from_keywords(DatasetConfig, settings, config)
    kinds = condition_kinds(conditioning, conditioning_type)
    data, others = list(data), list(regressor_data or ())
    given = list(properties or [{}] * len(data))
    _check_arguments(data, given, others, force_field)
    rows = _read_all("structure", lambda i: _read_diffused(data[i], config, kinds, given[i]), len(data))
    rows += _read_all("regressor structure", lambda i: _read_regressor(others[i], config, kinds), len(others))
    dataset = Dataset(
        graphs=[row.graph for row in rows],
        conditions={name: [row.conditions[name] for row in rows] for name in kinds},
        energies=np.array([row.energy for row in rows]),
        forces=[row.forces for row in rows],
        diffuse=np.arange(len(rows)) < len(data),
        extensive=tuple(name for name in kinds if name in config.extensive),
        repeat=config.repeat or 1,
        repeat_epoch=config.repeat_epoch or 0,
    )
    _warn_of_surprises(dataset, [*data, *others], cutoff, config.canonical_cell)
    if force_field:
        _check_labels(dataset)
    return dataset


def padded_lengths(dataset: Dataset) -> Int[np.ndarray, " r"]:
    """Padded number of atoms of each row: one of few values, each of which is the size of some row."""
    sizes = _sizes(dataset)
    _, bucket_of = np.unique([bucket(size) for size in sizes.tolist()], return_inverse=True)
    largest = np.zeros(bucket_of.max() + 1, int)
    np.maximum.at(largest, bucket_of, sizes)
    return largest[bucket_of]


def phases(dataset: Dataset) -> dict[int, int]:
    """Largest repetition of cells by the first epoch that uses it; epoch 0 has 1."""
    return {(k - 1) * dataset.repeat_epoch: k for k in range(1, dataset.repeat + 1)}


def with_copies(dataset: Dataset, originals: Int[np.ndarray, " n"], repeats: int) -> Int[np.ndarray, " r"]:
    """Rows of originals and of their cells repeated up to `repeats` times; regressor structures are not repeated."""
    diffused = originals[dataset.diffuse[originals]]
    copies = [diffused + (k - 1) * len(dataset.graphs) for k in range(2, repeats + 1)]
    return np.concatenate([originals, *copies])


def repeated_graph(graph: AtomsGraph, k: int) -> AtomsGraph:
    """The graph of a cell repeated k times along a and b, in ASE's order of atoms."""
    copies = [np.float32(i) * graph.cell[0] + np.float32(j) * graph.cell[1] for i in range(k) for j in range(k)]
    return graph._replace(
        x=np.tile(graph.x, k * k),
        pos=np.concatenate([graph.pos + offset for offset in copies]),
        cell=graph.cell * np.array([[k], [k], [1]], graph.cell.dtype),
        mask=np.tile(graph.mask, k * k),
        present=np.tile(graph.present, k * k),
    )


def all_graphs(dataset: Dataset) -> list[AtomsGraph]:
    """The graphs of all rows, repeated cells included."""
    return [repeated_graph(graph, k) for k in range(1, dataset.repeat + 1) for graph in dataset.graphs]


def condition_values(dataset: Dataset, name: str) -> np.ndarray:
    """All values of a property in training, those of repeated cells included."""
    values = [np.ravel(v) for v, diffuse in zip(dataset.conditions[name], dataset.diffuse, strict=True) if diffuse]
    single = np.concatenate(values)
    if name not in dataset.extensive:
        return single
    return np.concatenate([single * k**2 for k in range(1, dataset.repeat + 1)])


def dataset_confinement(dataset: Dataset) -> tuple[float, float]:
    """z_min and z_max (Å) of the structures.

    Raises:
        ValueError: the data set has no confinement.
    """
    low, high = dataset.graphs[0].confinement.tolist()
    if not np.isfinite([low, high]).all():
        raise ValueError(
            "ConfinedCellPositions needs a confinement; give the data set one: z_min and z_max in angstrom"
        )
    return low, high


def fingerprint(dataset: Dataset) -> dict[str, int]:
    """The number of structures, and a checksum of everything that training uses of them."""
    parts = [np.asarray(leaf) for graph in dataset.graphs for leaf in graph if leaf is not None]
    parts += [dataset.energies, *dataset.forces, dataset.diffuse]
    for name, values in sorted(dataset.conditions.items()):
        parts += [np.frombuffer(name.encode(), np.uint8), *values]
    checksum = zlib.crc32(repr((dataset.extensive, dataset.repeat, dataset.repeat_epoch)).encode())
    for part in parts:
        checksum = zlib.crc32(part.tobytes(), zlib.crc32(repr(part.shape).encode(), checksum))
    return {"structures": len(dataset.graphs), "crc32": checksum}


def _sizes(dataset: Dataset) -> Int[np.ndarray, " r"]:
    """Number of atoms of each row."""
    sizes = np.array([len(graph.x) for graph in dataset.graphs])
    return np.concatenate([sizes * k**2 for k in range(1, dataset.repeat + 1)])


def _check_arguments(
    data: "Sequence[ase.Atoms]", given: Sequence[Any], others: "Sequence[ase.Atoms]", force_field: bool
) -> None:
    if not data:
        raise ValueError("the data hold no structure")
    if len(given) != len(data):
        raise ValueError(f"properties must have an entry for each of {len(data)} structures; found {len(given)}")
    if others and not force_field:
        raise ValueError("regressor_data are only for the force field; set force_field, or leave them out")


def _read_all(name: str, read: Callable[[int], LabelledGraph], count: int) -> list[LabelledGraph]:
    """Reads all structures; one error lists all that are refused."""
    rows, refused = [], {}
    for index in range(count):
        try:
            rows.append(read(index))
        except ValueError as error:
            refused[index] = str(error)
    if refused:
        first, *rest = refused
        also = ", ".join(map(str, rest[:MAX_LISTED])) + (", ..." if len(rest) > MAX_LISTED else "")
        more = f" ({len(rest)} more are refused: {also})" if rest else ""
        raise ValueError(f"{name} {first} {refused[first]}{more}")
    return rows


def _read_diffused(
    atoms: "ase.Atoms", config: DatasetConfig, kinds: Mapping[str, str], given: Mapping[str, Any]
) -> LabelledGraph:
    """A structure that the diffusion learns from."""
    graph, rotation = _read_graph(atoms, config, config.confinement)
    if graph.mask.all():
        raise ValueError("has only fixed atoms, which do not diffuse: leave it out, or give it as regressor_data")
    if config.repeat is not None and not graph.pbc[:2].all():
        raise ValueError("is not periodic along a and b, where repeat makes copies: leave out repeat")
    conditions = {name: read_property(atoms, name, kind, given) for name, kind in kinds.items()}
    return LabelledGraph(graph, conditions, *read_energy_and_forces(atoms, rotation))


def _read_regressor(atoms: "ase.Atoms", config: DatasetConfig, kinds: Mapping[str, str]) -> LabelledGraph:
    """A structure that only the force field learns from."""
    graph, rotation = _read_graph(atoms, config, None)
    # Batches noise it like any other, with no effect on the loss; between infinite walls that noise would be NaN.
    walls = NO_WALLS if config.confinement is None else config.confinement
    graph = graph._replace(confinement=np.array(walls, np.float32))
    conditions = {name: placeholder(kind, len(graph.x)) for name, kind in kinds.items()}
    return LabelledGraph(graph, conditions, *read_energy_and_forces(atoms, rotation))


def _read_graph(
    atoms: "ase.Atoms", config: DatasetConfig, confinement: Sequence[float] | None
) -> tuple[AtomsGraph, Float[np.ndarray, "3 3"] | None]:
    """The graph of a structure, and the rotation into its canonical cell."""
    cell, rotation = full_cell(atoms, config.canonical_cell)
    graph = convert(atoms, cell, rotation, config.mask, confinement)
    check_contacts(graph)
    return graph, rotation


def _warn_of_surprises(
    dataset: Dataset, structures: "Collection[ase.Atoms]", cutoff: float, canonical_cell: bool
) -> None:
    """Warns of rotated structures, outdated energies, and single atoms without neighbors."""
    if canonical_cell and (rotated := sum(full_cell(atoms, True)[1] is not None for atoms in structures)):
        logger.warning("%d structures are rotated so that their cells are lower triangular", rotated)
    stale = sum(bool(getattr(atoms.calc, "results", None)) and not calculator_results(atoms) for atoms in structures)
    if stale:
        logger.warning(
            "%d structures were changed after their energies were calculated; these energies are not used", stale
        )
    alone = sum(len(graph.x) == 1 and not graph.pbc.any() for graph in dataset.graphs)
    if alone:
        logger.warning("%d structures are single atoms without neighbours within %g angstrom", alone, cutoff)


def _check_labels(dataset: Dataset) -> None:
    """Checks that a force field has something to learn from."""
    known = np.isfinite(dataset.energies) | [bool(np.isfinite(forces).any()) for forces in dataset.forces]
    if not known.any():
        raise ValueError("the force field needs energies or forces, but no structure has any; leave it out")
    if not known.all():
        logger.info("%d of %d structures have no energies or forces", np.sum(~known), len(known))
