"""The command line `matterform`: hull, references, above-hull, evaluate, plot."""

from collections.abc import Sequence

from matterform import commandline
from matterform.arguments import Command
from matterform.cli.evaluate import Evaluate, run_evaluate
from matterform.cli.hull import AboveHull, Hull, References, run_above_hull, run_hull, run_references
from matterform.cli.plot import Plot, run_plot

DESCRIPTION = """Evaluates crystals of any model: CSV with CIFs, CIF files or folders of them, extxyz, traj, LMDB.
Energies are in eV or eV/atom, lengths in angstrom."""

COMMANDS = (
    Command("hull", Hull, run_hull, positional=("", "--out")),
    Command("references", References, run_references),
    Command("above-hull", AboveHull, run_above_hull),
    Command("evaluate", Evaluate, run_evaluate),
    Command("plot", Plot, run_plot),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit statuses are those of `matterform.commandline.main`."""
    return commandline.main("matterform", DESCRIPTION, COMMANDS, argv)
