"""The former core of the command lines, until every family uses `matterform.commandline`; to be deleted then."""

import argparse
import contextlib
import dataclasses
import io
import logging
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import tyro

from matterform.config import load_config
from matterform.errors import one_line

Run = TypeVar("Run")

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)  # what the user can mend


def dispatch(
    program: str, usage: str, commands: Mapping[str, Callable[[Sequence[str]], int]], argv: Sequence[str] | None
) -> int:
    """Runs the command that `argv` (default: the process's arguments) names first, with the rest of it.

    Returns what the command returns, 2 after one line on standard error where the user can mend what went wrong, or 130
    where it was stopped.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage)
        return 0 if argv else 2
    if argv[0] not in commands:
        return _fail(program, f"unknown command {argv[0]!r}; the commands are {', '.join(commands)}")
    _configure_logging(program)
    try:
        return commands[argv[0]](argv[1:])
    except USER_ERRORS as error:
        logging.getLogger(__name__).debug("where it happened", exc_info=True)
        return _fail(program, one_line(error))
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: stopped\n")
        return 130


def say(message: str) -> None:
    """One line to the user."""
    sys.stdout.write(f"{message}\n")


def parse(arguments: type[Run], prog: str, argv: Sequence[str], default: Any = tyro.MISSING) -> Run:
    """The arguments of a command as a dataclass; a mistake becomes a ValueError with what tyro says, in one line."""
    given = {} if default is tyro.MISSING else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(arguments, prog=prog, args=argv, config=(tyro.conf.OmitArgPrefixes,), **given)
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        _, _, text = complaint.getvalue().translate(str.maketrans("", "", "│╭╮╰╯─")).strip().partition("\n")  # no title
        words = text.split()
        raise ValueError(" ".join(word for word in words if word.strip("-"))) from stop


class RunArguments(NamedTuple):
    """What a training command was asked for."""

    run: Any  # the run's config
    resume: bool
    processes: tuple[str | None, int | None, int | None] | None  # for `initialize_distributed`; None: alone


def parse_run(
    config_class: type[Any], prog: str, explanation: str, argv: Sequence[str], recipe: Any = None
) -> RunArguments:
    """Arguments of a training command: fields of `config_class` as flags, over a saved config, over a `recipe`.

    --resume without --config takes the config of the run folder.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Arguments:
        config: pathlib.Path | None = None  # YAML of an earlier run; flags override it
        resume: bool = False  # go on with the run in --run-dir
        distributed: bool = False  # one of several processes, found by JAX (SLURM, GKE, ...)
        coordinator: str | None = None  # host:port, where JAX does not find the other processes itself
        num_processes: int | None = None  # with --coordinator
        process_id: int | None = None  # with --coordinator: 0, 1, ...
        run: config_class

    Arguments.__doc__ = explanation
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=pathlib.Path, nargs="?")  # without a value it is for tyro to complain
    early.add_argument("--run-dir", "--run_dir", type=pathlib.Path, nargs="?")
    early.add_argument("--resume", action="store_true")
    known, _ = early.parse_known_args(argv)
    run_dir = recipe.run_dir if known.run_dir is None and recipe is not None else known.run_dir
    if known.config is None and known.resume and run_dir is not None and run_dir.is_dir():
        known.config = run_dir / "config.yaml"
    run = recipe if known.config is None else load_config(config_class, known.config)
    arguments = parse(Arguments, prog, argv, tyro.MISSING if run is None else Arguments(run=run))
    together = arguments.distributed or arguments.coordinator is not None
    processes = (arguments.coordinator, arguments.num_processes, arguments.process_id) if together else None
    return RunArguments(arguments.run, arguments.resume, processes)


def report_run(program: str, command: str, run_dir: pathlib.Path, result: Any, product: str) -> int:
    """Says how a run ended and where its `product` lies; returns the exit status."""
    if result.outcome == "interrupted":
        say(f"stopped and saved; go on with: {program} {command} --run-dir {run_dir} --resume")
        return 130
    best = "" if result.best_loss is None else f"; lowest validation loss {result.best_loss:.4f}"
    say(f"{result.outcome} after step {int(result.state.step)}{best}; weights in {run_dir / product}")
    return 0


def _fail(program: str, message: str) -> int:
    sys.stderr.write(f"{program}: {message}\n")
    return 2


def _configure_logging(program: str) -> None:
    """Our own messages, but of other libraries only warnings: orbax reports every file it touches."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.WARNING)
    for name in (program, "matterform"):
        logging.getLogger(name).setLevel(logging.INFO)
