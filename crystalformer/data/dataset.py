"""Data sets of crystals: a table is converted once into a folder of memory-mapped arrays.

A crystal that the model cannot represent is refused with a reason, never truncated.
"""

import contextlib
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from crystalformer.config import TransformerConfig
from crystalformer.data.convert import Progress, check_sizes, iterate_converted, pad_crystals, read_csv
from crystalformer.data.crystals import Crystals, num_slots, truncate
from matterform.io.cif import iterate_csv
from matterform.io.files import appending, write_atomically
from matterform.io.tables import open_rows

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
ID_COLUMN = "material_id"


class Summary(NamedTuple):
    """Contents of a prepared data set: the number of accepted crystals, and {row: reason} for the refused."""

    accepted: int
    refused: dict[int, str]


def prepare(
    path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    n_max: int = TransformerConfig.n_max,
    workers: int = 1,
    column: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Converts a CSV of any length into a folder for `open_dataset`, which is written atomically.

    The folder holds one .npy per field, `row.npy` (the row that each crystal comes from), `properties.npz` (the numeric
    columns), `refused.csv` (row, id, reason) and `meta.json`. The other arguments are those of `read_csv`.

    Raises:
        ValueError: as for `read_csv`; also if no crystal is accepted, or `out_dir` is not empty.
    """
    check_sizes(n_max, workers)
    refused: dict[int, str] = {}
    columns: list[dict[str, Any]] = []
    with write_atomically(out_dir) as folder, contextlib.ExitStack() as stack:
        folder.mkdir()
        empty = [*pad_crystals([], n_max), np.zeros(0, np.int64)]
        names = [*Crystals._fields, "row"]
        files = [
            stack.enter_context(appending(folder / f"{name}.npy", like.dtype, like.shape[1:]))
            for name, like in zip(names, empty, strict=True)
        ]
        table = stack.enter_context(open_rows(folder / "refused.csv", ("row", ID_COLUMN, "reason")))
        for records, chunk in iterate_converted(iterate_csv(path, column), n_max, workers, progress):
            for append, array in zip(files, [*chunk.crystals, np.array(chunk.rows, np.int64)], strict=True):
                append(array)
            by_row = {record.index: record.columns for record in records}
            columns += [by_row[row] for row in chunk.rows]
            for row, reason in chunk.refused.items():
                table.write({"row": row, ID_COLUMN: by_row[row].get(ID_COLUMN), "reason": reason})
            refused |= chunk.refused
        if not columns:
            raise ValueError(f"{path} holds no crystal that could be used; the first refusals: {_some(refused)}")
        np.savez(folder / "properties.npz", allow_pickle=False, **_numeric_columns(columns))
        meta = {"format_version": FORMAT_VERSION, "source": pathlib.Path(path).name, "n_max": n_max}
        counts = {"accepted": len(columns), "refused": len(refused)}
        (folder / "meta.json").write_text(json.dumps(meta | counts, indent=2) + "\n", encoding="utf-8")
    return Summary(len(columns), refused)


def open_dataset(folder: str | os.PathLike[str]) -> Crystals:
    """The crystals that `prepare` wrote, as read-only memory-mapped arrays.

    Raises:
        ValueError: the folder was not written by `prepare`, or by another version of the format.
    """
    _read_meta(folder)
    return Crystals(*(np.load(pathlib.Path(folder, f"{name}.npy"), mmap_mode="r") for name in Crystals._fields))


def load_crystals(path: pathlib.Path, config: TransformerConfig, workers: int = 1) -> Crystals:
    """Reads the crystals of a CSV file or of a folder written by `prepare`.

    Raises:
        ValueError: if no crystal is accepted, or one exceeds the sizes of the network.
    """
    if path.is_dir():
        crystals = open_dataset(path)
    else:
        crystals, refused = read_csv(path, n_max=config.n_max, workers=workers)
        if refused:
            row, reason = next(iter(refused.items()))
            logger.warning("%s: refused %d of its rows; the first is row %d: %s", path, len(refused), row, reason)
    if not len(crystals.G):
        raise ValueError(f"{path} holds no crystal; `crystalformer prepare` lists the reason for every row")
    longest = int(num_slots(crystals).max())
    for name, found, limit in (
        ("n_max", longest, config.n_max),
        ("atom_types", int(crystals.A.max()) + 1, config.atom_types),
        ("wyck_types", int(crystals.W.max()) + 1, config.wyck_types),
    ):
        if found > limit:
            raise ValueError(f"{path} needs {name} of at least {found}; the network has {limit}")
    return truncate(crystals, config.n_max)


def open_properties(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The numeric columns of the table, one value per crystal of `open_dataset`; NaN for empty cells.

    Raises:
        ValueError: the folder was not written by `prepare`, or by another version of the format.
    """
    _read_meta(folder)
    with np.load(pathlib.Path(folder, "properties.npz")) as file:
        return dict(file)


def _numeric_columns(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The columns in which every cell is a number, a Boolean or empty."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if all(isinstance(value, (int, float, np.number, np.bool_)) for value in values):
            columns[str(name)] = np.array(values, np.float64)
    return columns


def _read_meta(folder: str | os.PathLike[str]) -> dict[str, Any]:
    path = pathlib.Path(folder, "meta.json")
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a prepared data set: it has no meta.json; make one with `crystalformer prepare`"
        )
    meta = json.loads(path.read_text(encoding="utf-8"))
    if meta["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{folder}: expected format_version {FORMAT_VERSION}, found {meta['format_version']}; prepare it again"
        )
    return meta


def _some(refused: dict[int, str]) -> str:
    return "; ".join(f"row {row}: {reason}" for row, reason in itertools.islice(refused.items(), 3)) or "none"
