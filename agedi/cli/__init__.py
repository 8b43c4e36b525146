"""The command line `agedi`: train, sample, inpaint, relax, predict, inspect."""

import importlib
from collections.abc import Callable, Sequence

from matterform.commandline_old import dispatch

USAGE = """usage: agedi COMMAND [OPTIONS]

Diffusion of molecules, crystals and surfaces: positions, species, and what they are conditioned on.

commands:
  train      a model from structures, or from a YAML config
  sample     structures: of a formula, in a cell, on a template, with a property
  inpaint    part of a structure drawn anew
  relax      structures with the model's force field
  predict    energies and forces of structures
  inspect    what a model is, and how well it was trained

`agedi COMMAND --help` explains a command. Lengths are in angstrom, energies in eV, forces in eV/angstrom.
"""

MODULES = {
    "train": "train",
    "sample": "sample",
    "inpaint": "sample",
    "relax": "sample",
    "predict": "sample",
    "inspect": "train",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 on success, 2 with one line on standard error where the user can mend it, 130 if stopped."""

    def command(name: str) -> Callable[[Sequence[str]], int]:
        # The command's module is imported only when it runs.
        return lambda rest: getattr(importlib.import_module(f"agedi.cli.{MODULES[name]}"), f"run_{name}")(rest)

    return dispatch("agedi", USAGE, {name: command(name) for name in MODULES}, argv)
