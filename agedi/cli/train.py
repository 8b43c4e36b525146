"""The command `agedi train`."""

import pathlib

from agedi.training.config import TrainConfig, load_train_config
from matterform.arguments import TrainingRun
from matterform.commandline import report_run, say

HELP = """Trains a model on a file of structures, in a new run folder LOG_DIR/version_N.

The run folder has hparams.yaml, metrics.csv, TensorBoard events, and checkpoints/best_model and last_model.
Settings may also come from a YAML file, given by --config or in place of the structures, and as KEY=VALUE. Short
flags: -b --batch-size, -e --epochs, -m --architecture, -r --cutoff, -s --seed.

agedi train molecules.xyz --noisers Positions --epochs 200

agedi train surfaces.traj --noisers ConfinedCellPositions --mask MaskFixed --confinement 8 14 --max-minutes 60

agedi train --run-dir logs/version_0 --resume --max-minutes 60"""


def run_train(run: TrainingRun) -> int:
    """Runs `agedi train`; returns the exit status.

    Raises:
        ValueError: --resume without --run-dir, or as `agedi.train_from_config`.
    """
    from agedi.training.from_settings import train_with
    from matterform.training.mesh import connect

    connect(run.processes)
    if run.resume and run.config.fit.run_dir is None:
        raise ValueError("--resume needs --run-dir: the folder of the run to go on with")
    result = train_with(run.config, run.config.fit.run_dir if run.resume else None)
    status = report_run("agedi", "train", result.run_dir, result.fit, "checkpoints")
    if result.fit.outcome == "time_limit":
        say(f"to go on: agedi train --run-dir {result.run_dir} --resume --max-minutes MINUTES")
    return status


def load_settings(path: pathlib.Path) -> TrainConfig:
    """The settings in a YAML file; for a config.yaml that does not exist, those of the run in its folder."""
    if path.exists() or path.name != "config.yaml":
        return load_train_config(path)
    from agedi.training.from_settings import saved_config

    return saved_config(path.parent)
