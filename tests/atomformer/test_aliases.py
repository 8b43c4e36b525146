"""Published flags of training have a counterpart or an answer."""

import pytest

from atomformer.cli import COMMANDS
from matterform.arguments import UsageError, flags_of, parse


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_every_published_flag_has_a_counterpart_or_an_answer(name):
    command = next(command for command in COMMANDS if command.name == name)
    flags = {flag.name for flag in flags_of(command.arguments)} | {"--resume"}
    assert set(command.aliases.values()) <= flags
    assert not {alias.replace("_", "-") for alias in command.aliases} & flags
    for flag in command.answers:
        with pytest.raises(UsageError) as caught:
            parse(command, "atomformer", [flag, "1"])
        assert "\n" not in str(caught.value)
