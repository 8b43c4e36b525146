"""The stability commands: `matterform hull`, `references` and `above-hull`."""

import dataclasses
import itertools
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tyro

from matterform.arguments import OUT_NAMES, Out
from matterform.cli.crystals import number_column, read_crystals
from matterform.commandline import on_interrupt, say, this_command
from matterform.config import setting
from matterform.potentials.config import PotentialConfig
from matterform.potentials.open import open_potential
from matterform.progress import progress_bar

if TYPE_CHECKING:
    from matterform.io.formats import CrystalRecord
    from matterform.stability.above_hull import Stability


@dataclasses.dataclass(frozen=True, kw_only=True)
class HullArguments:
    """Converts reference entries to a compact folder, which opens instantly and is shared between processes.

    Computed entries (Alexandria's convex_hull_pbe_*.json.bz2, entries of the Materials Project, or a folder of such
    JSON files) give a hull of total energies, including their corrections. A CSV with the column
    formation_energy_per_atom and formulas (pretty_formula, formula, or those in cif) gives a hull of formation
    energies, with the elements at zero.

    matterform hull convex_hull_pbe_2024.12.15.json.bz2 hulls/alexandria
    """

    source: tyro.conf.Positional[pathlib.Path]  # entries as .json or .csv (plain, .gz or .bz2), or a folder of JSON
    out: Out = setting(dataclasses.MISSING, *OUT_NAMES)  # new folder for the converted entries


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferencesArguments:
    """Fits a potential's reference energies of the elements to known formation energies, by least squares.

    They are needed to compare a potential with a hull of formation energies. Prints the residual and its largest
    contributions.

    matterform references mp_20.csv --out references.json --mlff-model chgnet
    """

    table: tyro.conf.Positional[pathlib.Path]  # crystals with formation energies: CSV, or extxyz with info
    out: Out = setting(pathlib.Path("references.json"), *OUT_NAMES)  # JSON file to write
    column: str = "formation_energy_per_atom"  # name of the column with formation energies (eV/atom)
    limit: int | None = None  # number of crystals to use, from the start of the table; by default all
    potential: PotentialConfig = PotentialConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AboveHullArguments:
    """Writes a table of energies above the hull chunk by chunk; crystals without an energy are listed with the reason.

    The column cif contains the crystal that was evaluated: as given, or relaxed.

    The Materials Project's corrections of 2020 are added to the energies unless the potential includes them already
    (CHGNet does; for others use --mlff-corrected). References must be those of the same potential.

    matterform above-hull samples/samples.csv --hull hulls/alexandria --mlff-model orb --mlff-path orb-v2.ckpt
    """

    structures: tyro.conf.Positional[pathlib.Path]  # crystals: CSV with CIFs, CIF files or a folder, extxyz, traj, LMDB
    hull: pathlib.Path  # folder written by `matterform hull`, or a file of entries, which opens more slowly
    references: pathlib.Path | None = None  # JSON of `matterform references`, for a hull of formation energies
    relax_steps: int = 0  # largest number of relaxation steps of atoms and cell; 0 evaluates crystals as given
    out: Out = setting(pathlib.Path("above_hull.csv"), *OUT_NAMES)  # CSV table to write
    resume: bool = False  # continue the table of an interrupted command with the same arguments
    # Number of crystals that are evaluated, and whose rows are written, together.
    batch_size: int = setting(200, "chunk_size")
    potential: PotentialConfig = PotentialConfig()


def run_hull(arguments: HullArguments) -> int:
    """Converts reference entries to a folder that opens instantly.

    Raises:
        ValueError: as for `index_hull`.
    """
    from matterform.stability.hull_files import index_hull

    start_again = f"no folder was written; start again with: {this_command()}"
    with on_interrupt(lambda: start_again), progress_bar("reading entries") as progress:
        entries = index_hull(arguments.source, arguments.out, progress)
    say(f"{entries.count} entries of {len(entries.energies)} compositions in {len(entries.systems)} chemical systems")
    say(f"energies: {entries.kind}; folder: {arguments.out}")
    return 0


