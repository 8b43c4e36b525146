"""Batches of crystals of similar length, truncated to the length of the longest crystal in the batch."""

import numpy as np

from crystalformer.data.crystals import Crystals, num_slots
from matterform.training.batches import BatchPlan, Take, make_batch_plan

# Batches are cut to the shortest of these lengths that holds their longest crystal; each length is compiled once.
BUCKETS = (3, 5, 7, 10, 14)


def bucket_lengths(n: int) -> tuple[int, ...]:
    """Padded lengths (slots per crystal) of the batches of a data set with `n` slots per crystal."""
    return (*(length for length in BUCKETS if length < n), n)


def plan_batches(crystals: Crystals, batch_size: int, seed: int) -> BatchPlan:
    """Plans batches of `batch_size` crystals of similar length, shuffled with `seed`."""
    return make_batch_plan(num_slots(crystals), batch_size, bucket_lengths(crystals.W.shape[1]), seed)


def make_take(crystals: Crystals) -> Take:
    """A function that gathers crystals truncated to a given length, as int32 and float32 arrays."""

    def take(rows: np.ndarray, length: int) -> Crystals:
        G, L, XYZ, A, W = crystals
        return Crystals(
            G=np.asarray(G[rows], np.int32),
            L=np.asarray(L[rows], np.float32),
            XYZ=np.asarray(XYZ[rows, :length], np.float32),
            A=np.asarray(A[rows, :length], np.int32),
            W=np.asarray(W[rows, :length], np.int32),
        )

    return take
