"""The command `matterform plot`: learning curves of a run, or a gallery of crystals."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from matterform.arguments import OUT_NAMES
from matterform.commandline import on_interrupt, say, this_command
from matterform.config import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlotArguments:
    """Draws the learning curves of a run folder, or a gallery of crystals with statistics; needs matplotlib.

    matterform plot runs/mp20

    matterform plot samples/samples.csv --out gallery.png
    """

    path: tyro.conf.Positional[pathlib.Path]  # run folder, table of metrics, or crystals of any format
    # Picture to write (.png, .pdf or .svg); by default in the folder of the input.
    out: Annotated[pathlib.Path | None, tyro.conf.arg(aliases=["-o"])] = setting(None, *OUT_NAMES)


def run_plot(arguments: PlotArguments) -> int:
    """Draws a picture and prints its path."""
    from matterform.plots import plot

    with on_interrupt(lambda: f"no picture was written; start again with: {this_command()}"):
        picture = plot(arguments.path, arguments.out)
    say(f"picture: {picture}")
    return 0
