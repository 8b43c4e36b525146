"""Errors in one line, and errors of a user's code."""

import pytest

from matterform.errors import Explained, one_line, reason_of


def test_a_message_becomes_one_line():
    assert one_line(ValueError(" first\n\n  second ")) == "first second"
    assert reason_of(TypeError("no\nnumber")) == "TypeError: no number"


@pytest.mark.parametrize("error", [ValueError("bad\nvalue"), KeyError("x"), SystemExit(3)])
def test_whatever_a_users_code_raises_is_one_valueerror_with_its_cause(error):
    message = f"calling my reward raised {type(error).__name__}: "
    with pytest.raises(ValueError, match=message) as caught, Explained("calling my reward"):
        raise error
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


def test_interrupts_pass():
    with pytest.raises(KeyboardInterrupt), Explained("waiting"):
        raise KeyboardInterrupt
