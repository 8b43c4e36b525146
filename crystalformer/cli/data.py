"""The commands for existing crystals: `crystalformer prepare` and `crystalformer score`."""

import dataclasses
import pathlib
import sys

import tyro

from crystalformer.config import WeightsConfig
from matterform.arguments import OUT_NAMES, Command, Out
from matterform.commandline import on_interrupt, say, this_command
from matterform.config import setting
from matterform.progress import progress_bar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Converts a CSV of crystals (a `cif` or `structure` column, .gz or not) into sequences for training.

    Writes one memory-mapped array per field, the numeric columns, and refused.csv with the reason for each refused row.
    """

    table: tyro.conf.Positional[pathlib.Path]  # CSV of crystals, .gz or not
    out: Out = setting(dataclasses.MISSING, *OUT_NAMES)  # new folder for the prepared data set
    n_max: int = 21  # number of slots for sites; a crystal has at most n_max - 1 sites
    workers: int = 1  # number of processes that convert crystals
    column: str | None = None  # name of the column with CIFs; by default cif or structure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Writes the log-probabilities of crystals (CSV, CIF file or folder, extxyz, traj or LMDB) to a table."""

    structures: tyro.conf.Positional[pathlib.Path]  # crystals of any format
    out: Out = setting(pathlib.Path("scores.csv"), *OUT_NAMES)  # CSV table to write
    workers: int = 1  # number of processes that read a CSV
    weights: WeightsConfig = WeightsConfig()


def run_prepare(arguments: Prepare) -> int:
    """Converts a table of crystals into a prepared data set.

    Raises:
        ValueError: as for `crystalformer.data.dataset.prepare`.
    """
    from crystalformer.data.dataset import prepare

    start_again = f"no folder was written; start again with: {this_command()}"
    with on_interrupt(lambda: start_again), progress_bar("reading crystals") as progress:
        summary = prepare(
            arguments.table,
            arguments.out,
            n_max=arguments.n_max,
            workers=arguments.workers,
            column=arguments.column,
            progress=progress,
        )
    say(f"{summary.accepted} crystals in {arguments.out}; {len(summary.refused)} rows refused, see refused.csv there")
    return 0


def run_score(arguments: Score) -> int:
    """Reads crystals of any format and writes their log-probabilities; lists the crystals that are refused.

    Raises:
        ValueError: no crystal could be scored.
    """
    from crystalformer.checkpoint.pretrained import load_model
    from crystalformer.data.convert import read_any
    from crystalformer.loss import log_prob
    from crystalformer.table import TableWriter, table_rows

    checkpoint = load_model(arguments.weights)
    crystals, places, refused = read_any(arguments.structures, n_max=checkpoint.config.n_max, workers=arguments.workers)
    for row, reason in refused.items():
        sys.stderr.write(f"crystalformer: {arguments.structures}, structure {row} refused: {reason}\n")
    if not len(crystals.G):
        raise ValueError(f"{arguments.structures} holds no crystal that could be scored")
    table = TableWriter(arguments.out)
    table.write(table_rows(crystals, log_prob(checkpoint.params, checkpoint.config, crystals), places))
    rows = table.finish()
    mean = sum(row["logp"] for row in rows) / len(rows)
    say(f"{len(rows)} crystals scored, mean log-probability {mean:.3f}; {len(refused)} refused; table: {arguments.out}")
    return 0


COMMANDS = (
    Command("prepare", Prepare, run_prepare, positional=("", "--out")),
    Command("score", Score, run_score),
)
