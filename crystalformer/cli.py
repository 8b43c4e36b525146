"""The command line `crystalformer`: prepare, train, sample, score, and fine-tune by ppo and dpo."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tyro

from crystalformer.config import WeightsConfig
from matterform.commandline_old import dispatch, parse, parse_run, report_run, say
from matterform.progress import progress_bar

if TYPE_CHECKING:
    import numpy as np

    from crystalformer.config import TrainConfig, TransformerConfig
    from crystalformer.rl.config import DpoConfig, PpoConfig

USAGE = """usage: crystalformer COMMAND [OPTIONS]

Crystals by space group: train on them, sample new ones, score them, fine-tune towards what you want.

commands:
  prepare   table of CIFs -> a folder that training opens instantly
  train     fit a model; go on with an interrupted run
  sample    draw new crystals: CIFs, and a table sorted by log-probability
  score     log-probabilities of given crystals
  ppo       fine-tune towards a reward: stability, a property, a function of your own
  dpo       fine-tune on pairs of preferred and rejected crystals

`crystalformer COMMAND --help` explains a command. Lengths are in angstrom, angles in tables and CIFs in degrees.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Converts a CSV of crystals (a `cif` or `structure` column, .gz or not) into sequences for training.

    Writes one memory-mapped array a field, the numeric columns, and refused.csv with the reason for every refused row.
    """

    table: tyro.conf.Positional[pathlib.Path]  # the CSV file
    out: tyro.conf.Positional[pathlib.Path]  # folder to write; it appears whole or not at all
    n_max: int = 21  # slots for sites; a crystal has at most n_max - 1
    workers: int = 1  # processes
    column: str | None = None  # where the CIFs are; by default cif or structure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Draws crystals; writes samples.csv (sorted by log-probability) and CIFs with their symmetry, as they come.

    Without --spacegroup and --spacegroups-from, groups are drawn as often as the shipped model's training set has them.

    crystalformer sample --out oxides --spacegroup 225 --elements O Mg Al Ti --num-samples 100

    crystalformer sample --out like_mine --spacegroups-from my_crystals.csv --temperature 0.9
    """

    out: pathlib.Path = pathlib.Path("samples")  # folder for samples.csv and cif/
    num_samples: int = 100
    spacegroup: tuple[int, ...] = ()  # numbers 1-230, taken in turn
    spacegroups_from: pathlib.Path | None = None  # data set (CSV or prepared) whose groups to draw from
    letters: tuple[str, ...] = ()  # exactly these Wyckoff letters, in this order
    elements: tuple[str, ...] = ()  # symbols allowed on every site
    constraints: pathlib.Path | None = None  # JSON such as {"atom_mask": [["V"], ["O", "S"]], "constraints": [[0, 2]]}
    no_radioactive: bool = False  # leave out elements without a stable isotope
    no_noble_gas: bool = False  # leave out He, Ne, Ar, Kr, Xe, Rn, Og
    temperature: float = 1.0  # below 1 sharpens all draws, above 1 flattens them
    T1: float | None = None  # temperature of the first element
    top_p: float = 1.0  # leave out the unlikely letters, elements and mixture components beyond this probability
    seed: int = 42  # the same seed gives the same crystals, whatever the chunks
    chunk_size: int | None = None  # crystals at a time; by default what fits in 1 GiB
    mcmc: int = 0  # sweeps of Markov chain Monte Carlo over elements and coordinates, with letters kept
    mcmc_width: float = 0.1  # of a coordinate move, as an angle (rad)
    weights: WeightsConfig = WeightsConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Writes the log-probabilities of crystals to a table: CSV, CIF file or folder of CIFs, extxyz, traj, LMDB."""

    structures: tyro.conf.Positional[pathlib.Path]
    out: pathlib.Path = pathlib.Path("scores.csv")
    workers: int = 1  # processes that read a CSV
    weights: WeightsConfig = WeightsConfig()


def main(argv: Sequence[str] | None = None, recipe: "TrainConfig | PpoConfig | DpoConfig | None" = None) -> int:
    """Runs a command; 0 on success, 2 with one line on standard error where the user can mend it, 130 if stopped.

    A `recipe` replaces the defaults of the command that it belongs to: `train`, `ppo` or `dpo`.
    """
    from crystalformer.rl.cli_dpo import run_dpo
    from crystalformer.rl.cli_ppo import run_ppo

    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "prepare": lambda rest: run_prepare(parse(Prepare, "crystalformer prepare", rest)),
        "train": lambda rest: run_train(rest, recipe),
        "sample": lambda rest: run_sample(parse(Sample, "crystalformer sample", rest)),
        "score": lambda rest: run_score(parse(Score, "crystalformer score", rest)),
        "ppo": lambda rest: run_ppo(rest, recipe),
        "dpo": lambda rest: run_dpo(rest, recipe),
    }
    return dispatch("crystalformer", USAGE, commands, argv)


def run_prepare(arguments: Prepare) -> int:
    """Converts a table once, for training to open."""
    from crystalformer.data.dataset import prepare

    with progress_bar("reading crystals") as progress:
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


TRAIN = """Trains a model; the run folder holds config.yaml, metrics.csv, checkpoints/ to resume and published/ to use.

