"""Shares of the losses, as users write them."""

import pytest

from agedi.training.loss_shares import parse_loss_balance


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ("80:20", (0.8, 0.2)),
        ("80/20", (0.8, 0.2)),
        ("0.8-0.2", (0.8, 0.2)),
        ("50%:50%", (0.5, 0.5)),
        ("30%", (0.7, 0.3)),
        ("0.25", (0.75, 0.25)),
        (0.25, (0.75, 0.25)),
        ((3, 1), (0.75, 0.25)),
        ({"regressor": 1, "diffusion": 4}, (0.8, 0.2)),
    ],
)
def test_shares_may_be_written_in_many_ways(given, shares):
    assert parse_loss_balance(given) == pytest.approx(shares)


@pytest.mark.parametrize("given", ["80:20:10", "a:b", "", "80 20", {"energy": 1, "forces": 2}, (1, 2, 3)])
def test_what_is_no_pair_of_shares_is_refused(given):
    with pytest.raises(ValueError, match="loss_balance must be shares of diffusion and regressor"):
        parse_loss_balance(given)


@pytest.mark.parametrize("given", ["-1:2", "0:0", 1.5, 4820])
def test_negative_shares_are_refused(given):
    with pytest.raises(ValueError, match="at least 0 and not both 0"):
        parse_loss_balance(given)


def test_no_balance_is_none():
    assert parse_loss_balance(None) is None
