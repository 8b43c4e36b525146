"""The command line `matterform`: hull, references, above-hull, evaluate."""

import csv
import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import tyro

from matterform.commandline_old import dispatch, parse, say
from matterform.potentials.config import PotentialConfig
from matterform.potentials.open import open_potential
from matterform.progress import progress_bar

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pymatgen.core

    from matterform.io.formats import CrystalRecord
    from matterform.stability.above_hull import Stability

USAGE = """usage: matterform COMMAND [OPTIONS]

Judges crystals of any model: CSV with CIFs, CIF files or folders of them, extxyz, traj, LMDB.

commands:
  hull         a file of reference entries -> a folder that is opened instantly
  references   energies of the elements, so that a potential's energies become energies of formation
  above-hull   energies above the hull of crystals, by a potential, relaxed or not
  evaluate     validity, uniqueness, novelty and more of crystals

`matterform COMMAND --help` explains a command. Energies are in eV or eV/atom, lengths in angstrom.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HullArguments:
    """Reads reference entries once and writes them in a compact form, which processes open instantly and share.

    Computed entries (Alexandria's convex_hull_pbe_*.json.bz2, entries of the Materials Project, or a folder of such
    JSON files) hold total energies, taken with the corrections that they come with. A CSV with a column
    formation_energy_per_atom and formulas (pretty_formula, formula, or those in cif) gives a hull of formation
    energies, with elements at zero.

    matterform hull convex_hull_pbe_2024.12.15.json.bz2 hulls/alexandria
    """

    source: tyro.conf.Positional[pathlib.Path]  # .json or .csv, plain, .gz or .bz2
    out: tyro.conf.Positional[pathlib.Path]  # folder to write; it appears whole or not at all


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferencesArguments:
    """Fits energies of the elements by least squares: potential's energy per atom - energy of formation = their mean.

    Needed to compare a potential with a hull of formation energies. Says what the fit leaves, and where most.

    matterform references mp_20.csv --out references.json --mlff_model chgnet
    """

    table: tyro.conf.Positional[pathlib.Path]  # crystals with their energies of formation: CSV, or extxyz with info
    out: pathlib.Path = pathlib.Path("references.json")
    column: str = "formation_energy_per_atom"  # eV/atom
    limit: int | None = None  # use only the first of them
    potential: PotentialConfig = PotentialConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AboveHullArguments:
    """Writes a table of energies above the hull, as they come; crystals without one are listed with the reason.

    The column cif holds the crystal that an energy is of, as given or relaxed.

    A potential's energies get the Materials Project's corrections of 2020 unless they contain them (CHGNet's do;
    --mlff-corrected says it of others). References must be those of the same potential.

    matterform above-hull samples/samples.csv --hull hulls/alexandria --mlff_model orb --mlff_path orb-v2.ckpt
    """

    structures: tyro.conf.Positional[pathlib.Path]
    hull: pathlib.Path  # folder written by `matterform hull`, or a file of entries (read anew each time)
    references: pathlib.Path | None = None  # JSON of `matterform references`; for a hull of formation energies
    relax_steps: int = 0  # at most so many steps of relaxation, of atoms and cell, before
    out: pathlib.Path = pathlib.Path("above_hull.csv")
    chunk_size: int = 200  # crystals evaluated together, and written when they are done
    potential: PotentialConfig = PotentialConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Writes judged.csv (a row a crystal) and summary.json (shares, with their meaning and protocol).

    matterform evaluate samples/samples.csv --reference mp_20.csv --stability above_hull.csv --out judged
    """

    structures: tyro.conf.Positional[pathlib.Path]
    reference: pathlib.Path | None = None  # crystals, usually the training set, that novel ones must not match
    requested: str | None = None  # column with the space group that each was asked to have
    stability: pathlib.Path | None = (
        None  # table of `matterform above-hull` for the same crystals; with it comes S.U.N.
    )
    composition: bool = False  # whether oxidation states can balance; needs SMACT: matterform[eval]
    out: pathlib.Path = pathlib.Path("judged")  # folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 on success, 2 with one line on standard error where the user can mend it, 130 if stopped."""
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "hull": lambda rest: run_hull(parse(HullArguments, "matterform hull", rest)),
        "references": lambda rest: run_references(parse(ReferencesArguments, "matterform references", rest)),
        "above-hull": lambda rest: run_above_hull(parse(AboveHullArguments, "matterform above-hull", rest)),
        "evaluate": lambda rest: run_evaluate(parse(EvaluateArguments, "matterform evaluate", rest)),
    }
    return dispatch("matterform", USAGE, commands, argv)


