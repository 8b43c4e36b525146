"""Random split of a data set into training and held-out rows."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

VALIDATION_KEY = 1  # folded into the seed, so that the split is independent of the batches


class SplitRows(NamedTuple):
    """Rows to train on and held-out rows, both in random order."""

    train: Int64[np.ndarray, " n"]
    held_out: Int64[np.ndarray, " m"]


def split_rows(count: int, fraction: float, seed: int, what: str) -> SplitRows:
    """Holds out a share `fraction` of `count` rows, drawn from `seed`.

    Raises:
        ValueError: no row is left to train on; the message calls the rows `what`.
    """
    held_out = round(fraction * count)
    if held_out == count:
        raise ValueError(f"validation_fraction {fraction} leaves none of {count} {what} to train on")
    order = np.random.default_rng([seed, VALIDATION_KEY]).permutation(count)
    return SplitRows(order[held_out:], order[:held_out])
