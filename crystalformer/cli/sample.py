"""The command `crystalformer sample`."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from crystalformer.cli.train import FROM_WEIGHTS
from crystalformer.config import WeightsConfig
from crystalformer.sampling.config import McmcConfig, SamplingConfig
from matterform.arguments import OUT_NAMES, Command, Out
from matterform.commandline import on_interrupt, say, this_command
from matterform.config import setting
from matterform.progress import progress_bar

if TYPE_CHECKING:
    import numpy as np

    from crystalformer.checkpoint.published import Checkpoint
    from crystalformer.config import TransformerConfig
    from crystalformer.data.crystals import Crystals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Samples crystals; writes samples.csv (sorted by log-probability) and CIFs with their symmetry, chunk by chunk.

    Without --spacegroup and --spacegroups-from, space groups are sampled with the frequencies of the shipped model's
    training set.

    crystalformer sample --out oxides --spacegroup 225 --elements O Mg Al Ti --num-samples 100

    crystalformer sample --out like_mine --spacegroups-from my_crystals.csv --temperature 0.9
    """

    out: Out = setting(pathlib.Path("samples"), *OUT_NAMES)  # folder for samples.csv and cif/
    # Number of crystals to sample.
    num_samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = setting(100, "n_samples")
    resume: bool = False  # continue the folder of an interrupted command with the same arguments
    spacegroup: tuple[int, ...] = ()  # space group numbers (1 to 230), used in turn; by default sampled
    spacegroups_from: pathlib.Path | None = None  # data set (CSV or prepared) whose space group frequencies are used
    letters: tuple[str, ...] = setting((), "wyckoff")  # Wyckoff letters of all sites, in alphabetic order
    elements: tuple[str, ...] = ()  # symbols of the elements allowed on every site; by default all
    constraints: pathlib.Path | None = None  # JSON such as {"atom_mask": [["V"], ["O", "S"]], "constraints": [[0, 2]]}
    radioactive: bool = True  # allow elements without a stable isotope
    noble_gas: bool = True  # allow the noble gases He, Ne, Ar, Kr, Xe, Rn and Og
    seed: int = 42  # random seed; the same seed gives the same crystals for every chunk size
    sampling: SamplingConfig = SamplingConfig()
    mcmc: McmcConfig = McmcConfig()
    weights: WeightsConfig = WeightsConfig()


def run_sample(arguments: Sample) -> int:
    """Samples crystals in chunks and writes each chunk as soon as it is complete.

    Raises:
        ValueError: a setting is invalid, or the output folder contains samples and `resume` is not set.
    """
    from crystalformer.checkpoint.pretrained import load_model
    from crystalformer.table import TableWriter
    from matterform.io.files import existing

    table_path, cif_folder = arguments.out / "samples.csv", arguments.out / "cif"
    if cif_folder.exists() and not arguments.resume:
        raise ValueError(f"{arguments.out} holds samples already; give --resume to continue them, or another --out")
    former = TableWriter(existing(table_path), resume=True) if arguments.resume else None
    moves = _Moves()
    done = 0 if former is None else former.count
    chunks = _draw(arguments, load_model(arguments.weights), done, moves)  # checks everything before it writes
    cif_folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    table = TableWriter(table_path) if former is None else former

    def safe() -> str:
        return f"{table.count} crystals are in {table_path}; go on with: {this_command('--resume')}"

    with on_interrupt(safe), progress_bar("sampling", arguments.num_samples) as progress:
        _write_cifs(cif_folder, table.rows)
        for rows in chunks:
            table.write(rows)
            _write_cifs(cif_folder, rows)
            progress(table.count)
    rows = table.finish()
    seconds = time.monotonic() - start
    impossible = sum(bool(row["problem"]) for row in rows)
    say(f"{len(rows)} crystals in {seconds:.1f} s with compilation, {len({row['formula'] for row in rows})} formulas")
    say(f"table: {table_path}; CIFs: {cif_folder}; {impossible} without a possible cell")
    if moves.proposed:
        say(f"accepted moves of MCMC: {100 * moves.accepted / moves.proposed:.1f} %")
    return 0


