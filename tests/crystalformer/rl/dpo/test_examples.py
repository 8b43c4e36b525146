"""Pairs of a run: read, checked, split, written and read again."""

import dataclasses

import numpy as np
import pytest

from crystalformer.data.crystals import Crystals
from crystalformer.rl.config import DpoConfig, PairingConfig
from crystalformer.rl.dpo.examples import (
    fingerprint,
    load_pairs,
    make_pair_take,
    plan_pairs,
    possible_pairs,
    read_reference,
    split_pairs,
    write_pairs,
)
from crystalformer.rl.dpo.loss import PreferencePair
from crystalformer.rl.dpo.pairs import PairData, Pairs
from crystalformer.rl.dpo.rows import take_crystals


@pytest.fixture
def data(pairs) -> PairData:
    """Three pairs of different rows, and a refused row."""
    some = Pairs(*(take_crystals(crystals, [0, 1, 2]) for crystals in pairs))
    return PairData(some, np.array([(0, 5), (2, 4), (3, 3)]), {1: "chosen: its cell, too flat"})


def test_pairs_and_reference_survive_their_files(data, tmp_path):
    logp = np.array([[-1 / 3, -2e-7], [-12.5, -1e10], [-0.1, -7]], np.float32)
    write_pairs(tmp_path, data, logp)
    np.testing.assert_array_equal(read_reference(tmp_path, data), logp)
    assert (tmp_path / "refused.csv").read_text() == 'row,reason\n1,"chosen: its cell, too flat"\n'
    other = data._replace(rows=data.rows[::-1])
    with pytest.raises(ValueError, match=r"pairs\.csv names other rows"):
        read_reference(tmp_path, other)
    with pytest.raises(FileNotFoundError, match=r"pairs\.csv does not exist"):
        read_reference(tmp_path / "nothing", data)


def test_impossible_pairs_are_left_out(data, caplog):
    logp = np.array([[-1, -2], [-3, -1e10], [-5, -6]], np.float32)
    found = possible_pairs(data, logp)
    np.testing.assert_array_equal(found.logp_reference, logp[[0, 2]])
    np.testing.assert_array_equal(found.rejected.A, data.pairs.rejected.A[[0, 2]])
    assert "1 pairs left out, to which the weights give no probability; the first is of rows 2 and 4" in caplog.text
    with pytest.raises(ValueError, match="none of the pairs a probability"):
        possible_pairs(data, np.full((3, 2), -1e10, np.float32))


def test_fingerprints_tell_crystals_and_references_apart(data):
    logp = np.zeros((3, 2), np.float32)
    first = fingerprint(data.pairs, logp)
    assert first["pairs"] == 3
    assert fingerprint(data.pairs, logp + 1)["crc32"] == first["crc32"]
    assert fingerprint(data.pairs, logp + 1)["reference_crc32"] != first["reference_crc32"]
    assert fingerprint(Pairs(*data.pairs[::-1]), logp)["crc32"] != first["crc32"]


def test_batches_are_cut_to_the_longer_crystal_of_a_pair(base, pairs):
    chosen = take_crystals(pairs.chosen, range(4))
    rejected = chosen._replace(W=chosen.W.copy())
    chosen.W[:], rejected.W[:] = [1, 0, 0, 0], [1, 1, 1, 0]
    rows = PreferencePair(chosen, rejected, np.arange(8, dtype=np.float32).reshape(4, 2))
    (batch,) = plan_pairs(rows, base).epoch(0)
    assert batch.length == 4
    taken = make_pair_take(rows)(batch.indices, batch.length)
    assert taken.chosen.W.shape == taken.rejected.W.shape == (4, 4)
    np.testing.assert_array_equal(taken.logp_reference, rows.logp_reference[batch.indices])


def test_a_run_takes_its_pairs_from_a_scored_table(network, pairs, write_samples, tmp_path):
    # Best against worst over one group of 48 crystals: the i-th best is chosen i, the i-th worst rejected i.
    count = len(pairs.chosen.G)
    both = Crystals(*(np.concatenate(fields) for fields in zip(*pairs, strict=True)))
    one_group = both._replace(G=np.ones_like(both.G), W=np.minimum(both.W, 1))
    score = [*range(count), *range(-1, -count - 1, -1)]
    path = write_samples(tmp_path / "scored.csv", one_group, score=[-value for value in score])
    config = DpoConfig(
        run_dir=tmp_path / "run",
        scored=path,
        pairing=PairingConfig(score="score", lower_is_better=True, group_by="spacegroup"),
    )
    found = load_pairs(config, network)
    np.testing.assert_array_equal(found.rows, [(i, count + i) for i in reversed(range(count))])
    np.testing.assert_array_equal(found.pairs.chosen.A, pairs.chosen.A[::-1])
    np.testing.assert_array_equal(found.pairs.rejected.A, pairs.rejected.A[::-1])


def test_held_out_pairs_are_disjoint_complete_and_decided_by_the_seed(base, pairs):
    count = len(pairs.chosen.G)
    numbers = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    examples = PreferencePair(*pairs, numbers)
    train, held_out = split_pairs(examples, base)
    assert (len(train.logp_reference), len(held_out.logp_reference)) == (18, 6)
    assert sorted([*train.logp_reference[:, 0], *held_out.logp_reference[:, 0]]) == numbers[:, 0].tolist()
    rows = (held_out.logp_reference[:, 0] / 2).astype(int)
    np.testing.assert_array_equal(held_out.chosen.W, pairs.chosen.W[rows])
    again, other = (split_pairs(examples, dataclasses.replace(base, seed=seed))[1] for seed in (42, 1))
    assert again.logp_reference.tolist() == held_out.logp_reference.tolist() != other.logp_reference.tolist()
    assert split_pairs(examples, dataclasses.replace(base, validation_fraction=0.0))[1] is None
    with pytest.raises(ValueError, match="leaves none of 24 pairs to train on"):
        split_pairs(examples, dataclasses.replace(base, validation_fraction=0.99))


def test_crystals_beyond_the_vocabulary_are_refused(base, network, pairs):
    with pytest.raises(ValueError, match=r"the rejected crystals of .*: crystal \d+ has A = \d+; this network takes"):
        load_pairs(base, dataclasses.replace(network, atom_types=20))
