"""Preference pairs: read from two files row by row, or made from one scored table, best against worst."""

import math
import pathlib
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from crystalformer.data.crystals import Crystals, iterate_crystals
from crystalformer.rl.config import PairingConfig
from crystalformer.rl.dpo.rows import read_crystal_rows, read_scores, take_crystals
from crystalformer.symmetry.wyckoff import symmetry_tables


class Pairs(NamedTuple):
    """Two batches of crystals with equal numbers of slots; `chosen[i]` is preferred to `rejected[i]`."""

    chosen: Crystals
    rejected: Crystals


class PairData(NamedTuple):
    """Pairs, the rows of the files that they come from, and the reasons why other rows give none."""

    pairs: Pairs
    rows: Int[np.ndarray, "p 2"]  # of the chosen and of the rejected crystal
    refused: dict[int, str]  # {row: reason}


def read_pairs(chosen: pathlib.Path, rejected: pathlib.Path, *, n_max: int = 21, workers: int = 1) -> PairData:
    """Pairs row i of `chosen` with row i of `rejected`, files of any format with equally many rows.

    Rows of a table that `sample` or `score` wrote are paired by its column `index`, because it is sorted by
    log-probability; two such tables may differ in length. A pair is refused if either crystal is refused, or if the
    chosen crystal has no possible cell.

    Args:
        n_max: slots of each crystal in the result.
        workers: processes that read a CSV of CIFs.

    Raises:
        ValueError: the files have different numbers of rows, an index occurs twice, or there is no pair.
    """
    first = read_crystal_rows(chosen, n_max=n_max, workers=workers, possible=True)
    second = read_crystal_rows(rejected, n_max=n_max, workers=workers)
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
        raise ValueError(f"{chosen} and {rejected} give no pair; {_summary(refused)}")
    pairs = Pairs(
        *(
            take_crystals(file.crystals, [place[row] for row in both])
            for file, place in zip((first, second), places, strict=True)
        )
    )
    return PairData(pairs, np.stack([both, both], -1), refused)


def pairs_from_scores(path: pathlib.Path, config: PairingConfig, *, n_max: int = 21, workers: int = 1) -> PairData:
    """Pairs from a table of crystals with a column of scores, or from a folder that `prepare` made from such a table.

    Rows without a partner are left out, but are not counted as refused.

    Args:
        n_max: slots of each crystal in the result.
        workers: processes that read a CSV of CIFs.

    Raises:
        ValueError: there is no such column, or no pair.
    """
    if config.score is None:
        raise ValueError(f"{path}: the name of the column of scores is missing; give it as score")
    scores = read_scores(path, config.score)
    crystals, rows, unreadable, _ = read_crystal_rows(path, n_max=n_max, workers=workers)
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
            f"{config.group_by} differ{by}; {_summary(refused)}"
        )
    chosen, rejected = (take_crystals(crystals, side) for side in pairs.T)
    return PairData(Pairs(chosen, rejected), np.array(rows)[places][pairs], refused)


def best_against_worst(
    groups: Sequence[Hashable], scores: Float[np.ndarray, " n"], config: PairingConfig
) -> Int[np.ndarray, "p 2"]:
    """Indices of the pairs, the better entry first; groups in the order of their first entry, best pair first."""
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
    """The reduced formula or the space group of each crystal."""
    return [
        int(crystal.G) if group_by == "spacegroup" else _reduced_formula(crystal)
        for crystal in iterate_crystals(crystals)
    ]


def _reduced_formula(crystal: Crystals) -> tuple[tuple[int, int], ...]:
    """(atomic number, count) of each element; the counts have no common divisor."""
    multiplicity = symmetry_tables().multiplicity[crystal.G - 1, crystal.W]
    counts = np.bincount(crystal.A, weights=multiplicity).astype(np.int64)
    present = np.flatnonzero(counts)
    divisor = math.gcd(*counts[present].tolist())
    return tuple((int(number), int(counts[number]) // divisor) for number in present)


def _summary(refused: dict[int, str]) -> str:
    if not refused:
        return "none of its rows was refused"
    row, reason = next(iter(refused.items()))
    return f"{len(refused)} rows were refused, the first is row {row}: {reason}"
