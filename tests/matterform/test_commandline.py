"""What all command lines do with arguments, published names, mistakes, saved settings, recipes and interrupts."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Annotated, Any, Literal, NamedTuple

import pytest
import tyro

import matterform
from matterform.arguments import Command
from matterform.commandline import Interrupted, main, on_interrupt, report_run, this_command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What learns."""

    learning_rate: float = dataclasses.field(default=0.1, metadata={"aliases": ("lr",)})  # step size
    kind: Literal["adam", "adamw"] = "adam"  # algorithm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trains something.

    prog train --run-dir x
    """

    run_dir: pathlib.Path  # folder of the run
    epochs: int = 5  # passes over the data
    radioactive: bool = True  # whether to allow radioactive elements
    num_samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = dataclasses.field(
        default=3, metadata={"aliases": ("n_samples",)}
    )  # how many
    model: pathlib.Path | None = None  # weights
    optimizer: Optimizer = Optimizer()

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1; got {self.epochs}")


def command(run: Any = lambda arguments: 0, *, training: bool = False, name: str = "do") -> Command:
    return Command(
        name,
        Config,
        run,
        aliases={"--restore_path": "--model", "--remove_radioactive": "--no-radioactive"},
        answers={"--n_workers": "not needed here: one process uses all devices"},
        positional=("--model",),
        training=training,
    )


def status(run: Any, *argv: str) -> int:
    return main("prog", "What it does.", [command(run), command(run, name="undo")], ["do", "--run-dir", "x", *argv])


@pytest.mark.parametrize(
    "error", [ValueError("bad\n  value"), FileNotFoundError("bad value"), ImportError("bad value")], ids=repr
)
def test_what_the_user_can_correct_is_one_line_and_status_2(error, capsys):
    def fail(arguments):
        raise error

    assert status(fail) == 2
    assert capsys.readouterr() == ("", "prog: bad value\n")


def test_a_fault_of_ours_is_no_mistake_of_the_user():
    def fail(arguments):
        raise KeyError("forgotten")

    with pytest.raises(KeyError, match="forgotten"):
        status(fail)


def test_commands_get_their_settings_and_their_status_is_returned():
    assert status(lambda config: config.num_samples + 4) == 7
    assert status(lambda config: config.num_samples, "-n", "9") == 9


def test_help_version_and_completion_go_to_standard_output(capsys):
    commands = [command(), command(name="undo")]
    assert main("prog", "What it does.", commands, ["--help"]) == 0
    text = capsys.readouterr().out
    assert "What it does." in text
    assert "undo Trains something." in " ".join(text.split())
    assert main("prog", "What it does.", commands, []) == 2
    assert capsys.readouterr().out == text
    assert main("prog", "What it does.", commands, ["do", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("Trains something.") == 1
    assert "passes over the data (default: 5)" in " ".join(text.replace("│", " ").split())
    assert "--config" in text
    assert main("prog", "What it does.", commands, ["--version"]) == 0
    assert capsys.readouterr().out == f"prog {matterform.__version__}\n"
    assert main("prog", "What it does.", commands, ["--print-completion", "bash"]) == 0
    assert "undo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["redo"], "unknown command 'redo'; did you mean do?"),
        (["xyz"], "unknown command 'xyz'; the commands are do, undo"),
        (["do", "--run-dir", "x", "--epoch-s", "3"], "unknown flag --epoch-s; did you mean --epochs?"),
        (["do", "--epochs", "3"], "--run-dir must be given; see `prog do --help`"),
        (["do", "--run-dir", "x", "--epochs", "three"], "--epochs: invalid literal for int() with base 10: 'three'"),
        (["do", "--run-dir"], "--run-dir needs a value; see `prog do --help`"),
        (["do", "--run-dir", "x", "--epochs", "0"], "epochs must be at least 1; got 0"),
        (
            ["do", "--run-dir", "x", "--kind", "adamww"],
            "--kind must be one of adam, adamw; got 'adamww'; did you mean adamw?",
        ),
        (["do", "--run-dir", "x", "y"], "unexpected 'y'; `prog do --help` lists the flags"),
        (["do", "--n-workers", "4"], "--n-workers: not needed here: one process uses all devices"),
    ],
)
def test_mistakes_are_one_readable_line(argv, line, capsys):
    assert main("prog", "What it does.", [command(), command(name="undo")], argv) == 2
    assert capsys.readouterr() == ("", f"prog: {line}\n")


def test_an_interrupt_says_what_is_safe_and_how_to_go_on(capsys):
    def stop(config):
        with on_interrupt(lambda: f"3 rows are in {config.run_dir}; go on with: {this_command('--resume')}"):
            raise KeyboardInterrupt

    assert status(stop) == 130
    expected = "prog: stopped; 3 rows are in x; go on with: prog do --run-dir x --resume\n"
    assert capsys.readouterr() == ("", expected)

    def interrupt(config):
        raise KeyboardInterrupt

    assert status(interrupt) == 130
    assert capsys.readouterr().err == "prog: stopped\n"


def test_what_is_nested_in_an_interruptible_block_may_know_better():
    with pytest.raises(Interrupted, match="inner"), on_interrupt(lambda: "outer"), on_interrupt(lambda: "inner"):
        raise KeyboardInterrupt


PROGRAM = """
import dataclasses, sys, time
from matterform.arguments import Command
from matterform.commandline import main, on_interrupt, say
@dataclasses.dataclass(frozen=True, kw_only=True)
class Nothing:
    '''Does nothing.'''
def run(arguments):
    with on_interrupt(lambda: 'all is in x'):
        say('begun')
        sys.stdout.flush()
        for _ in range(600):
            time.sleep(0.1)
def fill(arguments):
    for _ in range(100_000):
        say('a line')
    return 0
sys.exit(main('prog', 'd', [Command('run', Nothing, run), Command('fill', Nothing, fill)]))
"""


def test_a_real_interrupt_ends_with_130():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A process that a shell starts in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "prog: stopped; all is in x\n")


def test_a_closed_pipe_ends_quietly():
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, "fill"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert os.read(read, 7) == b"a line\n"
    os.close(read)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


class State(NamedTuple):
    step: int


class Result(NamedTuple):
    state: State
    outcome: str
    best_loss: float | None


def test_the_end_of_a_run_says_what_comes_next(capsys):
    folder = pathlib.Path("runs/one")
    assert report_run("prog", "train", folder, Result(State(12), "finished", 0.25), "model") == 0
    expected = "finished after step 12; lowest validation loss 0.2500; weights in runs/one/model\n"
    assert capsys.readouterr().out == expected
    assert report_run("prog", "train", folder, Result(State(12), "early_stop", None), "model") == 0
    assert capsys.readouterr().out == "early_stop after step 12; weights in runs/one/model\n"
    with pytest.raises(Interrupted, match="prog train --run-dir runs/one --resume"):
        report_run("prog", "train", folder, Result(State(5), "interrupted", None), "model")
