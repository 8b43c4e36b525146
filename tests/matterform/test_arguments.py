"""Arguments of commands: published names, settings from files and recipes, and training runs that go on."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import pytest
import tyro

from matterform.arguments import Command, UsageError, flags_of, parse, translate
from matterform.config import save_config


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


def parsed(*argv: str, recipe: Config | None = None) -> Any:
    return parse(command(training=True), "prog", argv, recipe)


def test_published_names_are_silent_aliases(capsys):
    argv = ["--run_dir", "x", "--lr=0.5", "--n_samples", "7", "--restore_path", "w", "--remove_radioactive"]
    run = parse(command(), "prog", argv)
    assert run == Config(
        run_dir=pathlib.Path("x"),
        num_samples=7,
        model=pathlib.Path("w"),
        radioactive=False,
        optimizer=Optimizer(learning_rate=0.5),
    )
    assert capsys.readouterr() == ("", "")


def test_words_after_the_command_stand_for_flags():
    assert translate(command(), ["weights", "--run-dir", "x"]) == ["--model", "weights", "--run-dir", "x"]
    assert translate(command(), ["--run-dir", "x", "weights"]) == ["--run-dir", "x", "weights"]


def test_flags_are_listed_with_their_aliases():
    found = {flag.name: (flag.shown, flag.silent) for flag in flags_of(Config)}
    assert found["--num-samples"] == (("-n",), ("--n-samples",))
    assert found["--learning-rate"] == ((), ("--lr",))
    assert len(found) == 7


def test_flags_override_a_saved_config_which_overrides_a_recipe(tmp_path):
    recipe = Config(run_dir=tmp_path / "recipe", epochs=7, optimizer=Optimizer(learning_rate=0.7))
    assert parsed(recipe=recipe).config == recipe
    assert parsed("--epochs", "8", recipe=recipe).config == dataclasses.replace(recipe, epochs=8)
    saved = Config(run_dir=tmp_path / "saved", epochs=3, optimizer=Optimizer(learning_rate=0.3))
    save_config(saved, tmp_path / "config.yaml")
    flags = ["--config", str(tmp_path / "config.yaml"), "--lr", "0.9"]
    expected = dataclasses.replace(saved, optimizer=Optimizer(learning_rate=0.9))
    assert parsed(*flags).config == parsed(*flags, recipe=recipe).config == expected
    assert parse(command(), "prog", flags) == expected  # a command that trains nothing has --config as well


@pytest.mark.parametrize("flag", ["--run-dir", "--run_dir"])
def test_resuming_needs_only_the_run_folder(tmp_path, flag):
    saved = Config(run_dir=tmp_path, epochs=3)
    save_config(saved, tmp_path / "config.yaml")
    found = parsed(flag, str(tmp_path), "--resume", "--epochs", "9")
    assert (found.config, found.resume) == (dataclasses.replace(saved, epochs=9), True)
    recipe = Config(run_dir=tmp_path, epochs=7)
    assert parsed("--resume", recipe=recipe).config.epochs == 3
    assert parsed("--run-dir", str(tmp_path)).config.epochs == 5  # a new run does not look there


def test_a_folder_without_a_run_is_named_where_it_is_to_be_resumed(tmp_path):
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        parsed("--run-dir", str(tmp_path), "--resume")
    # A folder that does not exist at all is for the run to report.
    assert parsed("--run-dir", str(tmp_path / "new"), "--resume").config.epochs == 5


def test_a_wrong_saved_config_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("run_dir: x\nepohcs: 3\n")
    with pytest.raises(ValueError, match=r"config\.yaml: unknown key 'epohcs'; did you mean 'epochs'"):
        parsed("--config", str(path))


def test_processes_are_asked_for_by_a_flag_or_a_coordinator():
    assert parsed("--run-dir", "x", "--distributed").processes.distributed
    flags = ["--coordinator", "host:1", "--num-processes", "2", "--process-id", "1"]
    processes = parsed("--run-dir", "x", *flags).processes
    assert (processes.coordinator, processes.num_processes, processes.process_id) == ("host:1", 2, 1)


def test_a_usage_error_is_a_value_error():
    with pytest.raises(UsageError):
        parsed("--nothing")
