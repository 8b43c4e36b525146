"""Exact periodic neighbour search inside jit."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

AnyArray = np.ndarray | Array


class Neighbors(NamedTuple):
    """Neighbours of each of n atoms in m slots; a pair i-j stands in the rows of both, an own image in its own row.

    Slots with `mask` False are unused: their index is 0 and their shift 0.
    """

    index: Int[AnyArray, "n m"]  # the neighbour j of atom i
    shift: Float[AnyArray, "n m 3"]  # whole cells: the pair is r_j + shift @ cell - r_i
    mask: Bool[AnyArray, "n m"]
    reverse: Int[AnyArray, "n m"]  # position in the flattened (n m) slots of the same pair seen from j
    overflow: Bool[AnyArray, ""]  # some atom has more than m neighbours; the list is then not complete
