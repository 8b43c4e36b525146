"""The commands `agedi train` and `agedi inspect`."""

import argparse
import csv
import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from agedi.checkpoint import BEST, HPARAMS, LAST, load_hparams, split_checkpoint
from agedi.training.config import FitConfig, TrainConfig, train_config
from agedi.training.run import load_run
from matterform.commandline_old import parse, say
from matterform.config import load_values, to_dict
from matterform.io.files import existing
from matterform.training.checkpoint import complete_steps

ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
CONSTANTS = {"true": True, "false": False, "none": None, "null": None}
CONFIG_SUFFIXES = (".yaml", ".yml")
APPENDED = ("noisers", "conditioning", "conditioning_type")  # flags that may be repeated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Trains a model from structures in a file, or as a YAML file says.

    The run goes to logs/version_N: hparams.yaml, metrics.csv, TensorBoard events, checkpoints/best_model and
    checkpoints/last_model. Every option can also be given as KEY=VALUE, which wins over a YAML file.

    agedi train molecules.xyz -n Positions -e 200

    agedi train surfaces.traj -n ConfinedCellPositions --mask MaskFixed --confinement 8 14 --force_field -t 60

    agedi train config.yaml epochs=100 lr=3e-4

    agedi train --checkpoint logs/version_0 -t 60
    """

    # A file of structures, or a YAML file of options.
    input: tyro.conf.Positional[pathlib.Path | None] = None
    noisers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-n"]), tyro.conf.UseAppendAction] = ()
    """Positions, CellPositions (without any given), ConfinedCellPositions, Types; repeated or joined by commas."""
    model: Annotated[Literal["PaiNN"], tyro.conf.arg(aliases=["-m"])] = "PaiNN"
    cutoff: Annotated[float | None, tyro.conf.arg(aliases=["-r"])] = None
    """Å; 6 by default."""
    feature_size: Annotated[int, tyro.conf.arg(aliases=["-f"])] = 64
    conditioning: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-c"]), tyro.conf.UseAppendAction] = ()
    """Names of properties; repeated or joined by commas."""
    conditioning_type: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """scalar, integer or node: one for all properties, or one each."""
    epochs: Annotated[int, tyro.conf.arg(aliases=["-e"])] = -1
    """-1: until the time is up."""
    max_time: Annotated[float | None, tyro.conf.arg(aliases=["-T"])] = 0.0
    """Hours, added to the minutes; both 0: no limit."""
    max_time_minutes: Annotated[float, tyro.conf.arg(aliases=["-t"])] = 5.0
    """Minutes."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 64


def run_train(argv: Sequence[str]) -> int:
    """Trains; 130 where it was interrupted."""
    from agedi.training.train import train_from_options

    flags, assigned = split_assignments(argv)
    options, given = parse_options(flags, assigned)
    result = train_from_options(options, given)
    go_on = f"go on with: agedi train --checkpoint {result.run_dir}"
    if result.fit.outcome == "interrupted":
        say(f"stopped and saved; {go_on}")
        return 130
    ended = {"finished": "finished", "time_limit": "time is up", "early_stop": "stopped early"}[result.fit.outcome]
    loss = result.fit.best_loss
    best = "" if loss is None else f"; lowest validation loss {loss:.4f} at step {result.fit.best_step}"
    say(f"{ended} after step {int(result.fit.state.step)}{best}; model in {result.run_dir}")
    if result.fit.outcome == "time_limit":
        say(go_on)
    return 0


def parse_options(flags: Sequence[str], assigned: dict[str, Any]) -> tuple[TrainConfig, set[str]]:
    """The options that flags and assignments give, over those of a YAML file or of a run; and which they change."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--checkpoint", type=pathlib.Path, nargs="?")  # without a value it is for tyro to complain
    checkpoint = early.parse_known_args(flags)[0].checkpoint or assigned.get("checkpoint")
    configs = [flag for flag in flags if not flag.startswith("-") and flag.lower().endswith(CONFIG_SUFFIXES)]
    before: dict[str, Any] = {}
    if checkpoint is not None:
        run = load_run(split_checkpoint(checkpoint)[0])
        before = to_dict(run.training) | to_dict(run.data)
    elif configs:
        before = {"max_time": FitConfig.max_time, "max_time_minutes": 0.0} | load_values(existing(configs[0]))
    start = Train(**{name: getattr(train_config(before), name) for name in before})
    appended = {name: getattr(start, name) for name in APPENDED}
    arguments = parse(Train, "agedi train", flags, dataclasses.replace(start, **dict.fromkeys(APPENDED, ())))
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrainConfig)}
    for name, former in appended.items():
        values[name] = values[name] or former or getattr(TrainConfig, name)
    if arguments.input is not None and not configs:
        values["data_path"] = arguments.input
    changed = {name for name in values if name not in APPENDED and values[name] != getattr(start, name)}
    given = changed | {name for name in APPENDED if getattr(arguments, name)} | set(assigned)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return train_config(plain | assigned), given - {"checkpoint"}


def split_assignments(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments without KEY=VALUE, and the values of those."""
    flags, assigned = [], {}
    for argument in argv:
        found = ASSIGNMENT.fullmatch(argument)
        if found is None:
            flags.append(argument)
        else:
            assigned[found[1]] = coerce(found[2])
    return flags, assigned


def coerce(text: str) -> Any:
    """A truth value, none, a number, numbers joined by commas, or else the text itself."""
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    parts = [_number(part) for part in text.split(",")]
    if any(isinstance(part, str) for part in parts):
        return text
    return parts if len(parts) > 1 else parts[0]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect:
    """Prints what a trained model is and the metrics of its checkpoints.

    agedi inspect logs/version_0
    """

    path: tyro.conf.Positional[pathlib.Path]  # a run's folder, or a checkpoint in it


def run_inspect(argv: Sequence[str]) -> int:
    """Prints hparams.yaml and the metrics of the checkpoints."""
    run_dir, named = split_checkpoint(parse(Inspect, "agedi inspect", argv).path)
    load_hparams(run_dir)
    say((run_dir / HPARAMS).read_text(encoding="utf-8").rstrip())
    for kind in (BEST, LAST) if named is None else (named,):
        steps = complete_steps(run_dir / "checkpoints" / kind)
        if not steps:
            say(f"\n{kind}: none")
            continue
        say(f"\n{kind}: step {steps[-1]}")
        for name, value in metrics_at(run_dir / "metrics.csv", steps[-1]).items():
            say(f"  {name:<28} {value:.6g}")
    return 0


def metrics_at(path: pathlib.Path, step: int) -> dict[str, float]:
    """The last value of every metric up to a step."""
    found: dict[str, float] = {}
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if int(row["step"]) <= step:
                    found |= {name: float(value) for name, value in row.items() if name != "step" and value}
    return found
