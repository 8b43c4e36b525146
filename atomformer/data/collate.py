"""Flattened batches for message-passing models: all atoms in one list, edges within a radius, Laplacian encodings.

They correspond to the published library's collator with its option to flatten. Our own transformer reads padded batches
(`atomformer.data.examples`); these functions serve other models on the same data. They run on the host.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np
from jaxtyping import Bool, Float, Int

from atomformer.data.rows import Row, row_from_atoms
from matterform.io.formats import to_atoms

if TYPE_CHECKING:
    import ase
    import pymatgen.core

# By symmetry, distances and components of eigenvectors are equal except for rounding, which must not decide the order.
DISTANCE_STEP_ANG = 1e-6
SAME_COMPONENT = 1e-6


class RadiusEdges(NamedTuple):
    """Directed edges, by receiver, nearest first: from positions[senders] + shifts @ cell to positions[receivers]."""

    senders: Int[np.ndarray, " e"]
    receivers: Int[np.ndarray, " e"]
    shifts: Int[np.ndarray, "e 3"]  # in lattice vectors; zero without a cell
    distances: Float[np.ndarray, " e"]  # Å


class FlatBatch(NamedTuple):
    """The N atoms of several structures in one list; None for fields that `flatten` was not requested to compute."""

    tokens: Int[np.ndarray, " N"]
    positions: Float[np.ndarray, "N 3"]  # Å
    batch: Int[np.ndarray, " N"]  # index of the structure of each atom
    edges: RadiusEdges | None = None  # indices into the list
    encodings: Float[np.ndarray, "N k"] | None = None


# A row (see `atomformer.data.rows`), or tokens (n,) with positions (n, 3) in Å, besides the usual objects.
FlatInput = Union["ase.Atoms", "pymatgen.core.Structure", Row, tuple[np.ndarray, np.ndarray]]


def flatten(
    structures: Sequence[FlatInput],
    *,
    radius: float | None = None,
    max_neighbors: int | None = None,
    num_encodings: int | None = None,
) -> FlatBatch:
    """Joins structures into one batch without padding.

    Args:
        structures: ASE Atoms, pymatgen Structures, rows, or pairs of tokens and positions (Å).
        radius: adds the edges of `radius_edges` (Å), periodic if the structure has a cell.
        max_neighbors: largest number of edges per receiver; None keeps all.
        num_encodings: adds this number of `laplacian_encodings` of the graph of the edges; needs `radius`.

    Raises:
        ValueError: no structures, `num_encodings` without `radius`, or tokens and positions of different length.
    """
    if not structures:
        raise ValueError("no structures to flatten: expected at least one")
    if num_encodings is not None and radius is None:
        raise ValueError("num_encodings needs edges: give a radius (Å) too")
    rows = [_to_row(structure) for structure in structures]
    for index, row in enumerate(rows):
        if np.shape(row["coords"]) != (len(row["input_ids"]), 3):
            raise ValueError(
                f"structure {index} has {len(row['input_ids'])} tokens and positions of shape "
                f"{np.shape(row['coords'])}; expected one position (x, y, z) per token"
            )
    sizes = np.array([len(row["input_ids"]) for row in rows])
    flat = FlatBatch(
        tokens=np.concatenate([row["input_ids"] for row in rows]).astype(np.int32),
        positions=np.concatenate([row["coords"] for row in rows]).astype(np.float32),
        batch=np.repeat(np.arange(len(rows), dtype=np.int32), sizes),
    )
    if radius is None:
        return flat
    graphs = [radius_edges(row["coords"], radius, max_neighbors, row.get("cell"), row.get("pbc")) for row in rows]
    flat = flat._replace(edges=_join(graphs, np.cumsum(sizes) - sizes))
    if num_encodings is None:
        return flat
    encodings = [
        laplacian_encodings(int(size), np.stack([graph.senders, graph.receivers]), num_encodings)
        for size, graph in zip(sizes, graphs, strict=True)
    ]
    return flat._replace(encodings=np.concatenate(encodings))


def _to_row(structure: FlatInput) -> Mapping[str, Any]:
    if isinstance(structure, tuple):
        return {"input_ids": structure[0], "coords": structure[1]}
    return structure if isinstance(structure, Mapping) else row_from_atoms(to_atoms(structure))


def _join(graphs: Sequence[RadiusEdges], offsets: Int[np.ndarray, " b"]) -> RadiusEdges:
    moved = [
        graph._replace(senders=graph.senders + np.int32(offset), receivers=graph.receivers + np.int32(offset))
        for graph, offset in zip(graphs, offsets, strict=True)
    ]
    return RadiusEdges(*(np.concatenate(parts) for parts in zip(*moved, strict=True)))


def radius_edges(
    positions: Float[np.ndarray, "n 3"],
    radius: float,
    max_neighbors: int | None = None,
    cell: Float[np.ndarray, "3 3"] | None = None,
    pbc: Bool[np.ndarray, "3"] | None = None,
) -> RadiusEdges:
    """Edges to every atom from the atoms closer than `radius` (Å), only from the `max_neighbors` nearest if given.

    With a cell every image counts, including images of the atom itself; without `pbc`, a cell is periodic in all three
    directions. Distances are compared after rounding to 1e-6 Å; among equal ones the lower sender comes first, then the
    lower shift. With `max_neighbors` an edge may lack its reverse.

    Raises:
        ValueError: `radius` or `max_neighbors` is not positive, `pbc` comes without a cell, or periodic lattice vectors
            are linearly dependent.
    """
    if not radius > 0 or (max_neighbors is not None and max_neighbors < 1):
        raise ValueError(f"expected radius > 0 and max_neighbors >= 1, found {radius} and {max_neighbors}")
    positions = np.asarray(positions, np.float64)
    senders, receivers, shifts = _pairs_within(positions, radius, cell, pbc)
    translations = 0 if cell is None else shifts @ np.asarray(cell, np.float64)
    distances = np.linalg.norm(positions[senders] + translations - positions[receivers], axis=1)
    ties = np.round(distances / DISTANCE_STEP_ANG)
    order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], senders, ties, receivers))
    if max_neighbors is not None:
        first = np.searchsorted(receivers[order], receivers[order])  # first edge of each receiver
        order = order[np.arange(len(order)) - first < max_neighbors]
    return RadiusEdges(
        senders[order].astype(np.int32),
        receivers[order].astype(np.int32),
        shifts[order].astype(np.int32),
        distances[order].astype(np.float32),
    )


def _pairs_within(
    positions: Float[np.ndarray, "n 3"], radius: float, cell: np.ndarray | None, pbc: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Senders, receivers and shifts of all pairs, in any order."""
    if cell is None and np.any(pbc if pbc is not None else False):
        raise ValueError(f"pbc is {np.asarray(pbc).tolist()} but there is no cell: give one, or no pbc")
    periodic = np.ones(3, bool) if pbc is None else np.asarray(pbc, bool)
    if cell is None or not periodic.any():
        from scipy.spatial import KDTree

        pairs = KDTree(positions).query_pairs(radius, output_type="ndarray")
        apart = np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=1)
        pairs = pairs[apart < radius]  # the tree includes pairs at exactly the radius
        both = np.concatenate([pairs, pairs[:, ::-1]])
        return both[:, 0], both[:, 1], np.zeros((len(both), 3), np.int64)
    from ase.neighborlist import primitive_neighbor_list

    cell = np.asarray(cell, np.float64)
    if np.linalg.matrix_rank(cell[periodic]) < periodic.sum():
        raise ValueError(f"the periodic vectors of the cell are not independent: {cell[periodic].tolist()}")
    receivers, senders, shifts = primitive_neighbor_list("ijS", periodic, cell, positions, radius)
    return senders, receivers, shifts


