"""What both families' command lines do with arguments, mistakes, saved configs and recipes."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import pytest

from matterform.commandline import dispatch, parse, parse_run, report_run
from matterform.config import save_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What learns."""

    rate: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    run_dir: pathlib.Path
    epochs: int = 5
    optimizer: Optimizer = Optimizer()

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1; got {self.epochs}")


def parsed(*argv: str, recipe: Config | None = None) -> Any:
    return parse_run(Config, "prog train", "Trains.", argv, recipe)


@pytest.mark.parametrize(
    "error", [ValueError("bad\n  value"), FileNotFoundError("bad value"), ImportError("bad value")], ids=repr
)
def test_what_the_user_can_mend_is_one_line_and_status_2(error, capsys):
    def fail(rest):
        raise error

    assert dispatch("prog", "usage", {"do": fail}, ["do"]) == 2
    assert capsys.readouterr() == ("", "prog: bad value\n")


def test_a_fault_of_ours_is_no_mistake_of_the_user():
    def fail(rest):
        raise KeyError("forgotten")

    with pytest.raises(KeyError, match="forgotten"):
        dispatch("prog", "usage", {"do": fail}, ["do"])


def test_commands_get_the_rest_and_their_status_is_returned(capsys):
    assert dispatch("prog", "usage", {"do": len}, ["do", "a", "b", "c"]) == 3
    assert dispatch("prog", "usage", {"do": lambda rest: 7}, ["do"]) == 7

    def stop(rest):
        raise KeyboardInterrupt

    assert dispatch("prog", "usage", {"do": stop}, ["do"]) == 130
    assert capsys.readouterr().err == "prog: stopped\n"


def test_without_a_command_the_usage_is_shown(capsys):
    assert dispatch("prog", "usage", {}, ["--help"]) == 0
    assert dispatch("prog", "usage", {}, []) == 2
    assert capsys.readouterr().out == "usage" * 2
    assert dispatch("prog", "usage", {"do": len, "undo": len}, ["redo"]) == 2
    assert capsys.readouterr().err == "prog: unknown command 'redo'; the commands are do, undo\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--run-dir", "x", "--epoch-s", "3"], "--epoch-s"),
        (["--epochs", "3"], "--run-dir"),
        (["--run-dir", "x", "--epochs", "three"], "--epochs"),
        (["--run-dir"], "--run-dir"),
    ],
)
def test_wrong_flags_are_named_in_one_line(argv, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse(Config, "prog", argv)
    assert "\n" not in str(caught.value)
    assert not set(str(caught.value)) & set("│╭╮╰╯")


def test_nested_fields_are_flags_of_their_own_name():
    found = parse(Config, "prog", ["--run-dir", "x", "--rate", "0.5"])
    assert found == Config(run_dir=pathlib.Path("x"), optimizer=Optimizer(rate=0.5))


def test_flags_override_a_saved_config_which_overrides_a_recipe(tmp_path):
    recipe = Config(run_dir=tmp_path / "recipe", epochs=7, optimizer=Optimizer(rate=0.7))
    assert parsed(recipe=recipe).run == recipe
    assert parsed("--epochs", "8", recipe=recipe).run == dataclasses.replace(recipe, epochs=8)
    saved = Config(run_dir=tmp_path / "saved", epochs=3, optimizer=Optimizer(rate=0.3))
    save_config(saved, tmp_path / "config.yaml")
    flags = ["--config", str(tmp_path / "config.yaml"), "--rate", "0.9"]
    expected = dataclasses.replace(saved, optimizer=Optimizer(rate=0.9))
    assert parsed(*flags).run == parsed(*flags, recipe=recipe).run == expected


@pytest.mark.parametrize("flag", ["--run-dir", "--run_dir"])
def test_resuming_needs_only_the_run_folder(tmp_path, flag):
    saved = Config(run_dir=tmp_path, epochs=3)
    save_config(saved, tmp_path / "config.yaml")
    found = parsed(flag, str(tmp_path), "--resume", "--epochs", "9")
    assert (found.run, found.resume, found.processes) == (dataclasses.replace(saved, epochs=9), True, None)
    recipe = Config(run_dir=tmp_path, epochs=7)
    assert parsed("--resume", recipe=recipe).run.epochs == 3
    assert parsed("--run-dir", str(tmp_path)).run.epochs == 5  # a new run does not look there


def test_a_folder_without_a_run_is_named_where_it_is_to_be_resumed(tmp_path):
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        parsed("--run-dir", str(tmp_path), "--resume")
    # A folder that is not there at all is for the run to complain about.
    assert parsed("--run-dir", str(tmp_path / "new"), "--resume").run.epochs == 5


def test_a_wrong_saved_config_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("run_dir: x\nepohcs: 3\n")
    with pytest.raises(ValueError, match=r"config\.yaml: unknown key 'epohcs'; did you mean 'epochs'"):
        parsed("--config", str(path))


def test_impossible_values_are_refused_like_wrong_flags():
    with pytest.raises(ValueError, match="epochs must be at least 1; got 0"):
        parsed("--run-dir", "x", "--epochs", "0")


def test_processes_are_asked_for_by_a_flag_or_a_coordinator():
    assert parsed("--run-dir", "x", "--distributed").processes == (None, None, None)
    flags = ["--coordinator", "host:1", "--num-processes", "2", "--process-id", "1"]
    assert parsed("--run-dir", "x", *flags).processes == ("host:1", 2, 1)


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
    assert report_run("prog", "train", folder, Result(State(5), "interrupted", None), "model") == 130
    assert "prog train --run-dir runs/one --resume" in capsys.readouterr().out
