"""The input of the network: one structure, padded."""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int

AnyArray = Any  # NumPy on the host, JAX on devices


class Edges(NamedTuple):
    """Ordered pairs of atoms and lattice translations within a cutoff, padded to e; see `periodic.image_edges`."""

    first: Int[AnyArray, " e"]
    second: Int[AnyArray, " e"]  # the displacement is positions[second] + shift @ cell - positions[first]
    shift: Int[AnyArray, "e 3"]
    mask: Bool[AnyArray, " e"]


class Structure(NamedTuple):
    """Atoms of one structure, padded to n; rows with `mask` False are padding.

    Without `cell`, distances are not periodic. A molecule in a batch with crystals has a `cell` and `pbc` False.
    """

    tokens: Int[AnyArray, " n"]  # atomic numbers, or special tokens
    positions: Float[AnyArray, "n 3"]  # Å
    mask: Bool[AnyArray, " n"]
    token_types: Int[AnyArray, " n"] | None = None  # 0-2
    cell: Float[AnyArray, "3 3"] | None = None  # rows are lattice vectors, Å
    pbc: Bool[AnyArray, "3"] | None = None
    edges: Edges | None = None  # only with explicit images
