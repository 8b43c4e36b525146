"""Training examples from a data set: padded structures with their targets."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from atomformer.config import ENERGY_HEADS, AtomformerConfig
from atomformer.data.dataset import Dataset, atom_counts, elements
from atomformer.data.periodic import image_edges
from atomformer.data.structure import AnyArray, Edges, Structure
from atomformer.data.vocabulary import PAD
from matterform.elements import element_table
from matterform.reduction import minkowski_cell
from matterform.training.batches import Take

PER_ATOM_TARGETS = ("forces", "relaxed_coords")
KEPT_PERIODIC = 10_000  # structures whose edges stay in memory: 0.1 MB each for 100 atoms and a cutoff of 6 Å


class StructureExample(NamedTuple):
    """One structure with its targets; NaN where a target is missing."""

    structure: Structure
    targets: dict[str, AnyArray]  # energies (eV, less the references), forces (n, 3), relaxed_coords, labels
    fixed: Bool[AnyArray, " n"]
    index: Int[AnyArray, ""]  # index of the structure in its data set; noise in validation depends only on it


class Requirements(NamedTuple):
    """The columns that examples must have."""

    targets: tuple[str, ...] = ()  # columns of energies, forces, relaxed_coords
    label_columns: tuple[str, ...] = ()  # properties that make up the target "labels", in this order


def make_take(dataset: Dataset, config: AtomformerConfig, required: Requirements) -> Take:
    """`take(indices, length)`: a batch of `StructureExample`s padded to `length` atoms.

    Reduced cells and edges of periodic structures are computed when a structure is taken, and those of the last
    KEPT_PERIODIC structures are kept. Explicit images need one pass over all structures first, to count the edges.

    Raises:
        ValueError: the data set lacks a required column, or has elements that the references or the network lack.
    """
    check_dataset(dataset, config, required)
    counts = atom_counts(dataset)
    references = np.zeros(config.vocab_size)
    for number, energy in config.energy.references:
        references[number] = energy
    images = _periodic_images(dataset, config)

    def take(indices: Int[np.ndarray, " b"], length: int) -> StructureExample:
        mask = np.arange(length) < counts[indices][:, None]
        rows = np.where(mask, dataset.offsets[indices][:, None] + np.arange(length), 0)
        structure = _padded_atoms(dataset, rows, mask)
        if config.periodic != "none":
            parts = [images.of(int(i)) for i in indices]
            structure = structure._replace(
                cell=np.stack([cell for cell, _ in parts]).astype(np.float32),
                pbc=np.asarray(dataset.structures["pbc"][indices], bool),
            )
            if config.periodic == "images":
                edges = pad_edges([edges for _, edges in parts], images.capacity(length))
                structure = structure._replace(edges=edges)
        targets = {name: _padded_target(dataset, name, references, indices, rows, mask) for name in required.targets}
        if required.label_columns:
            targets["labels"] = stack_labels(dataset, required.label_columns, indices).astype(np.float32)
        fixed = dataset.atoms["fixed"][rows] & mask if "fixed" in dataset.atoms else np.zeros_like(mask)
        return StructureExample(structure, targets, fixed, np.asarray(indices, np.int32))

    return take


class _PeriodicImages(NamedTuple):
    """Periodic data of the structures of a data set, computed when needed."""

    of: Callable[[int], tuple[Float[np.ndarray, "3 3"], Edges]]  # reduced cell (Å) and edges of one structure
    capacity: Callable[[int], int]  # largest number of edges of a structure with at most this number of atoms


def _periodic_images(dataset: Dataset, config: AtomformerConfig) -> _PeriodicImages:
    counts = atom_counts(dataset)

    @functools.lru_cache(KEPT_PERIODIC)
    def of(index: int) -> tuple[np.ndarray, Edges]:
        rows = slice(dataset.offsets[index], dataset.offsets[index + 1])
        cell, pbc = np.asarray(dataset.structures["cell"][index], float), dataset.structures["pbc"][index]
        reduced = minkowski_cell(cell, pbc)
        if config.periodic != "images":
            return reduced, NO_EDGES
        return reduced, image_edges(np.asarray(dataset.atoms["coords"][rows], float), reduced, pbc, config.cutoff)

    @functools.cache
    def edge_counts() -> np.ndarray:
        return np.array([len(of(i)[1].first) for i in range(len(counts))], np.int32)

    @functools.cache
    def capacity(length: int) -> int:
        return int(edge_counts()[counts <= length].max())

    return _PeriodicImages(of, capacity)


def _padded_atoms(dataset: Dataset, rows: Int[np.ndarray, "b n"], mask: Bool[np.ndarray, "b n"]) -> Structure:
    tokens = np.where(mask, dataset.atoms["input_ids"][rows], PAD).astype(np.int32)
    positions = np.where(mask[..., None], dataset.atoms["coords"][rows], 0).astype(np.float32)
    types = dataset.atoms.get("token_type_ids")
    return Structure(tokens, positions, mask, None if types is None else types[rows].astype(np.int32))


def _padded_target(
    dataset: Dataset,
    name: str,
    references: Float[np.ndarray, " vocab"],
    indices: Int[np.ndarray, " b"],
    rows: Int[np.ndarray, "b n"],
    mask: Bool[np.ndarray, "b n"],
) -> Float[np.ndarray, "b ..."]:
    """Values of a target; NaN in rows of padding. Energies are less the references (eV) of their atoms."""
    if name in PER_ATOM_TARGETS:
        return np.where(mask[..., None], dataset.atoms[name][rows], np.nan).astype(np.float32)
    baseline = np.where(mask, references[dataset.atoms["input_ids"][rows]], 0).sum(axis=1)
    return (dataset.structures[name][indices] - baseline).astype(np.float32)  # subtracted in double precision


NO_EDGES = Edges(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 3), np.int32), np.zeros(0, bool))


def pad_edges(edges: Sequence[Edges], capacity: int) -> Edges:
    """Edges of several structures side by side, each padded to `capacity`."""

    def padded(column: int) -> np.ndarray:
        parts = [np.asarray(structure[column]) for structure in edges]
        return np.stack([np.concatenate([p, np.zeros((capacity - len(p), *p.shape[1:]), p.dtype)]) for p in parts])

    return Edges(*(padded(column) for column in range(len(Edges._fields))))


def stack_labels(
    dataset: Dataset, columns: Sequence[str], indices: Int[np.ndarray, " k"] | slice = slice(None)
) -> Float[np.ndarray, "k labels"]:
    """Property columns, scalars or vectors, side by side, of all structures or of those in `indices`."""
    parts = [np.asarray(dataset.structures[name][indices]) for name in columns]
    return np.concatenate([part[:, None] if part.ndim == 1 else part for part in parts], axis=1)


def check_dataset(dataset: Dataset, config: AtomformerConfig, required: Requirements) -> None:
    """Checks that the network and its losses can use the data.

    Raises:
        ValueError: a column is missing, labels are wrong, or elements have no token or reference energy; named in the
            message.
    """
    for name in (*required.targets, *required.label_columns):
        if name not in dataset.atoms and name not in dataset.structures:
            known = ", ".join(sorted(set(dataset.structures) | set(dataset.atoms)))
            raise ValueError(f"the data have no column {name!r}; found {known}")
    if required.label_columns:
        check_labels(stack_labels(dataset, required.label_columns), config, ", ".join(required.label_columns))
    present = elements(dataset)
    if present[-1] >= config.vocab_size:
        raise ValueError(f"the data have the token {present[-1]}; the network has {config.vocab_size} tokens")
    if config.energy.references and set(required.targets) & set(ENERGY_HEADS):
        known = {number for number, _ in config.energy.references}
        if missing := [str(element_table().symbol[number]) for number in present if int(number) not in known]:
            raise ValueError(f"the reference energies lack {', '.join(missing)}; give one for every element")


def check_labels(labels: Float[np.ndarray, "m labels"], config: AtomformerConfig, columns: str) -> None:
    """Checks labels against the outputs of the network.

    Raises:
        ValueError: the number of labels differs from the number of outputs, or a label is not one of the classes.
    """
    expected = 1 if config.problem == "multiclass" else config.num_labels
    if labels.shape[1] != expected:
        raise ValueError(
            f"the label columns {columns} hold {labels.shape[1]} numbers per structure; "
            f"a network with num_labels = {config.num_labels} for a {config.problem} problem needs {expected}"
        )
    if config.problem == "regression":
        return
    # Indexing on devices clamps: a class out of range would be learned as another one.
    classes, known = 2 if config.problem == "binary" else config.num_labels, labels[np.isfinite(labels)]
    if len(wrong := known[(known < 0) | (known >= classes) | (known != np.round(known))]):
        raise ValueError(f"the label columns {columns} must hold classes 0 to {classes - 1}; found {wrong[0]:g}")
