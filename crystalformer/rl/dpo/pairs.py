"""Preference pairs as data: read from two files row by row, or made from one scored table, best against worst."""

import math
import pathlib
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from crystalformer.data.convert import read_any
from crystalformer.data.crystals import Crystals, iterate_crystals, num_slots, truncate
from crystalformer.data.dataset import open_dataset, open_properties
from crystalformer.rl.config import PairingConfig
from crystalformer.symmetry.wyckoff import symmetry_tables
from crystalformer.table import read_crystal_table
from matterform.io.files import damage_explained, existing, is_compressed

SEQUENCE_COLUMNS = frozenset(("G", "L", "X", "A", "W", "M"))  # what makes a CSV a table of `sample` or `score`
INDEX_COLUMN, PROBLEM_COLUMN = "index", "problem"


class Pairs(NamedTuple):
    """Crystals of which the first is preferred to the second, row by row; all have the same number of slots."""

    chosen: Crystals
    rejected: Crystals


class PairData(NamedTuple):
    """Pairs, the rows of their files that they come from, and why other rows give none."""

    pairs: Pairs
    rows: Int[np.ndarray, "p 2"]  # of the chosen and of the rejected crystal
    refused: dict[int, str]  # {row: reason}


class Rows(NamedTuple):
    """Crystals of a file, the number of each one's row, and {row: reason} for the rest."""

    crystals: Crystals
    rows: list[int]  # the column `index` where `indexed`, else counted from 0
    refused: dict[int, str]
    indexed: bool = False


def read_pairs(chosen: pathlib.Path, rejected: pathlib.Path, *, n_max: int = 21, workers: int = 1) -> PairData:
    """Pairs row i of `chosen` with row i of `rejected`: files of any kind with equally many rows.

    The row of a table that `sample` or `score` wrote, sorted by log-probability, is its `index`; two such tables may
    differ in length. A pair is refused where either crystal is, or where the chosen one has no possible cell.

    Raises:
        ValueError: unequal numbers of rows, an index that occurs twice, or no pair at all.
    """
    first = read_rows(chosen, n_max=n_max, workers=workers, possible=True)
    second = read_rows(rejected, n_max=n_max, workers=workers)
    counts = [len(file.rows) + len(file.refused) for file in (first, second)]
    if counts[0] != counts[1] and not (first.indexed and second.indexed):
        raise ValueError(
            f"{chosen} has {counts[0]} rows and {rejected} has {counts[1]}, but row i of one is paired with row i of "
            "the other; give files with equally many rows"
        )
    places = [{row: place for place, row in enumerate(file.rows)} for file in (first, second)]
    both = sorted(places[0].keys() & places[1].keys())
    refused = dict.fromkeys(sorted(places[0].keys() ^ places[1].keys()), "the other file lacks it")
    refused |= {row: f"rejected: {reason}" for row, reason in second.refused.items()}
    refused |= {row: f"chosen: {reason}" for row, reason in first.refused.items()}
    if not both:
        raise ValueError(f"{chosen} and {rejected} give no pair; {_some(refused)}")
    pairs = Pairs(
        *(
            take_crystals(file.crystals, [place[row] for row in both])
            for file, place in zip((first, second), places, strict=True)
        )
    )
    return PairData(pairs, np.stack([both, both], -1), refused)


def pairs_from_scores(path: pathlib.Path, config: PairingConfig, *, n_max: int = 21, workers: int = 1) -> PairData:
    """Pairs from a table of crystals with a column of scores, or from a folder of `prepare` made from one.

    Rows that form no pair for want of a partner are not refused, but have no part in the result.

    Raises:
        ValueError: no such column, or no pair at all.
    """
    if config.score is None:
        raise ValueError(f"{path}: the name of the column of scores is missing; give it as score")
    scores = read_scores(path, config.score)
    crystals, rows, unreadable, _ = read_rows(path, n_max=n_max, workers=workers)
    values = np.array([scores[row] for row in rows], np.float64)
    unscored = {row: f"its {config.score} is not a number" for row, score in scores.items() if not math.isfinite(score)}
    refused = dict(sorted((unreadable | unscored).items()))
    places = np.flatnonzero(np.isfinite(values))
    crystals = take_crystals(crystals, places)
    pairs = best_against_worst(group_keys(crystals, config.group_by), values[places], config)
    if not len(pairs):
        by = f" by {config.score_margin:g} or more" if config.score_margin else ""
        raise ValueError(
            f"{path} gives no pair: of its {len(places)} crystals with {config.score}, no two of one "
            f"{config.group_by} differ{by}; {_some(refused)}"
        )
    chosen, rejected = (take_crystals(crystals, side) for side in pairs.T)
    return PairData(Pairs(chosen, rejected), np.array(rows)[places][pairs], refused)


