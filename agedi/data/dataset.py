"""Structures with their labels, checked and ready to be cut into batches."""

import logging
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from agedi.data.graph import AtomsGraph, convert, full_cell
from agedi.loss import Example
from matterform.neighbors import image_counts, image_grid
from matterform.training.batches import Take

if TYPE_CHECKING:
    import ase

KINDS = ("scalar", "integer", "node")
EXTENSIVE = ("energy", "free_energy")
TOO_CLOSE = 0.3  # Å: atoms at the same place, rather than a bond
NAMED = 10  # refused structures listed in an error

logger = logging.getLogger(__name__)


class Dataset(NamedTuple):
    """Structures without padding, in the order they were given; those only for the force field come last.

    The copies that join training when `repeat` is set are made when they are needed. Row `r` of n structures is
    structure r modulo n, repeated k times along a and b with k = 1 + r // n.
    """

    graphs: list[AtomsGraph]
    conditions: dict[str, list[np.ndarray]]  # a value a structure: () numbers, or one an atom
    energies: Float[np.ndarray, " n"]  # eV, NaN where unknown
    forces: list[np.ndarray]  # eV/Å, (atoms 3), NaN where unknown
    diffuse: Bool[np.ndarray, " n"]  # False: only the force field learns from it
    extensive: tuple[str, ...]  # conditions that grow with the number of atoms
    repeat: int  # largest number of copies along a and b; 1 for none
    repeat_epoch: int  # epochs until a size joins


class Labels(NamedTuple):
    """What is known of one structure."""

    conditions: dict[str, np.ndarray]
    energy: float
    forces: Float[np.ndarray, "n 3"]


def create_dataset(
    data: "Sequence[ase.Atoms]",
    *,
    cutoff: float = 6.0,
    mask: str = "none",
    confinement: Sequence[float] | None = None,
    conditioning: str | Sequence[str] = "none",
    conditioning_type: str | Sequence[str] = "scalar",
    extensive: Sequence[str] = EXTENSIVE,
    properties: "Sequence[Mapping[str, Any]] | None" = None,
    canonical_cell: bool = False,
    repeat: int | None = None,
    repeat_epoch: int | None = None,
    force_field: bool = False,
    regressor_data: "Sequence[ase.Atoms] | None" = None,
) -> Dataset:
    """Checks structures and gathers what is to be learned of them.

    The value of a property is that in `properties`, or else `atoms.info`, the results of a calculator,
    `atoms.get_<name>()`, and for properties of atoms `atoms.arrays`. Energies and forces are those that a calculator
    holds already; nothing is calculated.

    Args:
        cutoff: of the model, Å.
        mask: `MaskFixed` fixes the atoms of FixAtoms constraints.
        confinement: z_min and z_max (Å) that hold all atoms that are not fixed.
        conditioning: names of properties, or "none"; `conditioning_type` is one kind for all or a kind each: `scalar`,
            `integer` or `node`, a number for each atom.
        extensive: properties that grow with the number of atoms, multiplied in repeated cells.
        properties: values by name for each structure.
        canonical_cell: turns structures so that their cells are lower triangular.
        repeat: from epoch `repeat_epoch` on, 2 x 2 x 1 cells of all structures join them, from twice that epoch
            3 x 3 x 1 cells, up to `repeat`.
        force_field: energies or forces are needed.
        regressor_data: structures that only the force field learns from.

    Raises:
        ValueError: structures are missing something or make no sense; all of them are named.
    """
    kinds = condition_kinds(conditioning, conditioning_type)
    _check_repeat(repeat, repeat_epoch)
    data, others = list(data), list(regressor_data or ())
    if not data:
        raise ValueError("the data hold no structure")
    if properties is not None and len(properties) != len(data):
        raise ValueError(f"properties must have an entry for each of {len(data)} structures; found {len(properties)}")
    if others and not force_field:
        raise ValueError("regressor_data are only for the force field; set force_field, or leave them out")
    given = list(properties or [{}] * len(data))

    def of_data(index: int) -> tuple[AtomsGraph, Labels]:
        graph, rotation = _checked_graph(data[index], mask, confinement, canonical_cell)
        if graph.mask.all():
            raise ValueError("has only fixed atoms, which do not diffuse: leave it out, or give it as regressor_data")
        if repeat is not None and not graph.pbc[:2].all():
            raise ValueError("is not periodic along a and b, where repeat makes copies: leave out repeat")
        values = {name: _condition(data[index], name, kind, given[index]) for name, kind in kinds.items()}
        return graph, Labels(values, *_labels(data[index], rotation))

    def of_others(index: int) -> tuple[AtomsGraph, Labels]:
        graph, rotation = _checked_graph(others[index], mask, None, canonical_cell)
        # They are noised with the others, though it does not count: between infinite walls nothing would be finite.
        graph = graph._replace(
            confinement=np.array((-np.inf, np.inf) if confinement is None else confinement, np.float32)
        )
        values = {name: _nothing(kind, len(graph.x)) for name, kind in kinds.items()}
        return graph, Labels(values, *_labels(others[index], rotation))

    checked = _all_of("structure", of_data, len(data)) + _all_of("regressor structure", of_others, len(others))
    dataset = Dataset(
        graphs=[graph for graph, _ in checked],
        conditions={name: [labels.conditions[name] for _, labels in checked] for name in kinds},
        energies=np.array([labels.energy for _, labels in checked]),
        forces=[labels.forces for _, labels in checked],
        diffuse=np.arange(len(checked)) < len(data),
        extensive=tuple(name for name in kinds if name in extensive),
        repeat=repeat or 1,
        repeat_epoch=repeat_epoch or 0,
    )
    _report(dataset, [*data, *others], cutoff, canonical_cell, force_field)
    return dataset


