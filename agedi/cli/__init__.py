"""The command line `agedi`: train, sample, inpaint, relax, predict, inspect."""

import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

from agedi.cli.inpaint import InpaintArguments, run_inpaint
from agedi.cli.inspect import InspectArguments, run_inspect
from agedi.cli.published import understand
from agedi.cli.relax import PredictArguments, RelaxArguments, run_predict, run_relax
from agedi.cli.sample import SampleArguments, run_sample
from agedi.cli.train import HELP as TRAIN_HELP
from agedi.cli.train import load_settings, run_train
from agedi.training.config import TrainConfig
from agedi.training.published import RENAMED
from matterform.arguments import Command, UsageError
from matterform.commandline import main as run_command

DESCRIPTION = """Score-based diffusion of molecules, crystals and surfaces: positions, species and conditions.

`agedi COMMAND --help` explains a command. Lengths are in angstrom, energies in eV, forces in eV/angstrom."""

TRAIN_ALIASES = {
    **{f"--{name}": f"--{ours}".replace("_", "-") for name, ours in RENAMED.items()},
    **{"-e": "--epochs", "-b": "--batch-size", "-r": "--cutoff", "-m": "--architecture", "-s": "--seed"},
}
ALWAYS_COMPILED = {"--compile": "not needed: sampling is always compiled"}
PERIODIC = {"--non-periodic": "--no-periodic"}
COMMANDS = (
    Command(
        "train",
        TrainConfig,
        run_train,
        TRAIN_ALIASES,
        positional=("--train",),
        training=True,
        help=TRAIN_HELP,
        load=load_settings,
    ),
    Command("sample", SampleArguments, run_sample, PERIODIC, ALWAYS_COMPILED, positional=("--model",)),
    Command("inpaint", InpaintArguments, run_inpaint, {}, ALWAYS_COMPILED, positional=("--model", "--structures")),
    Command("relax", RelaxArguments, run_relax, positional=("--model", "--structures")),
    Command("predict", PredictArguments, run_predict, positional=("--model", "--structures")),
    Command("inspect", InspectArguments, run_inspect, positional=("--model",)),
)


def main(argv: Sequence[str] | None = None, recipes: Mapping[str, Any] = types.MappingProxyType({})) -> int:
    """Runs a command of `agedi`; see `matterform.commandline.main`.

    Args:
        argv: words after `agedi`; by default those of the process.
        recipes: by command, settings that replace the defaults of its dataclass.

    Returns:
        The exit status.
    """
    words = sys.argv[1:] if argv is None else [str(word) for word in argv]
    if words[:1] == ["train-hydra"]:  # deprecated in the published AGeDi, too
        words = ["train", *words[1:]]
    command = next((command for command in COMMANDS if words[:1] == [command.name]), None)
    if command is not None:
        try:
            words = [command.name, *understand(command, words[1:])]
        except UsageError as error:
            sys.stderr.write(f"agedi: {error}\n")
            return 2
    return run_command("agedi", DESCRIPTION, COMMANDS, words, recipes)
