"""Runs the commands of a program: help, one-line errors, what is safe after Ctrl-C, exit statuses."""

import contextlib
import contextvars
import logging
import os
import pathlib
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import tyro

from matterform._version import __version__
from matterform.arguments import PARSING, Command, UsageError, nearest, parse, usage_errors, with_common_flags
from matterform.errors import one_line

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)  # the user can act on these
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
COMPLETION = "--print-completion"

_command_line: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("command_line", default=())


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a block that knows what is safe and how to go on."""


def main(
    program: str,
    description: str,
    commands: Sequence[Command],
    argv: Sequence[str] | None = None,
    recipes: Mapping[str, Any] = types.MappingProxyType({}),
) -> int:
    """Runs the command that `argv` (default: the process's arguments) names.

    Args:
        recipes: by command, settings that replace the defaults of its dataclass.

    Returns:
        What the command returns; 0 after --help and --version; 2 after one line on standard error if the user can
        correct the cause; 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else [str(word) for word in argv]
    token = _command_line.set((program, *argv))
    try:
        status = _run(program, description, commands, argv, recipes)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of a pipe has enough, as in `--help | head -1`
        _discard_output()
        return 0
    except USER_ERRORS as error:
        logging.getLogger(__name__).debug("traceback of the error", exc_info=True)
        return _fail(program, one_line(error))
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{program}: stopped{f'; {one_line(stop)}' if str(stop) else ''}\n")
        return INTERRUPTED
    finally:
        _command_line.reset(token)


def say(message: str) -> None:
    """Writes one line to standard output."""
    sys.stdout.write(f"{message}\n")


@contextlib.contextmanager
def on_interrupt(describe: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C inside the block ends the command with what `describe` returns: what is safe, where, how to go on.

    Raises:
        Interrupted: Ctrl-C was pressed inside the block.
    """
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as stop:
        raise Interrupted(describe()) from stop


def this_command(*more: str) -> str:
    """The running command as a user can type it again, with `more` words unless they are there already."""
    words = list(_command_line.get())
    return shlex.join([*words, *(word for word in more if word not in words)])


def report_run(program: str, command: str, run_dir: pathlib.Path, result: Any, product: str) -> int:
    """Prints how a training run ended and where its `product` is; returns the exit status.

    Raises:
        Interrupted: the run was stopped by Ctrl-C; says how to go on.
    """
    if result.outcome == "interrupted":
        raise Interrupted(
            f"the run is saved in {run_dir}; go on with: {program} {command} --run-dir {run_dir} --resume"
        )
    best = "" if result.best_loss is None else f"; lowest validation loss {result.best_loss:.4f}"
    say(f"{result.outcome} after step {int(result.state.step)}{best}; weights in {run_dir / product}")
    return 0


def _run(
    program: str, description: str, commands: Sequence[Command], argv: Sequence[str], recipes: Mapping[str, Any]
) -> int:
    by_name = {command.name: command for command in commands}
    if argv and argv[0] == "--version":
        say(f"{program} {__version__}")
        return 0
    if argv and argv[0] == COMPLETION:
        argv = [f"--tyro{COMPLETION[1:]}", *(argv[1:] or ["bash"])]
    if not argv or argv[0] not in by_name:
        return _parse_program(program, description, commands, argv or ["--help"], status=0 if argv else 2)
    command = by_name[argv[0]]
    arguments = parse(command, program, argv[1:], recipes.get(command.name))
    if arguments is None:  # --help
        return 0
    _configure_logging(program)
    return command.run(arguments)


def _parse_program(
    program: str, description: str, commands: Sequence[Command], argv: Sequence[str], status: int
) -> int:
    """Help, completion, and complaints about what is no command."""
    names = [command.name for command in commands]
    if not argv[0].startswith("-"):
        suggestion = nearest(argv[0], names, f"the commands are {', '.join(names)}")
        raise UsageError(f"unknown command {argv[0]!r}; {suggestion}")
    members: Any = tuple(
        Annotated[with_common_flags(command), tyro.conf.subcommand(name=command.name, description=_summary(command))]  # pyright: ignore
        for command in commands
    )
    any_command: Any = typing.Union[members]  # noqa: UP007  # members are not known before
    with usage_errors():
        try:
            tyro.cli(any_command, prog=program, description=description, args=argv, config=PARSING)
        except SystemExit as stop:
            if stop.code:
                raise
            return status
    raise UsageError(f"a command must come first: {', '.join(names)}")


def _fail(program: str, message: str) -> int:
    sys.stderr.write(f"{program}: {message}\n")
    return 2


def _discard_output() -> None:
    """Nothing more can be written: what is buffered goes nowhere instead of failing once more at exit."""
    with contextlib.suppress(OSError, ValueError):  # a standard output that is no file needs nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _configure_logging(program: str) -> None:
    """Shows our own messages, but of other libraries only warnings: orbax reports every file it touches."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.WARNING)
    for name in (program, "matterform"):
        logging.getLogger(name).setLevel(logging.INFO)


def _summary(command: Command) -> str:
    """The first sentence of a command's help."""
    return " ".join((command.help or command.arguments.__doc__ or "").strip().split("\n\n")[0].split())
