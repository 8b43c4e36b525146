"""Command-line arguments: flags from a frozen dataclass, aliases, settings from files, one-line errors.

tyro takes types, defaults and help from the dataclass. Published names of flags are aliases, given in the metadata of a
field (`matterform.config.setting`) or by the command.
"""

import contextlib
import dataclasses
import difflib
import pathlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import tyro
from tyro import _errors as parse_errors  # structured parse errors; tyro documents them for applications

from matterform.config import load_config
from matterform.errors import one_line

# Type of the flag --out, the output path of every command.
Out = Annotated[pathlib.Path, tyro.conf.arg(aliases=["-o"])]
OUT_NAMES = ("output", "save_path")


class UsageError(ValueError):
    """An unknown flag, or an invalid value of a flag."""


class Command(NamedTuple):
    """A sub-command."""

    name: str
    arguments: type[Any]  # a frozen dataclass; its docstring is the help
    run: Callable[..., int]  # takes an instance of `arguments`, or for training commands a `TrainingRun`
    aliases: Mapping[str, str] = types.MappingProxyType({})  # published flag -> our flag, besides the fields' own
    answers: Mapping[str, str] = types.MappingProxyType(
        {}
    )  # published flag without a counterpart -> what to do instead
    positional: tuple[str, ...] = ()  # flags set by the words after the command, in order; "" skips a word
    training: bool = False  # whether --resume and the flags of `Processes` are added
    help: str = ""  # replaces the docstring of `arguments`
    load: Callable[[pathlib.Path], Any] | None = None  # reads --config; by default a YAML file of `arguments`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Training by several processes, each with its own devices."""

    distributed: bool = False  # train with all processes that JAX detects (SLURM, GKE, ...)
    coordinator: str | None = None  # host:port of the first process, if JAX does not detect it
    num_processes: int | None = None  # number of processes; needs --coordinator
    process_id: int | None = None  # index of this process, from 0; needs --coordinator

    @property
    def several(self) -> bool:
        """Whether several processes train together; see `matterform.training.mesh.initialize_distributed`."""
        return self.distributed or self.coordinator is not None


class TrainingRun(NamedTuple):
    """Arguments of a training command."""

    config: Any
    resume: bool
    processes: Processes


class Flag(NamedTuple):
    """A flag of a command, declared by a field of its dataclass."""

    name: str  # such as --learning-rate
    shown: tuple[str, ...]  # aliases in the help, such as -n
    silent: tuple[str, ...]  # published names, accepted but not shown
    owner: type[Any]
    field: dataclasses.Field[Any]


def parse(command: Command, program: str, argv: Sequence[str], recipe: Any = None) -> Any:
    """Parses the arguments of a command, the words after its name.

    Flags override a file given by --config, which overrides the `recipe`, which overrides the dataclass's defaults. A
    training command with --resume and without --config takes the settings of the run folder.

    Returns:
        An instance of `command.arguments`, or for training commands a `TrainingRun`.

    Raises:
        UsageError: a flag or value is invalid; the message is one line on the first mistake.
    """
    argv, wrapped = translate(command, argv), with_common_flags(command)
    settings = _saved_settings(command, argv, recipe)
    given = {} if settings is None else {"default": wrapped(settings=settings)}
    with usage_errors(flags_of(wrapped)):
        try:
            arguments = tyro.cli(wrapped, prog=f"{program} {command.name}", args=argv, config=PARSING, **given)
        except SystemExit as stop:
            if stop.code:
                raise
            return None
    if command.training:
        return TrainingRun(arguments.settings, arguments.resume, arguments.processes)
    return arguments.settings


def translate(command: Command, argv: Sequence[str]) -> list[str]:
    """Replaces published names of flags by ours in the words of a command line.

    Raises:
        UsageError: a published flag has no counterpart here; the message gives the alternative.
    """
    known = {flag.name for flag in flags_of(command.arguments)}
    names: dict[str, str] = {}
    for flag in flags_of(command.arguments):
        for alias in flag.silent:
            names[alias] = flag.name
            names[f"--no-{alias.removeprefix('--')}"] = f"--no-{flag.name.removeprefix('--')}"
    names |= {_dashed(alias): flag for alias, flag in command.aliases.items()}
    answers = {_dashed(flag): answer for flag, answer in command.answers.items()}
    words, leading = [], list(command.positional)
    for place, word in enumerate(argv):
        if leading and not word.startswith("-") and place == len(command.positional) - len(leading):
            flag = leading.pop(0)
            words += [flag, word] if flag else [word]
            continue
        name, equals, value = word.partition("=")
        name = _dashed(name)
        if name in answers and name not in known:
            raise UsageError(f"{name}: {answers[name]}")
        words.append(names[name] + equals + value if name in names and name not in known else word)
    return words


