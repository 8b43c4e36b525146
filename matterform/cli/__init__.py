"""The command line `matterform`: hull, references, above-hull, evaluate, plot."""

from collections.abc import Sequence

from matterform import commandline
from matterform.arguments import Command
from matterform.cli.evaluate import EvaluateArguments, run_evaluate
from matterform.cli.hull import (
    AboveHullArguments,
    HullArguments,
    ReferencesArguments,
    run_above_hull,
    run_hull,
    run_references,
)
from matterform.cli.plot import PlotArguments, run_plot

DESCRIPTION = """Evaluates crystals of any model: CSV with CIFs, CIF files or folders of them, extxyz, traj, LMDB.
Energies are in eV or eV/atom, lengths in angstrom."""

COMMANDS = (
    Command("hull", HullArguments, run_hull, positional=("", "--out")),
    Command("references", ReferencesArguments, run_references),
    Command("above-hull", AboveHullArguments, run_above_hull),
    Command("evaluate", EvaluateArguments, run_evaluate),
    Command("plot", PlotArguments, run_plot),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit statuses are those of `matterform.commandline.main`."""
    return commandline.main("matterform", DESCRIPTION, COMMANDS, argv)
