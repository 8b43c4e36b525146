"""One language on all command lines: every flag is explained, and one meaning has one name.

The table of names is that of README and docs; published names are aliases, which only `--help` leaves out.
"""

import collections
import dataclasses
import importlib
import re
import typing

import pytest
import tyro

from matterform.arguments import PARSING, Command, flags_of, with_common_flags

PROGRAMS = ("matterform", "crystalformer", "atomformer", "agedi")

# Name of a setting -> names under which other programs and former versions know it. None of these may be a flag.
NAMES = {
    "--model": ("--checkpoint", "--restore-path", "--start-from"),
    "--num-samples": ("--n-samples", "--count"),
    "--num-atoms": ("--n-atoms",),
    "--out": ("--output", "--save-path"),
    "--run-dir": ("--folder",),
    "--learning-rate": ("--lr",),
    "--clip-norm": ("--gradient-clip-val", "--clip-grad"),
    "--batch-size": ("--batchsize", "--chunk-size"),
    "--validation": ("--valid-path",),
    "--validation-fraction": ("--val-split",),
    "--max-minutes": ("--max-time", "--max-time-minutes"),
    "--wandb-project": ("--logger", "--project"),
    "--letters": ("--wyckoff",),
}
# Words that give a number its unit, or say that it has none.
UNITS = (
    r"angstrom|Å|eV|radian|degree|hour|minute|second|\bfs\b|\brad\b|kelvin|\bK\b|GPa|share|fraction|probability|factor|"
    r"weight|reward|strength|"
    r"times|divide|multipl|ratio|norm|relative|per step|number|penalty|bonus|unit|temperature|exponent|\^|rate|decay|"
    r"quantile|nats|power|added|property"
)


def commands() -> list[tuple[str, Command]]:
    """All commands with the program that each belongs to."""
    modules = {program: importlib.import_module(f"{program}.cli") for program in PROGRAMS}
    return [(program, command) for program, module in modules.items() for command in module.COMMANDS]


def help_texts(command: Command) -> dict[str, str]:
    """What `--help` prints for each flag or positional argument, its default included."""
    parser = tyro.extras.get_parser(with_common_flags(command), config=PARSING)
    return {
        (max(action.option_strings, key=len) if action.option_strings else action.dest): action.help or ""
        for action in parser._actions
        if "--help" not in action.option_strings
    }


EVERY_COMMAND = [pytest.param(command, id=f"{program} {command.name}") for program, command in commands()]


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_every_flag_has_a_sentence_of_help_and_a_default(command):
    silent = []
    for name, text in help_texts(command).items():
        words = re.sub(r"\((default|required|optional|repeatable).*?\)", "", text, flags=re.DOTALL)
        if len(words.split()) < 2 or not ("default" in text or "required" in text or "repeatable" in text):
            silent.append((name, text))
    assert silent == []


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_every_real_number_has_a_unit(command):
    texts, without = help_texts(command), []
    for flag in flags_of(command.arguments):
        annotation = typing.get_type_hints(flag.owner)[flag.field.name]
        name = f"--{flag.field.name}".replace("_", "-")
        if re.search(r"\bfloat\b", str(annotation)) and not re.search(UNITS, texts[name] + name):
            without.append((name, texts[name]))
    assert without == []


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_no_flag_has_a_name_that_another_one_stands_for(command):
    taken = {alias: name for name, aliases in NAMES.items() for alias in aliases}
    names = {flag.name for flag in flags_of(command.arguments)}
    assert {name: taken[name] for name in names if name in taken} == {}
    assert [name for name in names if name.startswith("--no-")] == []  # its opposite would be --no-no-...


def test_an_alias_stands_for_one_flag_everywhere():
    meanings = collections.defaultdict(set)
    for _, command in commands():
        for flag in flags_of(command.arguments):
            for alias in flag.silent:
                meanings[alias].add(flag.name)
        for alias, name in command.aliases.items():
            meanings[alias.replace("_", "-")].add(name.split("=")[0])
    for name, aliases in NAMES.items():
        for alias in aliases:
            if alias in meanings:
                assert meanings[alias] == {name}, (alias, meanings[alias])


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_short_flag_has_one_meaning_in_a_family(program):
    meanings = collections.defaultdict(set)
    for owner, command in commands():
        if owner == program:
            for flag in flags_of(command.arguments):
                for short in (*flag.shown, *(alias for alias in flag.silent if not alias.startswith("--"))):
                    meanings[short].add(flag.name)
    assert {short: names for short, names in meanings.items() if len(names) > 1} == {}


def test_a_short_flag_of_the_table_means_the_same_in_all_programs():
    for _, command in commands():
        for flag in flags_of(command.arguments):
            for short, name in (("-n", "--num-samples"), ("-o", "--out")):
                assert short not in flag.shown or flag.name == name, (command.name, flag.name)


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_no_command_declares_a_flag_twice(command):
    counts = collections.Counter(flag.name for flag in flags_of(command.arguments))
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_settings_are_frozen(command):
    assert dataclasses.is_dataclass(command.arguments)
    assert command.arguments.__dataclass_params__.frozen
