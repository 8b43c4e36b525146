"""Evaluation of any number of structures in padded batches, sorted by size within bounded memory."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from atomformer.config import AtomformerConfig
from atomformer.data.inputs import AnyStructure, input_row, pad_structures, prepare_structure
from atomformer.data.rows import Row
from atomformer.data.structure import Structure
from matterform.training.batches import BUCKET_GROWTH, bucket_lengths

# Pairs of atoms in a batch; the size `base` needs 0.1 GB for them, and 1 GB with conservative forces.
MAX_PAIRS = 100_000
# Pairs that need as much memory as one atom; it limits the batches of small structures.
PAIRS_PER_ATOM = 100
# Atoms of the structures that are sorted by size together; all their predictions are in memory.
WINDOW_ATOMS = 30_000


class _Group(NamedTuple):
    """Properties shared by all structures of a batch."""

    length: int
    has_types: bool


class _Shape(NamedTuple):
    """Size of the batches of one group."""

    size: int = 0  # structures
    capacity: int = 0  # edges per structure


def evaluate_batches(
    function: Callable[[Structure], Any],
    config: AtomformerConfig,
    structures: Iterable[AnyStructure],
    max_pairs: int = MAX_PAIRS,
) -> Iterator[tuple[Row, Structure, Any]]:
    """The row, the input and the result of `function` for each structure, in order, computed in padded batches.

    `function` is compiled once per bucket of lengths, unless later structures are much larger than earlier ones.

    Args:
        max_pairs: largest number of pairs of atoms (or of edges, with explicit images) in a batch; a batch has at most
            a hundredth as many atoms, or a single structure.

    Raises:
        ValueError: a structure cannot be used; the message gives its index and the reason.
    """
    buckets: tuple[int, ...] = ()
    shapes: dict[_Group, _Shape] = {}
    for window in _windows(structures, config):
        inputs = [structure for _, structure in window]
        buckets = _extended(buckets, np.array([len(structure.tokens) for structure in inputs]))
        results: dict[int, Any] = {}
        for group, indices in _grouped(inputs, buckets).items():
            members = [inputs[index] for index in indices]
            shape = shapes[group] = _grown(shapes.get(group, _Shape()), members, group.length, max_pairs)
            results |= zip(indices, _results(function, members, group.length, shape), strict=True)
        yield from ((*pair, results.pop(index)) for index, pair in enumerate(window))


def _grouped(inputs: Sequence[Structure], buckets: Sequence[int]) -> dict[_Group, list[int]]:
    """Indices of the structures that can be in one batch."""
    groups: dict[_Group, list[int]] = collections.defaultdict(list)
    for index, structure in enumerate(inputs):
        length = next(bucket for bucket in buckets if bucket >= len(structure.tokens))
        groups[_Group(length, structure.token_types is not None)].append(index)
    return groups


def _results(
    function: Callable[[Structure], Any], members: Sequence[Structure], length: int, shape: _Shape
) -> Iterator[Any]:
    """The result for each structure of a group; the last batch is filled with copies of its structures."""
    for start in range(0, len(members), shape.size):
        chosen = members[start : start + shape.size]
        filled = list(itertools.islice(itertools.cycle(chosen), shape.size))
        found = jax.device_get(function(pad_structures(filled, length, shape.capacity)))
        for place in range(len(chosen)):
            yield jax.tree.map(lambda x, place=place: x[place], found)


def _windows(structures: Iterable[Any], config: AtomformerConfig) -> Iterator[list[tuple[Row, Structure]]]:
    """Checked rows with the inputs of the network, in parts of about WINDOW_ATOMS atoms."""
    window, atoms = [], 0
    for index, structure in enumerate(structures):
        try:
            row = input_row(structure, config)
        except ValueError as error:
            raise ValueError(f"structure {index}: {error}") from error
        window.append((row, prepare_structure(row, config)))
        atoms += len(row["input_ids"])
        if atoms >= WINDOW_ATOMS:
            yield window
            window, atoms = [], 0
    if window:
        yield window


def _extended(buckets: tuple[int, ...], counts: Int[np.ndarray, " m"]) -> tuple[int, ...]:
    """The buckets, with new ones for structures that would need too much padding in them."""
    new = [n for n in np.unique(counts) if not any(n <= bucket <= n * BUCKET_GROWTH for bucket in buckets)]
    return tuple(sorted({*buckets, *bucket_lengths(np.array(new))})) if new else buckets


def _grown(shape: _Shape, members: Sequence[Structure], length: int, max_pairs: int) -> _Shape:
    """The shape for these structures of a group: the earlier one, unless it is far too small."""
    capacity = max((len(member.edges.first) for member in members if member.edges is not None), default=0)
    if shape.capacity:
        capacity = grown_capacity(shape.capacity, capacity)
    size = min(len(members), max(1, max_pairs // max(length * max(length, PAIRS_PER_ATOM), capacity)))
    return _Shape(size if size > 2 * shape.size or capacity > shape.capacity else shape.size, capacity)


def grown_capacity(capacity: int, needed: int) -> int:
    """A capacity for `needed` edges; it grows in steps, because the network is compiled for each capacity."""
    return capacity if needed <= capacity else max(needed, int(capacity * BUCKET_GROWTH) + 1)
