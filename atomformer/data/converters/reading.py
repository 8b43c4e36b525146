"""Reading shared by the converters: files in numerical order, compressed or not, and their frames."""

import contextlib
import functools
import gzip
import io
import itertools
import lzma
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from atomformer.data.rows import Row, check_row
from atomformer.data.sources import ReadRow
from matterform.errors import one_line, reason_of
from matterform.io import formats
from matterform.io.files import damage_explained, existing
from matterform.io.lmdb import PICKLE_ADVICE

if TYPE_CHECKING:
    import ase

OPENERS = {".xz": lzma.open, ".gz": gzip.open}

# Reads one structure, or raises ValueError, LookupError or TypeError with the reason.
Entry = Callable[[], Row]
Frame = Callable[[], "ase.Atoms"]


def read_entries(path: str | os.PathLike[str], entries: Iterable[Entry]) -> Iterator[ReadRow]:
    """The checked row of each entry, or the reason why it cannot be used, in one line.

    Raises:
        ValueError: there are no entries.
    """
    index = -1
    for index, read in enumerate(entries):
        try:
            row = check_row(read())
        except (ValueError, LookupError, TypeError) as error:
            # Our own messages are sentences; the message of a KeyError is only readable with its name.
            reason = one_line(error) if isinstance(error, ValueError) else reason_of(error)
            yield ReadRow(index, None, reason)
        else:
            yield ReadRow(index, row, "")
    if index < 0:
        raise ValueError(f"{path} holds no structures")


def list_files(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> list[pathlib.Path]:
    """The files of a set in numerical order (2 before 10): `path` itself, or those in a folder, else below it.

    Args:
        suffixes: suffixes of files in a folder; ".extxyz" includes ".extxyz.xz" and ".extxyz.gz".

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the folder has no such file, or has a file both compressed and decompressed.
    """
    path = existing(path)
    if path.is_file():
        return [path]
    files: list[pathlib.Path] = []
    for found in (path.iterdir(), path.rglob("*")):
        files = files or [file for file in found if _suffix(file) in suffixes and not file.name.startswith(".")]
    if not files:
        advice = f"; its .lmdb is not read: {PICKLE_ADVICE}" if any(path.rglob("*.lmdb")) else ""
        raise ValueError(f"{path} has no {' or '.join(suffixes)} files, compressed (.xz, .gz) or not{advice}")
    compressions: dict[str, pathlib.Path] = {}
    for file in files:
        twin = compressions.setdefault(_plain_name(file), file)
        if twin.suffix != file.suffix:
            raise ValueError(f"{path}: {twin.name} and {file.name} hold the same structures; keep one of them")
    return sorted(files, key=functools.partial(_numerical, path))


def iterate_frames(path: pathlib.Path) -> Iterator[Frame]:
    """The frames of an extxyz file (.xz, .gz), ASE trajectory or LMDB, each as a function that parses it.

    Raises:
        ValueError: damage beyond a single frame.
    """
    if _suffix(path) in (".extxyz", ".xyz"):
        yield from _iterate_xyz(path)
    else:
        for record in formats.iterate_records(path):
            yield functools.partial(_structure_of, record)


@contextlib.contextmanager
def open_stream(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file, decompressing .xz and .gz.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with damage_explained(path), OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
            yield file  # pyright: ignore[reportReturnType]
    except lzma.LZMAError as error:
        raise ValueError(f"{path} is damaged or cut off ({error}); fetch or compress it again") from error


def _iterate_xyz(path: pathlib.Path) -> Iterator[Frame]:
    with open_stream(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8", errors="replace")
        for number in itertools.count():
            header = next((line for line in lines if line.strip()), None)
            if header is None:
                return
            if not header.strip().isdecimal():
                raise ValueError(
                    f"{path}: frame {number} must begin with its number of atoms, found {header.strip()[:80]!r}"
                )
            yield functools.partial(_parse_frame, [header, *itertools.islice(lines, int(header) + 1)])


def _parse_frame(lines: list[str]) -> "ase.Atoms":
    from ase.io.extxyz import XYZError, read_xyz

    try:
        return next(read_xyz(io.StringIO("".join(lines)), index=0))
    except XYZError as error:  # a subclass of OSError, though it is about the content
        raise ValueError(f"the frame cannot be read: {error}") from error


def _structure_of(record: formats.Record) -> "ase.Atoms":
    if record.structure is None:
        raise ValueError(record.reason)
    return formats.to_atoms(record.structure)


def _plain_name(path: pathlib.Path) -> str:
    return path.stem if path.suffix.lower() in OPENERS else path.name


def _suffix(path: pathlib.Path) -> str:
    return pathlib.PurePath(_plain_name(path)).suffix.lower()


def _numerical(folder: pathlib.Path, path: pathlib.Path) -> list[str | int]:
    # Text and numbers alternate, so that only like is compared with like.
    parts = re.split(r"([0-9]+)", path.relative_to(folder).as_posix())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]