def run_references(arguments: ReferencesArguments) -> int:
    """Fits a potential's references, and prints the residual of the fit.

    Raises:
        ValueError: the output file exists, or an input is invalid.
    """
    from matterform.stability.above_hull import fit_potential_references
    from matterform.stability.references import save_references

    if arguments.out.exists():
        raise ValueError(f"{arguments.out} exists already; remove it or choose another name")
    start_again = f"no file was written; start again with: {this_command()}"
    with on_interrupt(lambda: start_again), open_potential(arguments.potential) as potential:
        structures, indices, _ = read_crystals(arguments.table, arguments.limit)
        formation = number_column(structures, arguments.column, arguments.table)
        with progress_bar("energies", len(structures)) as progress:
            fit = fit_potential_references(potential, structures, formation, progress)
    for index, problem in zip(indices, fit.problems, strict=True):
        if problem:
            sys.stderr.write(f"matterform: structure {index} left out: {problem}\n")
    residual = fit.residual
    notes = {
        "table": arguments.table.name,
        "crystals": len(fit.used),
        "residual_rms_ev_per_atom": residual.rms,
        "residual_mean_absolute_ev_per_atom": residual.mean_absolute,
    }
    save_references(fit.references, arguments.out, notes)
    say(f"{len(fit.references.energies)} elements fitted to {len(fit.used)} crystals: {arguments.out}")
    say(f"left over: {residual.rms:.4f} eV/atom rms, {residual.mean_absolute:.4f} on average; the largest:")
    for place, formula, value in residual.largest:
        say(f"  {value:+.3f} eV/atom  {formula} (structure {indices[fit.used[place]]})")
    return 0


TABLE: tuple[str, ...] = (
    "index",
    "formula",
    "num_atoms",
    "energy_per_atom",
    "formation_energy_per_atom",
    "e_above_hull",
    "known_system",
    "relaxation",
    "problem",
    "cif",
)


def run_above_hull(arguments: AboveHullArguments) -> int:
    """Evaluates crystals chunk by chunk and writes each chunk as soon as it is complete.

    Raises:
        ValueError: a setting is invalid, no crystal can be read, the output file exists and `resume` is not set, or
            hull, references and potential cannot be combined.
    """
    from matterform.io.formats import iterate_crystals
    from matterform.io.tables import open_rows
    from matterform.stability import above_hull
    from matterform.stability.hull import open_hull
    from matterform.stability.references import load_references

    if arguments.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {arguments.batch_size}")
    _check_out(arguments)
    hull = open_hull(arguments.hull)
    references = None if arguments.references is None else load_references(arguments.references)
    above_hull.check_references(hull, references)
    totals = _Totals()
    crystals = iterate_crystals(arguments.structures)
    with open_potential(arguments.potential) as potential, progress_bar("crystals") as progress:
        above_hull.check_references(hull, references, potential)
        crystals = _from_first_readable(crystals, arguments.structures)  # without one, no table is written
        with open_rows(arguments.out, TABLE, keep=totals.keep if arguments.resume else None) as table:
            rest = itertools.islice(crystals, totals.count, None)
            with on_interrupt(lambda: f"{totals.count} rows are in {arguments.out}; {_how_to_go_on()}"):
                while chunk := list(itertools.islice(rest, arguments.batch_size)):
                    readable = [crystal.structure for crystal in chunk if crystal.structure is not None]
                    stability = above_hull.above_hull(readable, potential, hull, references, arguments.relax_steps)
                    for row in _rows(chunk, stability):
                        table.write(row)
                        totals.add(row)
                    progress(totals.count)
    totals.report(arguments.out)
    return 0


def _how_to_go_on() -> str:
    return f"go on with: {this_command('--resume')}"


