"""The command line `crystalformer`: prepare, train, sample, score, ppo, dpo."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from crystalformer.cli import data, sample, train
from matterform import commandline

if TYPE_CHECKING:
    from crystalformer.config import TrainConfig
    from crystalformer.rl.config import DpoConfig, PpoConfig

DESCRIPTION = """Crystals by space group: training, sampling, log-probabilities, fine-tuning towards rewards.
Lengths are in angstrom, angles in tables and CIFs in degrees."""

COMMANDS = (*data.COMMANDS, sample.COMMAND, *train.COMMANDS)


def main(argv: Sequence[str] | None = None, recipe: "TrainConfig | PpoConfig | DpoConfig | None" = None) -> int:
    """Runs a command; the exit statuses are those of `matterform.commandline.main`.

    Args:
        recipe: settings that replace the defaults of the command that they belong to: `train`, `ppo` or `dpo`.
    """
    recipes = {command.name: recipe for command in COMMANDS if command.arguments is type(recipe)}
    return commandline.main("crystalformer", DESCRIPTION, COMMANDS, argv, recipes)
