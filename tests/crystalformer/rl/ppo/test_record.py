"""Metrics of a rollout by hand, and the files of a run."""

import csv
import json

import numpy as np
import pytest

from crystalformer.data.crystals import Crystals
from crystalformer.loss import LogProb
from crystalformer.rl.ppo.record import EpochWriter, epoch_row, keep_lines
from crystalformer.rl.ppo.rollout import Rollout
from crystalformer.rl.reward.base import Scores


@pytest.fixture
def rollout() -> Rollout:
    """Four crystals of one site, of which the first two are alike and the last could not be built."""
    crystals = Crystals(
        G=np.array([225, 225, 221, 225], np.int32),
        L=np.full((4, 6), 1.5, np.float32),
        XYZ=np.zeros((4, 2, 3), np.float32),
        A=np.array([[29, 0], [29, 0], [29, 0], [79, 0]], np.int32),
        W=np.array([[1, 0]] * 4, np.int32),
    )
    logp = LogProb(np.array([-1.0, -2.0, -3.0, -6.0]), *np.zeros((3, 4)))
    values = np.array([1.0, 2.0, 3.0, -10.0])
    details = {"gap": np.array([0.5, 1.5, np.nan, np.nan]), "energy": np.full(4, np.nan)}
    scores = Scores(values, ["", "", "", "no cell"], details)
    return Rollout(crystals, logp, np.array([-2.0, -2.0, -2.0, -2.0]), values, values < 0, details, scores)


def test_metrics_by_hand(rollout):
    row = epoch_row(rollout, beta=0.5)
    # log p - log p_reference: 1, 0, -1, -4, whose mean is -1 and whose squared deviations are 4, 1, 0, 9.
    assert row["kl"] == -1
    assert row["kl_error"] == pytest.approx((14 / 3) ** 0.5 / 2)
    assert row["reward_mean"] == -1
    assert row["objective"] == -1 + 0.5
    assert row["entropy"] == 3
    assert (row["failed_share"], row["distinct_share"]) == (0.25, 0.75)
    assert row["reward_q50"] == 1.5
    assert row["gap_mean"] == 1.0
    assert "energy_mean" not in row  # no crystal has one


def test_a_single_sample_has_no_standard_error(rollout):
    one = Rollout(
        *(Crystals(*(x[:1] for x in rollout.crystals)), LogProb(*(x[:1] for x in rollout.logp))),
        *(rollout.logp_reference[:1], rollout.rewards[:1], rollout.failed[:1], {}, rollout.local),
    )
    assert np.isnan(epoch_row(one, 0.1)["reward_error"])


def test_a_resumed_run_writes_its_lines_again(rollout, tmp_path):
    for resumed, epochs in ((None, (1, 2)), (1, (2, 3))):
        writer = EpochWriter(tmp_path, ["gap", "energy"], resumed, None)
        for epoch in epochs:
            writer.write(epoch, epoch_row(rollout, 0.1), rollout)
        writer.close()
    lines = [json.loads(line) for line in (tmp_path / "epochs.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[0] == {
        "epoch": 1,
        "problems": "1 of 4 failed: 1 x no cell",
        "spacegroups": {"225": 3, "221": 1},
        "elements": {"Cu": 3, "Au": 1},
    }
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["step"]) for row in rows] == [1, 2, 3]
    assert float(rows[2]["gap_mean"]) == 1.0
    assert rows[2]["energy_mean"] == ""


def test_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "epochs.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    keep_lines(path, 5)
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    keep_lines(tmp_path / "nothing", 5)
    assert not (tmp_path / "nothing").exists()


def test_a_table_of_samples_holds_rewards_reasons_and_details(rollout, tmp_path):
    writer = EpochWriter(tmp_path, ["gap", "energy"], None, None)
    writer.save_samples(7, rollout)
    writer.close()
    with (tmp_path / "samples" / "epoch_000007.csv").open(newline="") as file:
        rows = {int(row["index"]): row for row in csv.DictReader(file)}
    assert [float(rows[i]["reward"]) for i in range(4)] == [1, 2, 3, -10]
    assert [rows[i]["reward_problem"] for i in range(4)] == ["", "", "", "no cell"]
    assert float(rows[1]["gap"]) == 1.5