@dataclasses.dataclass
class _Moves:
    """Numbers of accepted and proposed Monte Carlo moves so far."""

    accepted: int = 0
    proposed: int = 0


def _draw(arguments: Sample, checkpoint: "Checkpoint", done: int, moves: _Moves) -> "Iterator[list[dict[str, Any]]]":
    """Rows of the table, chunk by chunk, without the `done` first crystals.

    Raises:
        ValueError: the request cannot be met; raised before anything is sampled.
    """
    import jax

    from crystalformer.sampling.constraints import make_constraints, read_constraints
    from crystalformer.sampling.mcmc import refine
    from crystalformer.sampling.sample import sample_chunks

    params, config = checkpoint.params, checkpoint.config
    by_file = {} if arguments.constraints is None else read_constraints(arguments.constraints)
    constraints = make_constraints(
        config,
        letters=arguments.letters,
        elements=arguments.elements,
        no_radioactive=not arguments.radioactive,
        no_noble_gas=not arguments.noble_gas,
        **by_file,
    )
    sample_key, mcmc_key = jax.random.split(jax.random.key(arguments.seed))
    spacegroups = choose_spacegroups(arguments, config)[done:]
    if not len(spacegroups):
        raise ValueError(f"{arguments.out} holds {done} crystals already; give a larger --num-samples to add more")
    chunks = sample_chunks(
        params,
        config,
        sample_key,
        spacegroups,
        constraints=constraints,
        first_index=done,
        sampling=arguments.sampling,
    )

    def refined(crystals: "Crystals", first_index: int) -> "Crystals":
        if not arguments.mcmc.mcmc_sweeps:
            return crystals
        result = refine(
            params,
            config,
            mcmc_key,
            crystals,
            mcmc=arguments.mcmc,
            temperature=arguments.sampling.temperature,
            constraints=constraints,
            first_index=first_index,
        )
        moves.accepted, moves.proposed = moves.accepted + result.accepted, moves.proposed + result.proposed
        return result.crystals

    return _rows_of(checkpoint, chunks, refined, done)


def _rows_of(
    checkpoint: "Checkpoint", chunks: "Iterator[Crystals]", refined: "Callable[[Crystals, int], Crystals]", done: int
) -> "Iterator[list[dict[str, Any]]]":
    from crystalformer.loss import log_prob
    from crystalformer.table import table_rows

    for chunk in chunks:
        crystals = refined(chunk, done)
        indices = range(done, done + len(crystals.G))
        yield table_rows(crystals, log_prob(checkpoint.params, checkpoint.config, crystals), indices)
        done = indices.stop


def choose_spacegroups(arguments: Sample, config: "TransformerConfig") -> "np.ndarray":
    """The space group of every sample: the given ones in turn, or drawn from the frequencies of a data set.

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


def _write_cifs(folder: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CIF for each row that does not have one yet."""
    from matterform.io.files import write_atomically

    for row in rows:
        path = folder / f"{int(row['index']):06d}_{row['formula'].replace(' ', '')}_{row['G']}.cif"
        if row["cif"] and not path.exists():
            with write_atomically(path) as temporary:
                temporary.write_text(row["cif"], encoding="utf-8")


# Flags of the published scripts that are not names of settings.
PUBLISHED = {"--remove_radioactive": "--no-radioactive"}
ANSWERS = {
    "--optimizer": "sampling is a command of its own and needs no optimizer; leave it out",
    "--folder": "results go to the folder that --out names",
    "--test_path": "log-probabilities of given crystals are a command: `crystalformer score FILE --model WEIGHTS`",
    "--use_foriloop": "not needed: the sampler is always one compiled kernel; leave it out",
    "--num_io_process": "not needed: CIFs are written by this process; leave it out",
}

COMMAND = Command("sample", Sample, run_sample, PUBLISHED, ANSWERS | FROM_WEIGHTS, positional=("--model",))
