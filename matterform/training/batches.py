"""Deterministic batches with length buckets: which examples form which step is a function of the step alone."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from matterform.training.step import Batch

# `take(indices, length)` gathers examples of a data set, padded or cut to a bucket's length.
Take = Callable[[Int[np.ndarray, " b"], int], Any]


class PlannedBatch(NamedTuple):
    """The rows of one batch: which examples, how much each counts, and the length that holds them all."""

    indices: Int[np.ndarray, " b"]
    weight: Float[np.ndarray, " b"]  # 0 where a row repeats an example only to fill the batch, else 1
    length: int


class BatchPlan(NamedTuple):
    """Every batch of every epoch, by index; all processes share one plan."""

    batch_size: int
    batches_per_epoch: int
    epoch: Callable[[int], list[PlannedBatch]]


def make_batch_plan(lengths: Int[np.ndarray, " n"], batch_size: int, buckets: Sequence[int], seed: int) -> BatchPlan:
    """Plans epochs in which every example occurs exactly once, in an order drawn from (seed, epoch).

    An example goes to the smallest of the increasing `buckets` that holds its length. What does not fill a batch
    of a bucket moves up to the next one, so that only the last batch of the top bucket has rows to spare.
    `batch_size` counts the rows of all processes and devices together.
    """
    lengths = np.asarray(lengths)
    _check_plan(lengths, batch_size, buckets)
    bucket_of = np.searchsorted(np.asarray(buckets), lengths)
    occupied = np.unique(bucket_of)

    def epoch(number: int) -> list[PlannedBatch]:
        rng = np.random.default_rng([seed, number])
        order = rng.permutation(len(lengths))
        batches, left = [], order[:0]
        for bucket in occupied:
            pool = np.concatenate([left, order[bucket_of[order] == bucket]])
            full = len(pool) - len(pool) % batch_size
            rows = pool[:full].reshape(-1, batch_size)
            batches += [PlannedBatch(row, np.ones(batch_size, np.float32), int(buckets[bucket])) for row in rows]
            left = pool[full:]
        if len(left):
            filled = np.resize(left, batch_size)
            weight = (np.arange(batch_size) < len(left)).astype(np.float32)
            batches.append(PlannedBatch(filled, weight, int(buckets[occupied[-1]])))
        return [batches[i] for i in rng.permutation(len(batches))]

    return BatchPlan(batch_size, -(-len(lengths) // batch_size), epoch)


def local_rows(planned: PlannedBatch, process: int, num_processes: int) -> PlannedBatch:
    """The contiguous part of a batch that one of `num_processes` processes feeds."""
    size, rest = divmod(len(planned.indices), num_processes)
    if rest:
        raise ValueError(
            f"batch_size must be a multiple of the number of processes; got {len(planned.indices)} and {num_processes}"
        )
    rows = slice(process * size, (process + 1) * size)
    return planned._replace(indices=planned.indices[rows], weight=planned.weight[rows])


def planned_batches(plan: BatchPlan, first: int, last: int) -> Iterator[PlannedBatch]:
    """The batches of the steps `first` to `last` - 1, counted over all epochs from 0."""
    number, batches = -1, []
    for step in range(first, last):
        epoch, position = divmod(step, plan.batches_per_epoch)
        if epoch != number:
            number, batches = epoch, plan.epoch(epoch)
        yield batches[position]


def load_batches(
    plan: BatchPlan, take: Take, first: int, last: int, *, process: int = 0, num_processes: int = 1, ahead: int = 2
) -> Generator[Batch, None, None]:
    """Loads this process's rows of the steps `first` to `last` - 1, up to `ahead` batches early, in another thread."""

    def load(planned: PlannedBatch) -> Batch:
        rows = local_rows(planned, process, num_processes)
        return Batch(take(rows.indices, rows.length), rows.weight)

    pending: collections.deque[concurrent.futures.Future[Batch]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        for planned in planned_batches(plan, first, last):
            pending.append(thread.submit(load, planned))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _check_plan(lengths: np.ndarray, batch_size: int, buckets: Sequence[int]) -> None:
    if len(lengths) == 0:
        raise ValueError("lengths must name at least one example; the data set is empty")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if len(buckets) == 0 or any(low >= high for low, high in itertools.pairwise(buckets)):
        raise ValueError(f"buckets must be increasing lengths; got {tuple(buckets)}")
    longest = int(np.argmax(lengths))
    if lengths[longest] > buckets[-1]:
        raise ValueError(
            f"buckets must hold every example; the largest is {buckets[-1]} but example {longest} has length "
            f"{lengths[longest]}; add a larger bucket or leave the example out"
        )
