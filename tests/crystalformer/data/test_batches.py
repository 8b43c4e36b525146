import numpy as np

from crystalformer.data.batches import bucket_lengths, make_take, plan_batches
from crystalformer.data.crystals import num_slots


def test_buckets_hold_every_length():
    assert bucket_lengths(21) == (3, 5, 7, 10, 14, 21)
    assert bucket_lengths(7) == (3, 5, 7)
    assert bucket_lengths(2) == (2,)


def test_a_plan_cuts_every_crystal_to_a_length_that_holds_it(random_crystals):
    crystals = random_crystals(50, 21)
    seen = []
    for rows, weight, length in plan_batches(crystals, 8, seed=0).epoch(0):
        assert length in bucket_lengths(21)
        assert num_slots(crystals)[rows].max() <= length
        seen += rows[weight > 0].tolist()
    assert sorted(seen) == list(range(50))


def test_taken_rows_have_the_length_and_types_of_the_network(random_crystals):
    crystals = random_crystals(10, 7, most=3)
    wide = crystals._replace(L=crystals.L.astype(np.float64), W=crystals.W.astype(np.int64))
    batch = make_take(wide)(np.array([4, 1]), 5)
    assert [field.dtype.name for field in batch] == ["int32", "float32", "float32", "int32", "int32"]
    np.testing.assert_array_equal(batch.W, crystals.W[[4, 1], :5])
    np.testing.assert_array_equal(batch.XYZ, crystals.XYZ[[4, 1], :5])