crystalformer train --train mp_20.csv --run-dir runs/mp20 --epochs 500 --learning-rate 1e-3

crystalformer train --run-dir runs/mp20 --resume
"""


def run_train(argv: Sequence[str], recipe: Any = None) -> int:
    """Trains from flags, on top of a saved config or of a `recipe`; or on from where a run was interrupted."""
    from crystalformer.config import TrainConfig
    from crystalformer.training import train
    from matterform.training.mesh import initialize_distributed

    run, resume, processes = parse_run(TrainConfig, "crystalformer train", TRAIN, argv, recipe)
    if processes is not None:
        initialize_distributed(*processes)
    return report_run("crystalformer", "train", run.run_dir, train(run, resume=resume), "published")


def run_sample(arguments: Sample) -> int:
    """Draws crystals in chunks and writes each chunk when it is there."""
    import jax

    from crystalformer.checkpoint.pretrained import load_model
    from crystalformer.loss import log_prob
    from crystalformer.sampling.config import McmcConfig
    from crystalformer.sampling.constraints import make_constraints, read_constraints
    from crystalformer.sampling.mcmc import refine
    from crystalformer.sampling.sample import sample_chunks
    from crystalformer.table import TableWriter, table_rows

    checkpoint = load_model(arguments.weights)
    params, config = checkpoint.params, checkpoint.config
    by_file = {} if arguments.constraints is None else read_constraints(arguments.constraints)
    constraints = make_constraints(
        config,
        letters=arguments.letters,
        elements=arguments.elements,
        no_radioactive=arguments.no_radioactive,
        no_noble_gas=arguments.no_noble_gas,
        **by_file,
    )
    sample_key, mcmc_key = jax.random.split(jax.random.key(arguments.seed))
    chunks = sample_chunks(
        params,
        config,
        sample_key,
        choose_spacegroups(arguments, config),
        temperature=arguments.temperature,
        T1=arguments.T1,
        top_p=arguments.top_p,
        constraints=constraints,
        chunk_size=arguments.chunk_size,
    )
    mcmc = McmcConfig(mcmc_sweeps=arguments.mcmc, mcmc_width=arguments.mcmc_width)
    cif_folder = arguments.out / "cif"
    if cif_folder.exists():
        raise ValueError(f"{arguments.out} holds samples already; give another --out or remove it")
    cif_folder.mkdir(parents=True)
    table = TableWriter(arguments.out / "samples.csv")
    start, done, accepted, proposed = time.monotonic(), 0, 0, 0
    with progress_bar("sampling", arguments.num_samples) as progress:
        for crystals in chunks:
            if arguments.mcmc:
                refined = refine(
                    params,
                    config,
                    mcmc_key,
                    crystals,
                    mcmc=mcmc,
                    temperature=arguments.temperature,
                    constraints=constraints,
                    first_index=done,
                )
                crystals = refined.crystals
                accepted, proposed = accepted + refined.accepted, proposed + refined.proposed
            indices = range(done, done + len(crystals.G))
            rows = table_rows(crystals, log_prob(params, config, crystals), indices)
            table.write(rows)
            _write_cifs(cif_folder, rows)
            done += len(rows)
            progress(done)
    rows = table.finish()
    seconds = time.monotonic() - start
    impossible = sum(bool(row["problem"]) for row in rows)
    say(f"{len(rows)} crystals in {seconds:.1f} s with compilation, {len({row['formula'] for row in rows})} formulas")
    say(f"table: {arguments.out / 'samples.csv'}; CIFs: {cif_folder}; {impossible} without a possible cell")
    if proposed:
        say(f"accepted moves of MCMC: {100 * accepted / proposed:.1f} %")
    return 0


def choose_spacegroups(arguments: Sample, config: "TransformerConfig") -> "np.ndarray":
    """The space group of every sample: those given, in turn, or drawn from a data set's distribution by the seed.

    Raises:
        ValueError: if both are given, or there is nothing to sample.
    """
    import numpy as np

    from crystalformer.checkpoint.pretrained import training_spacegroups
    from crystalformer.data.dataset import load_crystals
    from crystalformer.symmetry.wyckoff import count_spacegroups, draw_spacegroups

    if arguments.num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {arguments.num_samples}")
    if arguments.spacegroup and arguments.spacegroups_from is not None:
        raise ValueError("give --spacegroup or --spacegroups-from, not both")
    if arguments.spacegroup:
        return np.resize(arguments.spacegroup, arguments.num_samples)
    if arguments.spacegroups_from is None:
        counts = training_spacegroups()
    else:
        counts = count_spacegroups(load_crystals(arguments.spacegroups_from, config).G)
    return draw_spacegroups(counts, arguments.num_samples, arguments.seed)


def _write_cifs(folder: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        if row["cif"]:
            name = f"{row['index']:06d}_{row['formula'].replace(' ', '')}_{row['G']}.cif"
            (folder / name).write_text(row["cif"], encoding="utf-8")


def run_score(arguments: Score) -> int:
    """Reads crystals of any format and writes their log-probabilities; refused ones are named."""
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