def _check_out(arguments: AboveHullArguments) -> None:
    """Checks whether the table is to be started or continued.

    Raises:
        ValueError: the table exists and `resume` is not set, or does not exist and `resume` is set.
    """
    if arguments.out.exists() and not arguments.resume:
        raise ValueError(f"{arguments.out} exists already; give --resume to continue it, or another --out")
    if arguments.resume and not arguments.out.exists():
        raise ValueError(f"{arguments.out} does not exist, so there is nothing to resume; leave out --resume")


class _Totals:
    """Counts for the report at the end of the command."""

    def __init__(self) -> None:
        self._energies: list[float] = []
        self._unknown = 0

    @property
    def count(self) -> int:
        """Number of crystals so far."""
        return len(self._energies)

    def keep(self, row: Mapping[str, str]) -> bool:
        """Counts a row of the table that is continued, whose cells are text; returns True, as all rows are kept."""
        energy, known = float(row["e_above_hull"] or "nan"), row["known_system"] == "True"
        self.add({"e_above_hull": energy, "known_system": known})
        return True

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts a row of the table."""
        energy = row.get("e_above_hull", math.nan)
        self._energies.append(energy)
        self._unknown += math.isfinite(energy) and not row["known_system"]

    def report(self, out: pathlib.Path) -> None:
        """Prints how many crystals are stable, and where the table is."""
        import numpy as np

        from matterform.stability.above_hull import stability_shares

        energies = np.array(self._energies)
        known = energies[np.isfinite(energies)]
        shares = stability_shares(energies)
        median = f", median {np.median(known):.3f} eV/atom" if len(known) else ""
        say(f"{self.count} crystals, {len(known)} with an energy above the hull{median}; table: {out}")
        stable, metastable = 100 * shares.stable, 100 * shares.metastable
        say(f"of all: {stable:.1f} % on the hull, {metastable:.1f} % at most 0.1 eV/atom above it")
        if self._unknown:
            say(f"{self._unknown} are in chemical systems without a reference compound of all their elements (column")
            say("known_system is False): any bound crystal counts as stable there")


def _from_first_readable(crystals: "Iterator[CrystalRecord]", path: pathlib.Path) -> "Iterator[CrystalRecord]":
    """Returns the same crystals after checking that at least one can be read.

    Raises:
        ValueError: no crystal can be read.
    """
    start = []
    for crystal in crystals:
        start.append(crystal)
        if crystal.structure is not None:
            return itertools.chain(start, crystals)
    reason = f"; the first: {start[0].reason}" if start else ""
    raise ValueError(f"{path} holds no crystal that could be read{reason}")


def _rows(chunk: "Sequence[CrystalRecord]", stability: "Stability") -> list[dict[str, Any]]:
    """Rows of `TABLE` for the crystals of a chunk; `stability` has an entry for each readable crystal."""
    from matterform.io.formats import to_cif

    rows, place = [], itertools.count()
    for index, structure, problem in chunk:
        if structure is None:
            rows.append({"index": index, "problem": problem})
            continue
        i = next(place)
        row = {
            "index": index,
            "formula": structure.composition.reduced_formula if len(structure) else "",
            "num_atoms": len(structure),
            "energy_per_atom": stability.energy_per_atom[i],
            "formation_energy_per_atom": stability.formation_energy_per_atom[i],
            "e_above_hull": stability.e_above_hull[i],
            "known_system": bool(stability.known_system[i]),
            "problem": stability.problems[i],
        }
        if stability.relaxed is not None and not stability.problems[i]:
            relaxed = stability.relaxed
            structure = relaxed.structures[i]
            state = "converged" if relaxed.converged[i] else relaxed.problems[i] or "under way"
            row["relaxation"] = f"{state} after {relaxed.steps[i]} steps"
        rows.append(row | {"cif": "" if stability.problems[i] else to_cif(structure)})
    return rows
