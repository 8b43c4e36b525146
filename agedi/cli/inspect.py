"""The command `agedi inspect`."""

import dataclasses
import pathlib

from agedi.cli.sample import MODEL_NAMES
from matterform.commandline import say
from matterform.config import setting
from matterform.io.tables import read_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Prints the settings of a trained model and the metrics of its checkpoints.

    agedi inspect logs/version_0
    """

    # trained model: a run folder, or checkpoints/best_model or checkpoints/last_model in it
    model: pathlib.Path = setting(dataclasses.MISSING, *MODEL_NAMES)


def run_inspect(arguments: InspectArguments) -> int:
    """Runs `agedi inspect`; returns the exit status.

    Raises:
        FileNotFoundError: the run folder does not exist.
        ValueError: the folder is not a run of AGeDi.
    """
    from agedi.checkpoint import BEST, HPARAMS, LAST, load_hparams, split_checkpoint
    from matterform.training.checkpoint import complete_steps

    run_dir, named = split_checkpoint(arguments.model)
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
    """The last value of every metric up to `step`, from the metrics.csv of a run; {} if there is no such file."""
    found: dict[str, float] = {}
    if path.is_file():
        for row in read_rows(path, ["step"]):
            if int(row["step"]) <= step:
                found |= {name: float(value) for name, value in row.items() if name != "step" and value}
    return found
