"""CSV tables: appending rows, writing whole tables, and reading with clear errors.

Files are UTF-8 with one header line. An undefined number (None, NaN) is written as an empty cell, and all other
numbers so that reading them gives the same float64. When reading, only an empty cell counts as missing:
"NaN" is sodium nitride.
"""

import csv
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from matterform.io.files import damage_explained, existing, open_text, write_atomically

if TYPE_CHECKING:
    import pandas as pd

ROWS_PER_CHUNK = 1000


class RowWriter:
    """Appends rows to a CSV file with fixed columns; after `write`, its rows survive a crash of the program.

    A context manager: the file is closed at the end of the `with` block.
    """

    def __init__(self, path: pathlib.Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)
        # One write per line: another process never sees half a row.
        self._file = path.open("a", newline="", encoding="utf-8", buffering=1)
        self._table = csv.writer(self._file, lineterminator="\n")

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Appends rows; missing columns of a row are empty.

        Raises:
            ValueError: a key of a row is not a column.
        """
        for row in rows:
            self._table.writerow(_cells(row, self.columns))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_rows(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    *,
    keep: Callable[[Mapping[str, str]], bool] | None = None,
    replace: bool = False,
) -> RowWriter:
    """Opens a CSV file with these columns for appending rows; missing parent folders are created.

    Args:
        keep: a predicate of a row (cells as text): an existing file is continued with the rows for which it is True; a
            last row that is incomplete after a crash is dropped. None starts a new file.
        replace: whether a new file may replace an existing one.

    Raises:
        ValueError: the file exists without `keep` or `replace`, or a file to continue has other columns.
    """
    path = pathlib.Path(path)
    rows: list[dict[str, str]] = []
    if keep is not None and path.exists():
        rows = [row for row in _complete_rows(path, columns) if keep(row)]
    elif path.exists() and not replace:
        raise ValueError(f"{path} exists already; remove it or choose another name")
    write_table(path, rows, columns)
    return RowWriter(path, columns)


def write_table(
    path: str | os.PathLike[str],
    table: "pd.DataFrame | Iterable[Mapping[str, Any]]",
    columns: Sequence[str] | None = None,
) -> None:
    """Writes a whole table atomically; an existing file is replaced, and NAME.csv.gz is compressed.

    Args:
        table: a pandas table (its index is not written), or rows that map column names to values.
        columns: names and order of the columns; needed for rows, None takes all columns of a pandas table.

    Raises:
        ValueError: rows are given without `columns`, a key of a row is not a column, or `path` is a non-empty folder.
    """
    path = pathlib.Path(path)
    with write_atomically(path) as temporary, open_text(temporary, "w", newline="") as file:
        if hasattr(table, "to_csv"):
            table.to_csv(file, index=False, columns=columns, lineterminator="\n")  # pyright: ignore
        elif columns is not None:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(_cells(row, columns) for row in table)  # pyright: ignore[reportArgumentType]
        else:
            raise ValueError(f"{path}: a table given as rows needs the names of its columns")


def read_rows(path: str | os.PathLike[str], required: Iterable[str] = ()) -> list[dict[str, str]]:
    """Reads all rows of a CSV file (plain or .gz), with cells as text; does not import pandas.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column in `required` is missing, a row has more or fewer cells than the header, or the file is
            empty or damaged.
    """
    path = existing(path)
    with damage_explained(path), open_text(path, newline="") as file:
        try:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
        except csv.Error as error:
            raise ValueError(f"{path} is not a CSV table: {error}") from error
    check_columns(path, header, required)
    rows = [row for row in rows if row]  # blank lines
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {number}: expected {len(header)} cells as in the header; found {len(row)}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_table(path: str | os.PathLike[str], required: Iterable[str] = ()) -> "pd.DataFrame":
    """Reads a CSV file (plain, .gz or .bz2) with pandas; numbers are exact, and only empty cells are missing values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column in `required` is missing, or the file is empty, damaged or no table.
    """
    [table] = _parse(path, required, {})
    return table


def iterate_chunks(
    path: str | os.PathLike[str], required: Iterable[str] = (), *, as_text: bool = False
) -> "Iterator[pd.DataFrame]":
    """`read_table` in chunks of `ROWS_PER_CHUNK` rows, so that the memory does not depend on the size of the file.

    A table without rows gives one chunk without rows. Data types are inferred for each chunk.

    Args:
        as_text: keep all cells as text, "" if they are empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column in `required` is missing, or the file is empty, damaged or no table.
    """
    return _parse(path, required, {"chunksize": ROWS_PER_CHUNK} | ({"dtype": str, "na_values": []} if as_text else {}))


def _parse(
    path: str | os.PathLike[str], required: Iterable[str], options: Mapping[str, Any]
) -> "Iterator[pd.DataFrame]":
    import pandas as pd

    path = existing(path)
    defaults = {
        "keep_default_na": False,
        "na_values": [""],
        "float_precision": "round_trip",  # the default parser is off by one in the last digit
        "encoding_errors": "replace",  # author names in old files
    }
    count = 0
    try:
        with damage_explained(path):
            # Without rows per chunk, data types are inferred from the whole column.
            chunks = pd.read_csv(path, **(defaults | options))  # pyright: ignore
            for chunk in [chunks] if isinstance(chunks, pd.DataFrame) else chunks:
                check_columns(path, list(chunk.columns), required)
                yield chunk
                count += len(chunk)
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty: expected a header line and rows") from error
    except pd.errors.ParserError as error:
        raise ValueError(f"{path} is not a table from row {count} on: {error}") from error


def check_columns(path: str | os.PathLike[str], columns: Sequence[str], required: Iterable[str]) -> None:
    """Checks that a table has the columns in `required`.

    Raises:
        ValueError: `columns` is empty, or a required column is missing.
    """
    if not columns:
        raise ValueError(f"{path} is empty: expected a header line and rows")
    if missing := sorted(set(required) - set(columns)):
        raise ValueError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"its columns are {', '.join(map(str, columns))}"
        )


def _cells(row: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    if unknown := sorted(set(row) - set(columns)):
        raise ValueError(f"expected only the columns {tuple(columns)}; got {unknown} as well")
    return [_cell(row.get(name)) for name in columns]


def _cell(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        # The exact value; a float32 would print fewer digits.
        return "" if np.isnan(value) else float(value)
    return value  # None is written as an empty cell


def _complete_rows(path: pathlib.Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The complete rows of a file whose last row may be incomplete after a crash."""
    rows: list[list[str]] = []
    cut = not path.read_bytes().endswith(b"\n")
    with open_text(path, newline="") as file:
        try:
            for row in csv.reader(file, strict=True):
                rows.append(row)
        except csv.Error:  # the file ends inside quotes; the incomplete row is not in `rows`
            cut = False
    if cut:
        rows = rows[:-1]
    header, rows = (rows[0], rows[1:]) if rows else ([], [])
    if header != list(columns):
        raise ValueError(f"{path} must have the columns {list(columns)} to be continued; found {header}")
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