def best_against_worst(
    groups: Sequence[Hashable], scores: Float[np.ndarray, " n"], config: PairingConfig
) -> Int[np.ndarray, "p 2"]:
    """Which entries form pairs, the better one first; by groups in the order of their first entry, best pair first."""
    scores = -scores if config.lower_is_better else scores
    members: dict[Hashable, list[int]] = {}
    for entry, group in enumerate(groups):
        members.setdefault(group, []).append(entry)
    pairs = []
    for entries in members.values():
        ranked = sorted(entries, key=lambda entry: (-scores[entry], entry))
        count = min(len(ranked) // 2, config.pairs_per_group or len(ranked))
        for better, worse in zip(ranked[:count], ranked[::-1], strict=False):
            difference = scores[better] - scores[worse]
            if difference > 0 and difference >= config.score_margin:
                pairs.append((better, worse))
    return np.array(pairs, np.int64).reshape(-1, 2)


def group_keys(crystals: Crystals, group_by: Literal["formula", "spacegroup"]) -> list[Hashable]:
    """What the crystals of one group have in common: the reduced formula, or the space group."""
    return [
        int(crystal.G) if group_by == "spacegroup" else _reduced_formula(crystal)
        for crystal in iterate_crystals(crystals)
    ]


def read_scores(path: pathlib.Path, column: str) -> dict[int, float]:
    """{row: number} of a column, with the rows of `read_rows`; NaN where a cell holds no number.

    Raises:
        ValueError: there is no such column, or no table.
    """
    if _is_prepared(path):
        properties = open_properties(path)
        if column not in properties:
            raise ValueError(f"{path} has no column {column!r} of numbers; it has {', '.join(properties) or 'none'}")
        return dict(zip(np.load(path / "row.npy").tolist(), properties[column].tolist(), strict=True))
    if ".csv" not in path.suffixes:
        raise ValueError(f"{path} has no columns; expected a CSV, or a folder that `crystalformer prepare` made")
    import pandas as pd

    if column not in (known := _columns(path)):
        raise ValueError(f"{path} has no column {column!r}; its columns are {', '.join(known)}")
    cells = _read_column(path, column)
    values = np.asarray(pd.to_numeric(cells, errors="coerce"), np.float64)
    return dict(zip(_row_numbers(path, len(values)), values.tolist(), strict=True))


def read_rows(path: pathlib.Path, *, n_max: int = 21, workers: int = 1, possible: bool = False) -> Rows:
    """Crystals of a table, a folder that `prepare` made, or a file (or folder of CIFs) of any format.

    Args:
        n_max: slots of each crystal in the result.
        workers: processes that read a CSV of CIFs.
        possible: refuse the rows of a table that have a `problem`, for whose lattice there is no cell.

    Raises:
        ValueError: the file holds no crystals or cannot be read, or a table has one with too many sites.
    """
    path = existing(path)
    if _is_prepared(path):
        return _read_prepared(path, n_max)
    if _is_sequence_table(path):
        return _read_sequences(path, n_max, possible)
    return Rows(*read_any(path, n_max=n_max, workers=workers))


def take_crystals(crystals: Crystals, rows: Sequence[int] | Int[np.ndarray, " k"]) -> Crystals:
    """Some crystals of a batch, in the order of `rows`."""
    index = np.asarray(rows, np.int64)
    return Crystals(*(np.asarray(field)[index] for field in crystals))


def _read_prepared(path: pathlib.Path, n_max: int) -> Rows:
    import pandas as pd

    crystals = Crystals(*(np.array(field) for field in open_dataset(path)))
    longest = int(num_slots(crystals).max(initial=1))
    if longest > n_max:
        raise ValueError(f"{path} needs n_max of at least {longest}; the network has {n_max}")
    table = pd.read_csv(path / "refused.csv", keep_default_na=False)
    refused = dict(zip(table["row"].tolist(), table["reason"].tolist(), strict=True))
    return Rows(_with_slots(crystals, n_max), np.load(path / "row.npy").tolist(), refused)


def _read_sequences(path: pathlib.Path, n_max: int, possible: bool) -> Rows:
    crystals = read_crystal_table(path, n_max)
    numbers = _row_numbers(path, len(crystals.G))
    indexed = INDEX_COLUMN in _columns(path)
    if not possible or PROBLEM_COLUMN not in _columns(path):
        return Rows(crystals, numbers, {}, indexed)
    problems = [str(problem) for problem in _read_column(path, PROBLEM_COLUMN)]
    kept = [place for place, problem in enumerate(problems) if not problem]
    refused = {number: problem for number, problem in zip(numbers, problems, strict=True) if problem}
    return Rows(take_crystals(crystals, kept), [numbers[place] for place in kept], refused, indexed)


def _is_prepared(path: pathlib.Path) -> bool:
    return (path / "meta.json").is_file()


def _is_sequence_table(path: pathlib.Path) -> bool:
    return ".csv" in path.suffixes and not is_compressed(path) and set(_columns(path)) >= SEQUENCE_COLUMNS


def _row_numbers(path: pathlib.Path, count: int) -> list[int]:
    """The numbers of a CSV's rows: the column `index` of a table of sequences, else counted from 0."""
    if not _is_sequence_table(path) or INDEX_COLUMN not in _columns(path):
        return list(range(count))
    cells = [str(cell) for cell in _read_column(path, INDEX_COLUMN)]
    numbers = [int(cell) for cell in cells if cell.isdecimal()]
    if len(set(numbers)) < len(cells):
        raise ValueError(f"{path}: the column index must name each row by another whole number; found {cells[:5]} ...")
    return numbers


def _columns(path: pathlib.Path) -> list[str]:
    return [str(name) for name in _read_csv(path, nrows=0).columns]


def _read_column(path: pathlib.Path, column: str) -> Any:
    return _read_csv(path, usecols=[column])[column]


def _read_csv(path: pathlib.Path, **options: Any) -> Any:
    """A part of a CSV as text, where an empty cell is "" and "NaN" a formula."""
    import pandas as pd

    compression = "gzip" if is_compressed(path) else None
    try:
        with damage_explained(path):
            return pd.read_csv(path, dtype=str, keep_default_na=False, compression=compression, **options)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is no table: {error}") from error


def _with_slots(crystals: Crystals, n: int) -> Crystals:
    """The crystals with `n` slots each, which must hold them."""
    missing = n - crystals.W.shape[1]
    if missing <= 0:
        return truncate(crystals, n)
    slots = np.array([(0, 0), (0, missing), (0, 0)])
    return crystals._replace(
        XYZ=np.pad(crystals.XYZ, slots), A=np.pad(crystals.A, slots[:2]), W=np.pad(crystals.W, slots[:2])
    )


def _reduced_formula(crystal: Crystals) -> tuple[tuple[int, int], ...]:
    """(atomic number, count) of each element, counts without a common divisor."""
    multiplicity = symmetry_tables().multiplicity[crystal.G - 1, crystal.W]
    counts = np.bincount(crystal.A, weights=multiplicity).astype(np.int64)
    present = np.flatnonzero(counts)
    divisor = math.gcd(*counts[present].tolist())
    return tuple((int(number), int(counts[number]) // divisor) for number in present)


def _some(refused: dict[int, str]) -> str:
    if not refused:
        return "none of its rows was refused"
    row, reason = next(iter(refused.items()))
    return f"{len(refused)} rows were refused, the first is row {row}: {reason}"
