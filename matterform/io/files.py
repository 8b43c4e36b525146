"""Reading of files with clear errors, and atomic writing of files and folders."""

import contextlib
import gzip
import io
import os
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path with the same name; the file or folder written there moves to `path` after the block.

    Missing parent folders are created. If the block raises, `path` is unchanged. A killed process can leave a hidden
    folder `.NAME.xxxxxxxx` next to `path`, but never half a result. An existing file is replaced, a non-empty folder
    is not.

    Raises:
        ValueError: `path` is a non-empty folder.
    """
    path = pathlib.Path(path)
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path} is a folder that already holds something; remove it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = pathlib.Path(folder, path.name)
        yield temporary
        os.replace(temporary, path)


def existing(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns `path` after checking that it exists.

    Raises:
        FileNotFoundError: `path` does not exist.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist (looked from {pathlib.Path.cwd()})")
    return path


def checksum(path: str | os.PathLike[str]) -> int:
    """CRC-32 of a file's bytes, or of the names and bytes of all files in a folder.

    Raises:
        FileNotFoundError: `path` does not exist.
    """
    path = existing(path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    value = 0
    for file in files:
        if file is not path:
            value = zlib.crc32(file.relative_to(path).as_posix().encode(), value)
        with file.open("rb") as opened:
            while block := opened.read(2**20):
                value = zlib.crc32(block, value)
    return value


def is_compressed(path: pathlib.Path) -> bool:
    """Whether the name of the file ends with .gz."""
    return path.suffix.lower() == ".gz"


def open_text(path: pathlib.Path, mode: str = "r", newline: str | None = None) -> io.TextIOWrapper:
    """Opens a plain or gzip-compressed text file; invalid bytes (author names in old CIFs) are replaced."""
    opener = gzip.open if is_compressed(path) else open
    encoding = "utf-8-sig" if mode == "r" else "utf-8"  # Excel begins its files with a byte order mark
    return opener(path, f"{mode}t", encoding=encoding, errors="replace", newline=newline)  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def damage_explained(path: pathlib.Path) -> Iterator[None]:
    """Converts the errors of a damaged gzip or bzip2 file to one that names the file.

    Raises:
        ValueError: the file is damaged or truncated.
    """
    try:
        yield
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the file system, e.g. a missing permission
        raise ValueError(f"{path} is damaged or cut off ({error}); fetch or compress it again") from error


@contextlib.contextmanager
def appending(
    path: pathlib.Path, dtype: np.dtype | type[np.generic], shape: tuple[int, ...] = ()
) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes an .npy file of unknown length; yields a function that appends an array of entries (n, *shape)."""
    count = 0

    def write_header(file: IO[bytes]) -> None:
        empty = np.zeros((0, *shape), dtype)
        header = np.lib.format.header_data_from_array_1_0(empty) | {"shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, header)

    with path.open("wb") as file:
        write_header(file)

        def append(array: np.ndarray) -> None:
            nonlocal count
            count += len(array)
            file.write(np.ascontiguousarray(array, dtype).tobytes())

        yield append
        # NumPy pads headers so that the first axis can grow without moving the data.
        file.seek(0)
        write_header(file)
