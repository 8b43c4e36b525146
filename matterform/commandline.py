"""Runs the commands of a program: help, one-line errors, Ctrl-C, exit statuses."""

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

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)  # errors that the user can correct
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
COMPLETION = "--print-completion"

_command_line: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("command_line", default=())


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message describes what has been saved and how to continue."""


def main(
    program: str,
    description: str,
    commands: Sequence[Command],
    argv: Sequence[str] | None = None,
    recipes: Mapping[str, Any] = types.MappingProxyType({}),
) -> int:
    """Runs the command given by `argv` (default: the arguments of the process).

    Args:
        recipes: for each command, settings that replace the defaults of its dataclass.

    Returns:
        The exit status: that of the command; 0 after --help and --version; 2, with one line on standard error, after an
        error that the user can correct; 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else [str(word) for word in argv]
    token = _command_line.set((program, *argv))
    try:
        status = _run(program, description, commands, argv, recipes)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader has closed the pipe, as in `--help | head -1`
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
    """Adds a message to Ctrl-C inside the block: `describe` returns what has been saved, where, and how to continue.

    Raises:
        Interrupted: the user presses Ctrl-C.
    """
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as stop:
        raise Interrupted(describe()) from stop


def this_command(*more: str) -> str:
    """The command line of this process for the user to repeat, with the words `more` added if they are missing."""
    words = list(_command_line.get())
    return shlex.join([*words, *(word for word in more if word not in words)])


def report_run(program: str, command: str, run_dir: pathlib.Path, result: Any, product: str) -> int:
    """Prints how a training run ended and the path of its `product`; returns the exit status.

    Raises:
        Interrupted: the run was interrupted; the message gives the command that resumes it.
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
    """Handles --help, shell completion and unknown commands."""
    names = [command.name for command in commands]
    if not argv[0].startswith("-"):
        suggestion = nearest(argv[0], names, f"the commands are {', '.join(names)}")
        raise UsageError(f"unknown command {argv[0]!r}; {suggestion}")
    members: Any = tuple(
        Annotated[with_common_flags(command), tyro.conf.subcommand(name=command.name, description=_summary(command))]  # pyright: ignore
        for command in commands
    )
    any_command: Any = typing.Union[members]  # noqa: UP007  # the members are known only at run time
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
    """Redirects standard output to the null device, so that flushing its buffer at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):  # standard output is not a file, so there is nothing to do
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _configure_logging(program: str) -> None:
    """Shows our messages, but only warnings of other libraries (orbax logs every file that it touches)."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.WARNING)
    for name in (program, "matterform"):
        logging.getLogger(name).setLevel(logging.INFO)


def _summary(command: Command) -> str:
    """The first sentence of a command's help."""
    return " ".join((command.help or command.arguments.__doc__ or "").strip().split("\n\n")[0].split())
