"""Command lines of the published AGeDi, translated to our flags before they are parsed.

Supported are: structures and runs before, between or after flags; lists joined by commas or given by repeated flags;
KEY=VALUE settings and a YAML file as the input of `train`; and flags with another syntax here.
"""

import collections
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agedi.config import NOISERS
from agedi.training.published import translate_settings
from matterform.arguments import Command, Flag, UsageError, flags_of

# Short flags of the published `train` that mean something else in `sample`, where they keep their meaning.
TRAIN_SHORT = {"-n": "--noisers", "-f": "--feature-size", "-c": "--conditioning", "-t": "--max-minutes"}
ELSEWHERE = {"-n": "--num-samples", "-f": "--formula", "-c": "--cell", "-t": "--template"}
# Values that continue the list of a flag; other lists end at the first word that is not a number.
CONTINUE = {
    "--noisers": "|".join(NOISERS),
    "--conditioning": r"(?!)",
    "--conditioning-type": "scalar|integer|node",
    "--extensive": r"(?!)",
    "--symbols": "[A-Z][a-z]?",
}
APPENDED = ("--property",)  # each use adds one value as it stands
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
FLAG = re.compile(r"--|-[A-Za-z]$")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
YAML_SUFFIXES = (".yaml", ".yml")
# Number of values of flags that no dataclass declares: published flags, and flags common to all commands.
OTHER_FLAGS = {
    **{"--help": 0, "-h": 0, "--resume": 0, "--distributed": 0, "--non-periodic": 0, "--compile": 0},
    **{"--sphere-center": 3, "--sphere-radius": 1},
}
# Values of --schedule, which is the learning rate's, that only --noise-schedule has.
NOISE_SCHEDULES = ("linear", "exponential")
# Flags of `train` whose values `translate_settings` converts.
TRANSLATED = ("--max-time", "--max-time-minutes", "--logger", "--project", "--epochs")


class Given(NamedTuple):
    """A flag with its values."""

    flag: str
    values: list[str]


def understand(command: Command, argv: Sequence[str]) -> list[str]:
    """The words after the name of a command, translated for `matterform.commandline`.

    Raises:
        UsageError: a published flag is incomplete, or its value cannot be translated.
    """
    bare, given = split_words(command, argv)
    if command.training:
        bare, given = _training(bare, given)
    given = _sphere(given)
    lists = {flag.name for flag in flags_of(command.arguments) if _count(flag) is None}
    words: list[str] = []
    joined: dict[str, list[str]] = {}
    for flag, values in given:
        if flag in lists:
            joined.setdefault(flag, []).extend(values)
        else:
            words += [flag, *values]
    return [*bare, *words, *(word for flag, values in joined.items() for word in (flag, *values))]


def split_words(command: Command, argv: Sequence[str]) -> tuple[list[str], list[Given]]:
    """Words that belong to no flag, and the flags with their values; published names of flags are replaced."""
    known = _known(command)
    bare, given, rest = [], [], collections.deque(argv)
    while rest:
        word = rest.popleft()
        assignment = ASSIGNMENT.fullmatch(word) if command.training else None
        if assignment is not None:
            rest.extendleft(reversed(_flag_of(known, *assignment.groups())))
        elif not word.startswith("-") or re.fullmatch(NUMBER, word):
            bare.append(word)
        else:
            name, equals, value = word.partition("=")
            name = _dashed(_train_flag(name) if command.training else name)
            flag = known.get(name)
            if equals:
                rest.appendleft(value)
            given.append(Given(name if flag is None else flag.name, _values(name, flag, rest)))
    return bare, given


def _known(command: Command) -> dict[str, Flag]:
    """The flags of a command by each of their names."""
    flags = flags_of(command.arguments)
    by_name = {flag.name: flag for flag in flags}
    names = {alias: flag for flag in flags for alias in (*flag.shown, *flag.silent)}
    aliases = {_dashed(alias): by_name[name] for alias, name in command.aliases.items() if name in by_name}
    return names | aliases | by_name