def laplacian_encodings(num_atoms: int, edges: Int[np.ndarray, "2 e"], k: int) -> Float[np.ndarray, "n k"]:
    """The k eigenvectors of the normalised Laplacian with the smallest eigenvalues, as columns, zeros beyond n.

    The Laplacian is I - D^(-1/2) A D^(-1/2) of the undirected simple graph (Dwivedi et al. 2020, arXiv:2003.00982):
    directions, multiple images and self-loops are ignored. An isolated atom has eigenvalue 1. The first of the largest
    components of each vector is positive; the basis of a degenerate eigenvalue is LAPACK's.

    Args:
        edges: two rows of indices, senders and receivers.
    """
    adjacency = np.zeros((num_atoms, num_atoms))
    adjacency[edges[0], edges[1]] = adjacency[edges[1], edges[0]] = 1
    np.fill_diagonal(adjacency, 0)
    degrees = adjacency.sum(axis=1)
    scale = np.where(degrees > 0, 1 / np.sqrt(np.maximum(degrees, 1)), 0)
    laplacian = np.eye(num_atoms) - scale[:, None] * adjacency * scale[None]
    _, vectors = np.linalg.eigh(laplacian)
    sizes = np.abs(vectors)
    largest = np.argmax(sizes >= sizes.max(axis=0, keepdims=True) - SAME_COMPONENT, axis=0)
    vectors *= np.sign(vectors[largest, np.arange(num_atoms)])[None]
    encodings = np.zeros((num_atoms, k), np.float32)
    encodings[:, :num_atoms] = vectors[:, :k]
    return encodings