def flags_of(arguments: type[Any]) -> list[Flag]:
    """The flags that a dataclass and the dataclasses nested in it declare."""
    found = []
    hints = typing.get_type_hints(arguments, include_extras=True)
    for field in dataclasses.fields(arguments):
        annotation = hints[field.name]
        extras = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is Annotated else ()
        bare = typing.get_args(annotation)[0] if extras else annotation
        if dataclasses.is_dataclass(bare):
            found += flags_of(typing.cast(type, bare))
        elif tyro.conf.Positional[int].__metadata__[0] not in extras and field.init:  # pyright: ignore
            shown = tuple(alias for extra in extras for alias in getattr(extra, "aliases", None) or ())
            silent = tuple(_dashed(f"--{alias}") for alias in field.metadata.get("aliases", ()))
            found.append(Flag(_dashed(f"--{field.name}"), shown, silent, arguments, field))
    return found


PARSING = (tyro.conf.OmitArgPrefixes,)


def with_common_flags(command: Command) -> type[Any]:
    """The command's dataclass with the flags common to all commands and, if it trains, those of training."""
    config = tyro.conf.arg(help="YAML file with settings of this command; flags override it.")
    fields: list[Any] = [("config", Annotated[pathlib.Path | None, config], dataclasses.field(default=None))]
    if command.training:
        help_text = "Go on with the run in --run-dir, to the same result as without the interruption."
        fields.append(("resume", Annotated[bool, tyro.conf.arg(help=help_text)], dataclasses.field(default=False)))
        fields.append(("processes", Processes, dataclasses.field(default=Processes())))
    # The docstring is printed above all flags already, so it is not repeated as the heading of a group.
    fields.append(("settings", Annotated[command.arguments, tyro.conf.arg(name="", help="")]))
    wrapped = dataclasses.make_dataclass(command.arguments.__name__, fields, frozen=True, kw_only=True)
    wrapped.__doc__ = command.help or command.arguments.__doc__
    return wrapped


def _saved_settings(command: Command, argv: Sequence[str], recipe: Any) -> Any:
    """Settings from --config, or from the folder of a run that is resumed; else the recipe."""
    path = _value_of("--config", argv)
    if path is None and command.training and "--resume" in argv:
        run_dir = _value_of("--run-dir", argv) or (None if recipe is None else recipe.run_dir)
        if run_dir is not None and pathlib.Path(run_dir).is_dir():
            path = pathlib.Path(run_dir) / "config.yaml"
    if path is None:
        return recipe
    return command.load(pathlib.Path(path)) if command.load else load_config(command.arguments, path)


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The last value of a flag, as in `--flag value` or `--flag=value`."""
    value = None
    for word, after in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, joined = word.partition("=")
        if _dashed(name) == flag:
            value = joined if equals else after
    return value or None


@contextlib.contextmanager
def usage_errors(flags: Sequence[Flag] = ()) -> Iterator[None]:
    """Converts parse errors of tyro to one-line errors.

    Raises:
        UsageError: tyro reports an error inside the block.
    """

    def complain(event: Any) -> None:
        raise UsageError(_explained(event, flags))

    with parse_errors.on_parse_error(complain):
        yield


def _explained(event: Any, flags: Sequence[Flag]) -> str:
    """Describes a parse error of tyro in one line."""
    unknown = getattr(event, "tokens", None) or getattr(event, "unrecognized_tokens", None)
    if unknown:
        name = next((token for token in unknown if token.startswith("-")), None)
        if name is None:
            return f"unexpected {unknown[0]!r}; `{event.prog} --help` lists the flags"
        flag = _dashed(name.partition("=")[0])
        names = [name for known in flags for name in (known.name, *known.shown, *known.silent)]
        return f"unknown flag {flag}; {nearest(flag, names, f'`{event.prog} --help` lists the flags')}"
    if isinstance(event, parse_errors.MissingArgs):
        missing = [_name_of(context.arg) for context in event.missing_arguments]
        return f"{' and '.join(missing)} must be given; see `{event.prog} --help`"
    if isinstance(event, parse_errors.MissingSubcommand):
        return f"a command must come first: {', '.join(event.subcommand_spec.parser_from_name)}"
    if isinstance(event, parse_errors.InvalidChoice):
        choices = [choice for choice in event.choices]
        found = f"{_name_of(event.argument)} must be one of {', '.join(choices)}; got {event.value!r}"
        close = difflib.get_close_matches(event.value, choices, n=1)
        return f"{found}; did you mean {close[0]}?" if close else found
    if isinstance(event, parse_errors.BadValue):
        return f"{_name_of(event.argument)} needs a value; see `{event.prog} --help`"
    if isinstance(event, parse_errors.InstantiationFailure):
        where = "" if event.argument is None else f"{_name_of(event.argument)}: "
        return one_line(ValueError(f"{where}{event.message}"))
    title, _ = parse_errors._render(event)
    return f"{title}; see `{event.prog} --help`"


def _name_of(argument: Any) -> str:
    if argument.is_positional() or not argument.lowered.name_or_flags:
        return str(argument.lowered.metavar)
    return argument.lowered.name_or_flags[-1]


def nearest(name: str, known: Sequence[str], otherwise: str) -> str:
    bare = {candidate.lstrip("-"): candidate for candidate in known}  # dashes do not count as similarity
    close = difflib.get_close_matches(name.lstrip("-"), bare, n=1)
    return f"did you mean {bare[close[0]]}?" if close else otherwise


def _dashed(flag: str) -> str:
    """A flag with underscores replaced by dashes."""
    return flag.replace("_", "-") if flag.startswith("--") else flag
