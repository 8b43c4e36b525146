"""The commands of `agedi` and its help."""

from agedi.cli import COMMANDS, main


def test_the_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command.name in text for command in COMMANDS)
    assert main([]) == 2
    assert capsys.readouterr().out == text


def test_an_unknown_command_is_one_line(capsys):
    assert main(["xyz"]) == 2
    assert "the commands are train, sample, inpaint, relax, predict, inspect" in capsys.readouterr().err
