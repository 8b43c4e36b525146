"""Tables of structures in parquet and in the Arrow files of Hugging Face `datasets`, read and written in batches.

The columns are those of `atomformer.data.rows`, arrays as (nested) lists, null if missing. The published sets have
input_ids, coords, forces, formation_energy, has_formation_energy, total_energy and token_type_ids.
"""

import contextlib
import importlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atomformer.data.rows import Row
from matterform.errors import one_line
from matterform.io.files import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 1000
REQUIRED = ("input_ids", "coords")
PER_ATOM_LISTS = {"input_ids": "int32", "token_type_ids": "int32", "fixed": "bool_"}
PER_ATOM_VECTORS = ("coords", "forces", "relaxed_coords")


def iterate_parquet(path: pathlib.Path) -> Iterator[Row]:
    """The rows of a parquet file, unchecked; memory does not grow with the file.

    Raises:
        ValueError: not a parquet file, damaged, or without a required column.
        ModuleNotFoundError: pyarrow is missing (extra `datasets`).
    """
    _require_pyarrow()
    from pyarrow import parquet

    with _damage_explained(path), parquet.ParquetFile(path) as file:
        names = _usable_columns(path, file.schema_arrow)
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=names):
            yield from _rows_of(batch, names)


def iterate_arrow(path: pathlib.Path) -> Iterator[Row]:
    """The rows of an Arrow stream file of Hugging Face `datasets`, memory-mapped; otherwise as `iterate_parquet`.

    Raises:
        ValueError, ModuleNotFoundError: as `iterate_parquet`.
    """
    _require_pyarrow()
    import pyarrow as pa

    with _damage_explained(path), pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
        names = _usable_columns(path, batches.schema)
        for batch in batches:
            yield from _rows_of(batch, names)


def write_parquet(path: str | os.PathLike[str], rows: Iterable[Row]) -> int:
    """Writes checked rows as one parquet file, whole or not at all; returns the number of rows.

    Memory does not grow with that number: each thousand rows are a row group. All known columns are written, and
    `has_formation_energy`; the properties are those of the first row group.

    Raises:
        ValueError: no rows, or a property that first appears after the first row group or changes its type.
        ModuleNotFoundError: pyarrow is missing (extra `datasets`).
    """
    _require_pyarrow()
    from pyarrow import parquet

    rows, count, schema = iter(rows), 0, None
    with write_atomically(path) as temporary, contextlib.ExitStack() as stack:
        writer = None
        while chunk := list(itertools.islice(rows, ROWS_AT_ONCE)):
            if schema is None or writer is None:
                schema = _schema_of(chunk)
                writer = stack.enter_context(parquet.ParquetWriter(temporary, schema))
            writer.write_batch(_batch_of(chunk, schema, count))
            count += len(chunk)
        if count == 0:
            raise ValueError(f"{path}: expected at least one row to write, found none")
    return count


def _rows_of(batch: "pa.RecordBatch", names: Sequence[str]) -> Iterator[Row]:
    columns = [_values(batch.column(name)) for name in names]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _values(column: "pa.Array") -> Sequence[Any]:
    """The entries of a column: arrays for lists, otherwise Python values; None for null."""
    import pyarrow as pa

    if isinstance(column, pa.ExtensionArray):  # fixed shapes of Hugging Face `datasets`
        column = column.storage
    if not _is_list(column.type):
        return column.to_pylist()
    flat, width = column.flatten(), None
    if _is_list(flat.type):
        widths = np.unique(_list_lengths(flat))
        if len(widths) != 1 or flat.null_count or _is_list(flat.type.value_type):
            return column.to_pylist()  # ragged, which check_row reports
        flat, width = flat.flatten(), int(widths[0])
    # One conversion for the whole batch is a hundred times as fast as lists of Python numbers.
    values = flat.to_numpy(zero_copy_only=False)
    values = values if width is None else values.reshape(-1, width)
    ends = np.cumsum(_list_lengths(column))
    present = column.is_valid().to_pylist()
    return [part if is_there else None for part, is_there in zip(np.split(values, ends[:-1]), present, strict=True)]


def _is_list(kind: "pa.DataType") -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _list_lengths(column: "pa.Array") -> np.ndarray:
    from pyarrow import compute

    return compute.call_function("list_value_length", [column]).fill_null(0).to_numpy(zero_copy_only=False)


def _usable_columns(path: pathlib.Path, schema: "pa.Schema") -> list[str]:
    """Names of the columns with numbers, text and lists; others, such as structs and dates, are ignored."""
    if missing := [name for name in REQUIRED if name not in schema.names]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(schema.names) or 'none'}")
    from pyarrow import types

    return [field.name for field in schema if not types.is_nested(field.type) or _is_list(field.type)]


def _schema_of(rows: Sequence[Row]) -> "pa.Schema":
    import pyarrow as pa

    coordinates = pa.list_(pa.list_(pa.float64()))
    known = {name: pa.list_(getattr(pa, kind)()) for name, kind in PER_ATOM_LISTS.items()}
    known |= dict.fromkeys((*PER_ATOM_VECTORS, "cell"), coordinates) | {"pbc": pa.list_(pa.bool_())}
    known |= {"formation_energy": pa.float64(), "has_formation_energy": pa.bool_(), "total_energy": pa.float64()}
    for row in rows:
        for name in row.keys() - known.keys():
            known[name] = _property_type(row[name])
    return pa.schema(known)


def _property_type(value: Any) -> "pa.DataType":
    import pyarrow as pa

    if isinstance(value, str):
        return pa.string()
    return pa.float64() if np.ndim(value) == 0 else pa.list_(pa.float64())


def _batch_of(rows: Sequence[Row], schema: "pa.Schema", first: int) -> "pa.RecordBatch":
    """The rows, counted from `first`, as a batch of the schema."""
    import pyarrow as pa

    for index, row in enumerate(rows, start=first):
        if late := sorted(row.keys() - set(schema.names)):
            raise ValueError(
                f"column {late[0]} comes late: row {index} has it, none of the first {ROWS_AT_ONCE} rows; move such a "
                "row to the front or leave the column out"
            )
    columns = []
    for field in schema:
        if field.name == "has_formation_energy":
            columns.append(pa.array(["formation_energy" in row for row in rows]))
            continue
        values = [row.get(field.name) for row in rows]
        if field.name in PER_ATOM_VECTORS or field.name == "cell":
            values = [None if value is None else list(value) for value in values]
        try:
            columns.append(pa.array(values, field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"column {field.name} in rows {first} to {first + len(rows) - 1} must be {field.type} as in the rows "
                f"before: {error}"
            ) from error
    return pa.record_batch(columns, schema)


@contextlib.contextmanager
def _damage_explained(path: pathlib.Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error)
        raise ValueError(f"{path} cannot be read as a table, is it damaged or cut off? ({reason})") from error


def _require_pyarrow() -> None:
    try:
        importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tables need the package pyarrow: pip install 'matterform[datasets]'") from error
