"""Batch plans: complete, deterministic, random access, within their buckets."""

import itertools
import threading

import numpy as np
import pytest

from matterform.training.batches import (
    Place,
    bucket_lengths,
    load_batches,
    local_rows,
    make_batch_plan,
    place_of,
    planned_batches,
    steps_before,
    switch_plans,
    with_rows,
)

LENGTHS = np.random.default_rng(0).integers(1, 33, 203)
BUCKETS = (8, 12, 20, 32)


def make_plan(**options):
    return make_batch_plan(LENGTHS, **{"batch_size": 16, "buckets": BUCKETS, "seed": 5, **options})


def same(left, right) -> bool:
    return left.length == right.length and all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in ("indices", "weight")
    )


@pytest.mark.parametrize("batch_size", [1, 16, 203, 500])
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_example_counts_once_an_epoch(batch_size, epoch):
    plan = make_plan(batch_size=batch_size)
    batches = plan.epoch(epoch)
    counts = sum(np.bincount(b.indices, weights=b.weight, minlength=len(LENGTHS)) for b in batches)
    np.testing.assert_array_equal(counts, 1)
    assert len(batches) == plan.batches_per_epoch == -(-203 // batch_size)
    assert all(len(b.indices) == batch_size for b in batches)


def test_only_one_batch_has_rows_to_spare():
    spare = [int((b.weight == 0).sum()) for b in make_plan().epoch(0)]
    assert sorted(spare) == [0] * 12 + [13 * 16 - 203]


def test_batches_hold_their_examples_and_use_short_buckets():
    batches = make_plan().epoch(0)
    assert all(LENGTHS[b.indices].max() <= b.length for b in batches)
    # At most batch_size - 1 examples move up from each bucket, so nearly all full batches are of their own length.
    for low, bucket in zip((0, *BUCKETS), BUCKETS[:-1], strict=False):
        own = int(((low < LENGTHS) & (bucket >= LENGTHS)).sum())
        assert sum(b.length == bucket for b in batches) >= own // 16


def test_order_is_drawn_from_seed_and_epoch():
    plan = make_plan()
    assert all(map(same, plan.epoch(2), make_plan().epoch(2)))
    assert not all(map(same, plan.epoch(2), plan.epoch(3)))
    assert not all(map(same, plan.epoch(2), make_plan(seed=6).epoch(2)))
    lengths = [b.length for b in plan.epoch(0)]
    assert lengths != sorted(lengths)


def test_iteration_starts_anywhere():
    plan = make_plan()
    whole = list(planned_batches(plan, 0, 3 * plan.batches_per_epoch))
    assert len(whole) == 39
    assert all(map(same, whole[17:30], planned_batches(plan, 17, 30)))
    assert all(map(same, whole[13:26], plan.epoch(1)))


def test_processes_share_a_batch_in_order():
    batch = make_plan().epoch(0)[0]
    parts = [local_rows(batch, process, 4) for process in range(4)]
    np.testing.assert_array_equal(np.concatenate([part.indices for part in parts]), batch.indices)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the number of processes; got 16 and 3"):
        local_rows(batch, 0, 3)


def test_loading_runs_ahead_in_another_thread():
    plan, threads = make_plan(), []

    def take(indices, length):
        threads.append(threading.current_thread())
        return np.full(len(indices), length)

    batches = load_batches(plan, take, 3, 20)
    expected = list(planned_batches(plan, 3, 20))
    for number, (batch, planned) in enumerate(zip(batches, expected, strict=True)):
        np.testing.assert_array_equal(batch.examples, planned.length)
        np.testing.assert_array_equal(batch.weight, planned.weight)
        assert number < len(threads) <= number + 3
    assert threading.current_thread() not in threads


def test_an_error_while_loading_reaches_the_loop():
    def take(indices, length):
        raise KeyError("no such example")

    with pytest.raises(KeyError, match="no such example"):
        next(load_batches(make_plan(), take, 0, 5))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("batch_size must be at least 1; got 0", {"batch_size": 0}),
        ("buckets must be increasing", {"buckets": (8, 8, 32)}),
        ("buckets must be increasing", {"buckets": ()}),
        (r"the largest is 20 but example \d+ has length 32", {"buckets": (8, 20)}),
    ],
)
def test_wrong_plans_are_refused(message, options):
    with pytest.raises(ValueError, match=message):
        make_plan(**options)


def test_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="data set is empty"):
        make_batch_plan(np.zeros(0, int), 4, (8,), 0)


@pytest.fixture
def growing():
    """Plans of 3 batches in epochs 0 and 1, of 5 in epoch 2, of 7 from epoch 3 on."""
    plans = {0: 3, 2: 5, 3: 7}
    return switch_plans({first: make_batch_plan(np.ones(4 * count, int), 4, (1,), 5) for first, count in plans.items()})


def test_epochs_may_differ_in_length(growing):
    # Epochs begin after 0, 3, 6, 11, 18, 25 batches.
    assert [steps_before(growing, epoch) for epoch in range(6)] == [0, 3, 6, 11, 18, 25]
    assert [place_of(growing, step) for step in (0, 2, 3, 5, 6, 10, 11, 17, 18)] == [
        Place(0, 0, 3),
        Place(0, 2, 3),
        Place(1, 0, 3),
        Place(1, 2, 3),
        Place(2, 0, 5),
        Place(2, 4, 5),
        Place(3, 0, 7),
        Place(3, 6, 7),
        Place(4, 0, 7),
    ]


def test_iteration_crosses_epochs_of_different_length(growing):
    whole = list(planned_batches(growing, 0, 25))
    expected = [batch for epoch in range(5) for batch in growing.epoch(epoch)]
    assert all(map(same, whole, expected))
    assert all(map(same, whole[9:20], planned_batches(growing, 9, 20)))
    endless = planned_batches(growing, 20, None)
    assert all(same(next(endless), batch) for batch in whole[20:])


def test_every_epoch_of_a_switched_plan_is_complete(growing):
    for epoch, count in enumerate((12, 12, 20, 28)):
        rows = np.concatenate([batch.indices for batch in growing.epoch(epoch)])
        np.testing.assert_array_equal(np.sort(rows), np.arange(count))


def test_plans_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match=r"plans must begin with one for epoch 0; got those from the epochs \[1\]"):
        switch_plans({1: make_plan()})
    with pytest.raises(ValueError, match=r"plans must share a batch_size; got \[16, 8\]"):
        switch_plans({0: make_plan(), 4: make_plan(batch_size=8)})


def test_a_plan_of_chosen_rows_holds_these():
    rows = np.array([3, 8, 9, 20, 21])
    plan = with_rows(make_batch_plan(np.ones(5, int), 2, (1,), 0), rows)
    seen = np.concatenate([batch.indices[batch.weight > 0] for batch in plan.epoch(1)])
    np.testing.assert_array_equal(np.sort(seen), rows)


@pytest.mark.parametrize("counts", [[5], [1, 2, 3, 4], [3, 3, 200], list(range(1, 300)), [7, 8, 9, 60, 61]])
def test_buckets_hold_every_length_with_little_padding(counts):
    buckets = bucket_lengths(np.array(counts))
    assert list(buckets) == sorted(set(buckets))
    assert set(buckets) <= set(counts)
    assert buckets[-1] == max(counts)
    held = np.array([min(bucket for bucket in buckets if bucket >= count) for count in counts])
    assert (held <= 1.25 * np.array(counts)).all()
    assert all(high >= 1.25 * low for low, high in itertools.pairwise(buckets))
