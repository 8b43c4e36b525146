"""Settings of relaxation."""

import pytest

from agedi.forcefield.config import LbfgsConfig


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fmax": 0.0}, "fmax must be positive"),
        ({"max_step_size": 2.0}, "at most 1.0 angstrom"),
        ({"steps": -1}, "steps must be 0 or more"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"fmax": float("nan")}, "fmax must be positive"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        LbfgsConfig(**settings)
