"""Deterministic batches of examples of similar length; the examples of a step depend only on its number."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from matterform.training.step import Batch

# `take(indices, length)` gathers examples of a data set, padded or cut to a bucket's length.
Take = Callable[[Int[np.ndarray, " b"], int], Any]

# Factor between the lengths of neighbouring buckets: at most a fifth of a row is padding, a third of the pairs.
BUCKET_GROWTH = 1.25


class PlannedBatch(NamedTuple):
    """The examples of one batch, their weights, and the length that they are padded to."""

    indices: Int[np.ndarray, " b"]
    weight: Float[np.ndarray, " b"]  # 0 for a row that only fills the batch, else 1
    length: int


class Phase(NamedTuple):
    """Successive epochs with the same number of batches."""

    first_epoch: int
    batches_per_epoch: int


class BatchPlan(NamedTuple):
    """The batches of every epoch; all processes use the same plan."""

    batch_size: int
    batches_per_epoch: int  # number of batches of the epochs before the first of `later`
    epoch: Callable[[int], list[PlannedBatch]]
    later: tuple[Phase, ...] = ()  # phases in the order of their first epochs


class Place(NamedTuple):
    """The position of a step in the run."""

    epoch: int
    batch: int  # of that epoch
    batches: int  # in that epoch


def make_batch_plan(lengths: Int[np.ndarray, " n"], batch_size: int, buckets: Sequence[int], seed: int) -> BatchPlan:
    """Plans epochs in which every example occurs exactly once, in an order drawn from (seed, epoch).

    An example belongs to the smallest bucket (padded length) that is not below its length. Examples that do not fill a
    batch of a bucket move to the next one, so that only the last batch of the largest bucket has unused rows.
    `batch_size` is the number of rows of all processes and devices together.

    Raises:
        ValueError: there are no examples, `batch_size` is below 1, or the buckets are not increasing or too short.
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


def bucket_lengths(lengths: Int[np.ndarray, " n"]) -> tuple[int, ...]:
    """Increasing padded lengths: each is the length of an example, and at least 25 % larger than the one before."""
    present = np.unique(lengths)
    buckets, top = [], float(present[-1])
    while top >= present[0]:
        buckets.append(int(present[present <= top][-1]))
        top = buckets[-1] / BUCKET_GROWTH
    return tuple(reversed(buckets))


def switch_plans(plans: Mapping[int, BatchPlan]) -> BatchPlan:
    """Joins several plans; each applies from the epoch that is its key, and the first key is 0.

    For data that change during training, e.g. copies that are added later.

    Raises:
        ValueError: no plan begins with epoch 0, or the plans differ in batch size.
    """
    starts = sorted(plans)
    if not starts or starts[0] != 0:
        raise ValueError(f"plans must begin with one for epoch 0; got those from the epochs {starts}")
    if len({plan.batch_size for plan in plans.values()}) > 1:
        raise ValueError(f"plans must share a batch_size; got {[plans[start].batch_size for start in starts]}")

    def epoch(number: int) -> list[PlannedBatch]:
        return plans[max(start for start in starts if start <= number)].epoch(number)

    later = tuple(Phase(start, plans[start].batches_per_epoch) for start in starts[1:])
    return BatchPlan(plans[0].batch_size, plans[0].batches_per_epoch, epoch, later)


def with_rows(plan: BatchPlan, rows: Int[np.ndarray, " n"]) -> BatchPlan:
    """The plan with its indices replaced by the entries of `rows`, the rows of a larger data set."""

    def epoch(number: int) -> list[PlannedBatch]:
        return [planned._replace(indices=rows[planned.indices]) for planned in plan.epoch(number)]

    return plan._replace(epoch=epoch)


def place_of(plan: BatchPlan, step: int) -> Place:
    """The position of step number `step`, counted over all epochs from 0."""
    phase = Phase(0, plan.batches_per_epoch)
    for following in plan.later:
        steps = (following.first_epoch - phase.first_epoch) * phase.batches_per_epoch
        if step < steps:
            break
        step, phase = step - steps, following
    epochs, batch = divmod(step, phase.batches_per_epoch)
    return Place(phase.first_epoch + epochs, batch, phase.batches_per_epoch)


def steps_before(plan: BatchPlan, epoch: int) -> int:
    """Number of steps in epochs 0 to `epoch` - 1."""
    phases = [Phase(0, plan.batches_per_epoch), *plan.later]
    ends = [*(phase.first_epoch for phase in plan.later), epoch]
    return sum(
        max(0, min(end, epoch) - phase.first_epoch) * phase.batches_per_epoch
        for phase, end in zip(phases, ends, strict=True)
    )


def local_rows(planned: PlannedBatch, process: int, num_processes: int) -> PlannedBatch:
    """The contiguous rows of a batch that the process number `process` loads.

    Raises:
        ValueError: the batch cannot be divided among the processes.
    """
    size, rest = divmod(len(planned.indices), num_processes)
    if rest:
        raise ValueError(
            f"batch_size must be a multiple of the number of processes; got {len(planned.indices)} and {num_processes}"
        )
    rows = slice(process * size, (process + 1) * size)
    return planned._replace(indices=planned.indices[rows], weight=planned.weight[rows])


def planned_batches(plan: BatchPlan, first: int, last: int | None) -> Iterator[PlannedBatch]:
    """Yields the batches of steps `first` to `last` - 1 (None: endlessly), counted over all epochs from 0."""
    number, batches = -1, []
    for step in itertools.count(first) if last is None else range(first, last):
        place = place_of(plan, step)
        if place.epoch != number:
            number, batches = place.epoch, plan.epoch(place.epoch)
        yield batches[place.batch]


def load_batches(
    plan: BatchPlan,
    take: Take,
    first: int,
    last: int | None,
    *,
    process: int = 0,
    num_processes: int = 1,
    ahead: int = 2,
) -> Generator[Batch, None, None]:
    """Loads this process's rows of the steps `first` to `last` - 1, up to `ahead` batches early, in another thread.

    Raises:
        ValueError: `batch_size` is not a multiple of the number of processes.
    """

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