def _read_crystals(path: pathlib.Path, limit: int | None = None) -> "Readable":
    """Those that can be read, with their places; the others are named on standard error."""
    from matterform.io.formats import iterate_crystals

    structures, indices, refused = [], [], {}
    with progress_bar(f"reading {path.name}") as progress:
        for crystal in itertools.islice(iterate_crystals(path), limit):
            if crystal.structure is None:
                refused[crystal.index] = crystal.reason
                sys.stderr.write(f"matterform: {path}, structure {crystal.index} refused: {crystal.reason}\n")
            else:
                structures.append(crystal.structure)
                indices.append(crystal.index)
            progress(len(structures) + len(refused))
    if not structures:
        raise ValueError(f"{path} holds no crystal that could be read")
    return Readable(structures, indices, refused)


class Readable(NamedTuple):
    """Crystals of a file, the place of each in it, and {place: reason} for the rest."""

    structures: "list[pymatgen.core.Structure]"
    indices: list[int]
    refused: dict[int, str]


def _column(structures: "Sequence[pymatgen.core.Structure]", name: str, path: pathlib.Path) -> "np.ndarray":
    """Numbers that stand beside the crystals in their file; NaN where there is none."""
    import numpy as np

    known = {key for structure in structures for key in structure.properties}
    if name not in known:
        raise ValueError(f"{path} has no column {name!r}; it has {', '.join(sorted(known)) or 'none'}")
    try:
        return np.array([float(structure.properties.get(name, "nan")) for structure in structures])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: column {name!r} holds more than numbers ({error})") from error


def run_hull(arguments: HullArguments) -> int:
    """Indexes reference entries."""
    from matterform.stability.hull_files import index_hull

    with progress_bar("reading entries") as progress:
        entries = index_hull(arguments.source, arguments.out, progress)
    say(f"{entries.count} entries of {len(entries.energies)} compositions in {len(entries.systems)} chemical systems")
    say(f"energies: {entries.kind}; folder: {arguments.out}")
    return 0


def run_references(arguments: ReferencesArguments) -> int:
    """Fits a potential's references and says how well."""
    from matterform.stability.above_hull import fit_potential_references
    from matterform.stability.references import save_references

    if arguments.out.exists():
        raise ValueError(f"{arguments.out} exists already; remove it or choose another name")
    with open_potential(arguments.potential) as potential:
        structures, indices, _ = _read_crystals(arguments.table, arguments.limit)
        formation = _column(structures, arguments.column, arguments.table)
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
    """Evaluates crystals chunk by chunk and writes each chunk when it is done."""
    import numpy as np

    from matterform.io.formats import iterate_crystals
    from matterform.stability.above_hull import above_hull, check_references, stability_shares
    from matterform.stability.hull import open_hull
    from matterform.stability.references import load_references

    if arguments.chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1; got {arguments.chunk_size}")
    if arguments.out.exists():
        raise ValueError(f"{arguments.out} exists already; remove it or choose another name")
    hull = open_hull(arguments.hull)
    references = None if arguments.references is None else load_references(arguments.references)
    check_references(hull, references)
    crystals = iterate_crystals(arguments.structures)
    values: list[float] = []
    unknown = 0
    with open_potential(arguments.potential) as potential, progress_bar("crystals") as progress:
        check_references(hull, references, potential)
        start = _to_first_readable(crystals, arguments.structures)  # what cannot be read leaves no table
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, TABLE)
            table.writeheader()
            for chunk in _chunks(itertools.chain(start, crystals), arguments.chunk_size):
                readable = [crystal.structure for crystal in chunk if crystal.structure is not None]
                stability = above_hull(readable, potential, hull, references, arguments.relax_steps)
                rows = _rows(chunk, stability)
                table.writerows({name: "" if value != value else value for name, value in row.items()} for row in rows)
                file.flush()
                values += [row.get("e_above_hull", np.nan) for row in rows]
                unknown += int((np.isfinite(stability.e_above_hull) & ~stability.known_system).sum())
                progress(len(values))
    known = np.array(values)[np.isfinite(values)]
    shares = stability_shares(np.array(values))
    middle = f", half of them below {np.median(known):.3f} eV/atom" if len(known) else ""
    say(f"{len(values)} crystals, {len(known)} with an energy above the hull{middle}; table: {arguments.out}")
    say(
        f"of all: {100 * shares.stable:.1f} % on the hull, {100 * shares.metastable:.1f} % at most 0.1 eV/atom above it"
    )
    if unknown:
        say(f"{unknown} in chemical systems of which the hull has no reference with all elements: there, what is bound")
        say("lies on it or below, known to be stable or not; the column known_system tells them apart")
    return 0