def _train_flag(name: str) -> str:
    """The flag that a published short flag of `train` stands for; a note on stderr names its other meaning."""
    if name == "-T":
        return "--max-time"
    if name not in TRAIN_SHORT:
        return name
    sys.stderr.write(f"agedi: {name} is read as {TRAIN_SHORT[name]} in train; it means {ELSEWHERE[name]} elsewhere\n")
    return "--max-time-minutes" if name == "-t" else TRAIN_SHORT[name]  # published hours and minutes add up


def _flag_of(known: Mapping[str, Flag], key: str, value: str) -> list[str]:
    """The flag of a setting KEY=VALUE."""
    name = _dashed(f"--{key}")
    flag = known.get(name)
    if flag is not None and _count(flag) == 0:
        if value.lower() not in ("true", "false"):
            raise UsageError(f"{key} must be true or false; got {value!r}")
        return [name if value.lower() == "true" else f"--no-{name.removeprefix('--')}"]
    optional = flag is not None and types.NoneType in typing.get_args(_annotation(flag))
    return [name, "None" if optional and value.lower() in ("none", "null") else value]


def _values(name: str, flag: Flag | None, rest: collections.deque[str]) -> list[str]:
    """Takes the values of a flag from the words after it."""
    count = OTHER_FLAGS.get(name, 0 if name.startswith("--no-") else 1) if flag is None else _count(flag)
    if count == 0 or not rest or FLAG.match(rest[0]):
        return []
    if count == 1:
        return [rest.popleft()]
    values = rest.popleft().split(",")
    goes_on = NUMBER if flag is None else CONTINUE.get(flag.name, NUMBER)
    while rest and (len(values) < count if count else re.fullmatch(f"(({goes_on}),?)+", rest[0])):
        values += rest.popleft().split(",")
    return [value for value in values if value]


def _count(flag: Flag) -> int | None:
    """Number of values of a flag; None for a list of any length."""
    annotation = _annotation(flag)
    members = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = list(typing.get_args(annotation))
    if bool in members:
        return 0
    tuples = [typing.get_args(member) for member in members if typing.get_origin(member) is tuple]
    if not tuples or flag.name in APPENDED:
        return 1
    return None if Ellipsis in tuples[0] else len(tuples[0])


def _annotation(flag: Flag) -> Any:
    return typing.get_type_hints(flag.owner)[flag.field.name]


def _training(bare: list[str], given: list[Given]) -> tuple[list[str], list[Given]]:
    """Translates what only the published `train` accepts: a YAML file as input, a run to continue, times, loggers."""
    others, settings = [], {}
    for flag, values in given:
        if flag == "--checkpoint" and values:
            others += [Given("--run-dir", values), Given("--resume", [])]
        elif flag == "--architecture" and values not in ([], ["PaiNN"]):
            raise UsageError(f"the network is PaiNN; got {values[0]!r}. To go on with a run: --run-dir RUN --resume")
        elif flag == "--schedule" and values and values[0] in NOISE_SCHEDULES:
            others.append(Given("--noise-schedule", values))
        elif flag in TRANSLATED and values:
            settings[flag.removeprefix("--").replace("-", "_")] = values[0]
        else:
            others.append(Given(flag, values))
    if settings.get("epochs") == "-1":
        settings["epochs"] = -1
    for name, value in translate_settings(settings).items():
        if isinstance(value, bool):
            others.append(Given(_dashed(f"--{name}" if value else f"--no-{name}"), []))
        else:
            others.append(Given(_dashed(f"--{name}"), [str(value)]))
    if bare and bare[0].lower().endswith(YAML_SUFFIXES):
        others.insert(0, Given("--config", [bare[0]]))
        bare = bare[1:]
    return bare, others


def _sphere(given: list[Given]) -> list[Given]:
    """--sphere-center X Y Z --sphere-radius R as --sphere X Y Z R."""
    parts = {flag: values for flag, values in given if flag in ("--sphere-center", "--sphere-radius")}
    if not parts:
        return given
    if len(parts) < 2:
        raise UsageError("a sphere needs --sphere-center and --sphere-radius, or --sphere X Y Z RADIUS")
    others = [one for one in given if one.flag not in parts]
    return [*others, Given("--sphere", [*parts["--sphere-center"], *parts["--sphere-radius"]])]


def _dashed(flag: str) -> str:
    return flag.replace("_", "-") if flag.startswith("--") else flag
