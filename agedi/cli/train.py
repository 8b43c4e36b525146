"""The command `agedi train`."""

import pathlib

from agedi.training.config import TrainConfig, load_train_config
from matterform.commandline import TrainingRun, report_run, say


def run_train(run: TrainingRun) -> int:
    """`agedi train`."""
    from agedi.training.from_settings import train_with

    run.processes.initialize()
    if run.resume and run.config.fit.run_dir is None:
        raise ValueError("--resume needs --run-dir: the folder of the run to go on with")
    result = train_with(run.config, run.config.fit.run_dir if run.resume else None)
    status = report_run("agedi", "train", result.run_dir, result.fit, "checkpoints")
    if result.fit.outcome == "time_limit":
        say(f"to go on: agedi train --run-dir {result.run_dir} --resume --max-minutes MINUTES")
    return status


def load_settings(path: pathlib.Path) -> TrainConfig:
    """Settings from a YAML file, or those of the run in the folder of `path`."""
    if path.exists() or path.name != "config.yaml":
        return load_train_config(path)
    from agedi.training.from_settings import saved_config

    return saved_config(path.parent)