def _to_first_readable(crystals: "Iterator[CrystalRecord]", path: pathlib.Path) -> "list[CrystalRecord]":
    start = []
    for crystal in crystals:
        start.append(crystal)
        if crystal.structure is not None:
            return start
    reason = f"; the first: {start[0].reason}" if start else ""
    raise ValueError(f"{path} holds no crystal that could be read{reason}")


def _chunks(crystals: "Iterator[CrystalRecord]", size: int) -> "Iterator[list[CrystalRecord]]":
    while chunk := list(itertools.islice(crystals, size)):
        yield chunk


def _rows(chunk: "Sequence[CrystalRecord]", stability: "Stability") -> list[dict[str, Any]]:
    """Rows of `TABLE` for the crystals of a chunk; `stability` has an entry for each that could be read."""
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


def run_evaluate(arguments: EvaluateArguments) -> int:
    """Judges crystals without a potential."""
    import numpy as np

    from matterform.evaluation.summary import EvaluationConfig, describe, evaluate
    from matterform.io.files import write_atomically

    if arguments.out.exists():
        raise ValueError(f"{arguments.out} exists already; remove it or choose another name")
    structures, indices, refused = _read_crystals(arguments.structures)
    reference = None if arguments.reference is None else _read_crystals(arguments.reference).structures
    requested = None
    if arguments.requested is not None:
        requested = _space_groups(structures, indices, arguments.requested, arguments.structures)
    table, summary = evaluate(structures, requested, reference, EvaluationConfig(composition=arguments.composition))
    table.insert(0, "index", np.array(indices))
    summary["unreadable"] = refused
    if arguments.stability is not None:
        table, summary["stability"] = _with_stability(table, arguments.stability, len(refused))
    with write_atomically(arguments.out) as folder:
        folder.mkdir()
        table.to_csv(folder / "judged.csv", index=False)
        (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    say(describe(summary))
    for name, share in summary.get("stability", {}).items():
        say(f"{100 * share:6.1f} %  {name}")
    say(f"written: {arguments.out / 'judged.csv'} and summary.json")
    return 0


def _space_groups(
    structures: "Sequence[pymatgen.core.Structure]", indices: Sequence[int], name: str, path: pathlib.Path
) -> "np.ndarray":
    import numpy as np

    numbers = _column(structures, name, path)
    if len(wrong := np.flatnonzero(~np.isin(numbers, np.arange(1, 231)))):
        number = numbers[wrong[0]]
        raise ValueError(
            f"{path}, structure {indices[wrong[0]]}: column {name!r} should hold a space group's number, 1 to 230; "
            f"found {'nothing' if np.isnan(number) else format(number, 'g')}"
        )
    return numbers.astype(int)


def _with_stability(
    table: "pd.DataFrame", path: pathlib.Path, num_unreadable: int
) -> "tuple[pd.DataFrame, dict[str, float]]":
    """The table with energies above the hull, and shares over all crystals, those that could not be read included."""
    import numpy as np
    import pandas as pd

    from matterform.io.files import existing
    from matterform.stability.above_hull import stability_shares

    try:
        energies = pd.read_csv(existing(path))
    except ValueError as error:  # pandas' own are of this kind, and do not name the file
        raise ValueError(f"{path} is no table of `matterform above-hull`: {error}") from error
    if not {"index", "e_above_hull"} <= set(energies.columns):
        raise ValueError(f"{path} is no table of `matterform above-hull`: it needs the columns index and e_above_hull")
    if missing := set(table["index"]) - set(energies["index"]):
        raise ValueError(f"{path} is of other crystals: it lacks structure {min(missing)} and {len(missing) - 1} more")
    above = energies.drop_duplicates("index").set_index("index")["e_above_hull"].reindex(table["index"]).to_numpy()
    table = table.assign(e_above_hull=above)

    def padded(values: np.ndarray, nothing: Any) -> np.ndarray:
        return np.append(values, np.full(num_unreadable, nothing))

    novel = padded(table["novel"].to_numpy(bool), False) if "novel" in table else None
    shares = stability_shares(padded(above, np.nan), padded(table["unique"].to_numpy(bool), False), novel)
    return table, {name: share for name, share in shares._asdict().items() if np.isfinite(share)}