def condition_kinds(names: str | Sequence[str], kinds: str | Sequence[str]) -> dict[str, str]:
    """The kind of each property; names may be joined by commas, and "none" is none."""
    parts = [part.strip() for name in ([names] if isinstance(names, str) else names) for part in name.split(",")]
    chosen = [part for part in parts if part and part != "none"]
    given = [kinds] if isinstance(kinds, str) else list(kinds)
    given = given * len(chosen) if len(given) == 1 else given
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"conditioning names a property twice: {', '.join(chosen)}")
    if chosen and len(given) != len(chosen):
        raise ValueError(f"conditioning_type must be one kind, or one for each of {', '.join(chosen)}; got {given}")
    if unknown := [kind for kind in given if kind not in KINDS]:
        raise ValueError(f"conditioning_type must be one of {', '.join(KINDS)}; got {unknown[0]!r}")
    return dict(zip(chosen, given, strict=False))


def lengths(dataset: Dataset) -> Int[np.ndarray, " r"]:
    """What each row of the data set is padded to: one of few lengths, each of which some row fills."""
    sizes = _sizes(dataset)
    steps = np.maximum(4, 2 ** np.maximum(np.ceil(np.log2(sizes)).astype(int) - 3, 0))
    buckets = -(-sizes // steps) * steps
    _, bucket_of = np.unique(buckets, return_inverse=True)
    largest = np.zeros(bucket_of.max() + 1, int)
    np.maximum.at(largest, bucket_of, sizes)
    return largest[bucket_of]


def make_take(dataset: Dataset) -> Take:
    """Returns `take(rows, length)`, the batch of some rows padded to `length`."""
    count = len(dataset.graphs)
    sizes = np.array([len(graph.x) for graph in dataset.graphs])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    x, pos, fixed = (
        np.concatenate([getattr(graph, name) for graph in dataset.graphs]) for name in ("x", "pos", "mask")
    )
    cells, pbcs, walls = (
        np.stack([getattr(g, name) for g in dataset.graphs]) for name in ("cell", "pbc", "confinement")
    )
    forces = np.concatenate(dataset.forces).astype(np.float32)
    nodes = {name: values[0].ndim == 1 for name, values in dataset.conditions.items()}
    conditions = {
        name: np.concatenate(values) if nodes[name] else np.stack(values) for name, values in dataset.conditions.items()
    }

    def take(rows: Int[np.ndarray, " b"], length: int) -> Example:
        original, copies = rows % count, 1 + rows // count
        own = sizes[original]
        slot = np.arange(length)
        present = slot < (own * copies**2)[:, None]
        # Atoms of a repeated cell come copy by copy, in ASE's order.
        atom = np.where(present, starts[original, None] + slot % own[:, None], 0)
        image = slot // own[:, None]
        cell = cells[original]
        along = np.stack([image // copies[:, None], image % copies[:, None]], axis=-1)
        offset = np.einsum("bna,bai->bni", along, cell[:, :2]).astype(np.float32)

        def atoms(values: np.ndarray) -> np.ndarray:
            found = values[atom]
            return np.where(present.reshape(*present.shape, *(1,) * (found.ndim - 2)), found, values.dtype.type(0))

        def condition(name: str, values: np.ndarray) -> np.ndarray:
            if nodes[name]:
                return atoms(values)
            grown = copies**2 if name in dataset.extensive else 1
            return (values[original] * grown).astype(values.dtype)

        graph = AtomsGraph(
            x=atoms(x),
            pos=np.where(present[..., None], pos[atom] + offset, np.float32(0)),
            cell=(cell * np.stack([copies, copies, np.ones_like(copies)], axis=1)[..., None]).astype(np.float32),
            pbc=pbcs[original],
            mask=atoms(fixed),
            present=present,
            confinement=walls[original],
        )
        return Example(
            graph=graph,
            conditions={name: condition(name, values) for name, values in conditions.items()},
            energy=(dataset.energies[original] * copies**2).astype(np.float32),
            forces=atoms(forces),
            diffuse=dataset.diffuse[original],
            index=rows.astype(np.int32),
        )

    return take


def phases(dataset: Dataset) -> dict[int, int]:
    """The epochs from which on cells are repeated up to so many times; the first is epoch 0, with 1."""
    return {(k - 1) * dataset.repeat_epoch: k for k in range(1, dataset.repeat + 1)}


def with_copies(dataset: Dataset, originals: Int[np.ndarray, " n"], repeats: int) -> Int[np.ndarray, " r"]:
    """Some rows of originals and their copies, repeated up to so many times; the force field's own have no copies."""
    diffused = originals[dataset.diffuse[originals]]
    copies = [diffused + (k - 1) * len(dataset.graphs) for k in range(2, repeats + 1)]
    return np.concatenate([originals, *copies])


def rows_of_epoch(dataset: Dataset, originals: Int[np.ndarray, " n"], epoch: int) -> Int[np.ndarray, " r"]:
    """The rows that an epoch trains on, where it trains on these originals."""
    repeats = max(repeats for first, repeats in phases(dataset).items() if first <= epoch)
    return with_copies(dataset, originals, repeats)


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


def fit_reference_energies(dataset: Dataset) -> tuple[tuple[int, float], ...]:
    """Energies (eV) of the elements whose sums come closest to the energies of the structures, by atomic number.

    Where the compositions leave them open, as those of one molecule do, they are the smallest that do; with a warning.
    """
    labelled = np.flatnonzero(np.isfinite(dataset.energies))
    if not len(labelled):
        raise ValueError("reference energies need energies, but no structure has one; give them, or none")
    numbers = np.unique(np.concatenate([dataset.graphs[row].x for row in labelled]))
    counts = np.array([[np.sum(dataset.graphs[row].x == number) for number in numbers] for row in labelled], float)
    energies, _, rank, _ = np.linalg.lstsq(counts, dataset.energies[labelled], rcond=None)
    if rank < len(numbers):
        logger.warning(
            "the compositions of %d structures do not tell the energies of %d elements apart; the smallest are used",
            *(len(labelled), len(numbers)),
        )
    return tuple((int(number), float(energy)) for number, energy in zip(numbers, energies, strict=True))


def fingerprint(dataset: Dataset) -> dict[str, int]:
    """The number of structures, and a checksum of everything that training sees of them."""
    parts = [np.asarray(leaf) for graph in dataset.graphs for leaf in graph if leaf is not None]
    parts += [dataset.energies, *dataset.forces, dataset.diffuse]
    for name, values in sorted(dataset.conditions.items()):
        parts += [np.frombuffer(name.encode(), np.uint8), *values]
    checksum = zlib.crc32(repr((dataset.extensive, dataset.repeat, dataset.repeat_epoch)).encode())
    for part in parts:
        checksum = zlib.crc32(part.tobytes(), zlib.crc32(repr(part.shape).encode(), checksum))
    return {"structures": len(dataset.graphs), "crc32": checksum}


def _sizes(dataset: Dataset) -> Int[np.ndarray, " r"]:
    sizes = np.array([len(graph.x) for graph in dataset.graphs])
    return np.concatenate([sizes * k**2 for k in range(1, dataset.repeat + 1)])


def _check_repeat(repeat: int | None, repeat_epoch: int | None) -> None:
    if (repeat is None) != (repeat_epoch is None):
        there, missing = ("repeat", "repeat_epoch") if repeat_epoch is None else ("repeat_epoch", "repeat")
        raise ValueError(f"{there} needs {missing} too: repeated cells join the data every repeat_epoch epochs")
    if repeat is not None and repeat < 2:
        raise ValueError(f"repeat must be at least 2; got {repeat}")
    if repeat_epoch is not None and repeat_epoch < 1:
        raise ValueError(f"repeat_epoch must be at least 1; got {repeat_epoch}")


def _all_of(name: str, make: Callable[[int], tuple[AtomsGraph, Labels]], count: int) -> list[tuple[AtomsGraph, Labels]]:
    """Makes all of them; those that are refused are named together."""
    made, refused = [], {}
    for index in range(count):
        try:
            made.append(make(index))
        except ValueError as error:
            refused[index] = str(error)
    if refused:
        first, *rest = refused
        also = ", ".join(map(str, rest[:NAMED])) + (", ..." if len(rest) > NAMED else "")
        more = f" ({len(rest)} more are refused: {also})" if rest else ""
        raise ValueError(f"{name} {first} {refused[first]}{more}")
    return made


def _checked_graph(
    atoms: "ase.Atoms", mask: str, confinement: Sequence[float] | None, canonical: bool
) -> tuple[AtomsGraph, Float[np.ndarray, "3 3"] | None]:
    cell, rotation = full_cell(atoms, canonical)
    graph = convert(atoms, cell, rotation, mask, confinement)
    distance, first, second = closest_pair(graph)
    if distance < TOO_CLOSE:
        what = f"atoms {first} and {second}" if first != second else f"atom {first} and its own image"
        raise ValueError(f"has {what} only {distance:.3f} angstrom apart (at least {TOO_CLOSE}): remove or correct it")
    return graph, rotation


def closest_pair(graph: AtomsGraph) -> tuple[float, int, int]:
    """The shortest distance (Å) below `TOO_CLOSE` and its atoms, images included; infinity where there is none."""
    pos, cell, pbc = np.asarray(graph.pos, float), np.asarray(graph.cell, float), np.asarray(graph.pbc)
    difference = pos[None] - pos[:, None]
    vectors = np.where(pbc[:, None], cell, 0.0)
    difference -= np.round(difference @ np.linalg.pinv(vectors)) @ vectors
    shifts = image_grid(image_counts(cell, pbc, TOO_CLOSE)) @ cell
    square = np.sum((difference[..., None, :] + shifts) ** 2, axis=-1)
    np.einsum("iik->ik", square)[:, len(shifts) // 2] = np.inf
    first, second, _ = np.unravel_index(np.argmin(square), square.shape)
    return math.sqrt(square.min()), int(first), int(second)


def _condition(atoms: "ase.Atoms", name: str, kind: str, given: Mapping[str, Any]) -> np.ndarray:
    """The value of a property as an array of the dtype that its kind has."""
    found = _look_up(atoms, name, kind, given)
    try:
        values = np.asarray(found, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"has {name} = {found!r}, which is no number") from error
    shape = (len(atoms),) if kind == "node" else ()
    if kind != "node" and values.size == 1:
        values = values.reshape(())
    if values.shape != shape:
        expected = f"a number for each of {len(atoms)} atoms" if kind == "node" else "a single number"
        raise ValueError(f"has {name} of shape {values.shape}; conditioning_type {kind} needs {expected}")
    if not np.isfinite(values).all():
        raise ValueError(f"has {name} = {found!r}; remove the structure or correct it")
    if kind == "integer" and values != np.round(values):
        raise ValueError(f"has {name} = {found!r}; conditioning_type integer needs whole numbers")
    return values.astype(np.int32 if kind == "integer" else np.float32)


def _look_up(atoms: "ase.Atoms", name: str, kind: str, given: Mapping[str, Any]) -> Any:
    results = _results(atoms)
    arrays = atoms.arrays if kind == "node" else {}
    for source in (given, atoms.info, results, arrays):
        if name in source:
            return source[name]
    reason = f"neither atoms.info[{name!r}] nor atoms.get_{name}()"
    method = getattr(atoms, f"get_{name}", None)
    if method is not None:
        try:
            return method()
        except (RuntimeError, TypeError, ValueError) as error:  # without a calculator or a cell, or needing arguments
            reason = f"no atoms.info[{name!r}], and atoms.get_{name}() says: {error}"
    raise ValueError(f"has no property {name!r}: {reason}")


def _results(atoms: "ase.Atoms") -> Mapping[str, Any]:
    """What a calculator holds of the structure as it is; nothing where it has changed since."""
    if atoms.calc is None or atoms.calc.check_state(atoms):
        return {}
    return getattr(atoms.calc, "results", {})


def _nothing(kind: str, count: int) -> np.ndarray:
    return np.zeros((count,) if kind == "node" else (), np.int32 if kind == "integer" else np.float32)


def _labels(atoms: "ase.Atoms", rotation: Float[np.ndarray, "3 3"] | None) -> tuple[float, Float[np.ndarray, "n 3"]]:
    """Energy and forces, without the work of constraints; NaN where unknown."""
    results = _results(atoms)
    energy, forces = results.get("energy"), results.get("forces")
    energy = math.nan if energy is None else float(energy)
    forces = np.full((len(atoms), 3), np.nan) if forces is None else np.asarray(forces, float)
    if math.isinf(energy) or np.isinf(forces).any():
        raise ValueError(f"has an infinite energy or force (energy {energy}): remove the structure")
    return energy, (forces if rotation is None else forces @ rotation).astype(np.float32)


def _report(
    dataset: Dataset, structures: "Collection[ase.Atoms]", cutoff: float, canonical: bool, force_field: bool
) -> None:
    """Says what a user may not expect; refuses data without labels where a force field is to learn them."""
    if canonical:
        turned = sum(full_cell(atoms, True)[1] is not None for atoms in structures)
        if turned:
            logger.warning("%d structures are turned so that their cells are lower triangular", turned)
    stale = sum(bool(getattr(atoms.calc, "results", None)) and not _results(atoms) for atoms in structures)
    if stale:
        logger.warning("%d structures were changed after their energies were calculated, which are not used", stale)
    if force_field:
        known = np.isfinite(dataset.energies) | [bool(np.isfinite(forces).any()) for forces in dataset.forces]
        if not known.any():
            raise ValueError("the force field needs energies or forces, but no structure has any; leave it out")
        if not known.all():
            logger.info("%d of %d structures have no energies or forces", np.sum(~known), len(known))
    alone = sum(len(graph.x) == 1 and not graph.pbc.any() for graph in dataset.graphs)
    if alone:
        logger.warning("%d structures are single atoms without neighbours within %g angstrom", alone, cutoff)
