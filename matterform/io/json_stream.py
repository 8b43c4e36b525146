"""Reads the members of a JSON list one by one, from files too large for memory.

Why not ijson 3.6: it rejects NaN, which pymatgen writes into every entry whose energy adjustment has no uncertainty. It
is also slower: 50 MB of computed entries with structures (NaN replaced by null) took 1.3 s here, 2.7 s with ijson's C
backend and 22 s with its Python fallback (one core of the development machine, 2026).
"""

import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

CHUNK = 2**20  # characters read at once
MAX_VALUE = 2**26  # characters; a longer value without an end is damaged


def iterate_json_list(file: io.TextIOBase, path: pathlib.Path, key: str) -> Iterator[Any]:
    """Yields the members of the list in `file`, or of the list under `key` if the file contains an object.

    Only one member is in memory at a time. Text after the list is not read.

    Args:
        path: path of the file, for messages.

    Raises:
        ValueError: the file is damaged or truncated, or has no such list; the message gives the number of members read.
    """
    text = _Reader(file, path)
    if text.peek() == "{":
        _find_key(text, key)
    text.take("[")
    if text.peek() == "]":
        return
    while True:
        value = text.value()
        text.count += 1
        yield value
        if text.take(",]") == "]":
            return


def _find_key(text: "_Reader", key: str) -> None:
    """Skips to the value of `key` in an object."""
    text.take("{")
    while text.peek() != "}":
        found = text.value()
        text.take(":")
        if found == key:
            return
        text.value()
        if text.take(",}") == "}":
            break
    raise text.unexpected(f'there is no key "{key}"')


class _Reader:
    """Reads the values of a JSON text one by one, with only a part of the text in memory."""

    def __init__(self, file: io.TextIOBase, path: pathlib.Path) -> None:
        self._file, self._path = file, path
        self._buffer, self._place = "", 0
        self._decoder = json.JSONDecoder()
        self.count = 0  # members of the list read so far

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._place < len(self._buffer):
                if not self._buffer[self._place].isspace():
                    return self._buffer[self._place]
                self._place += 1
            if not self._read():
                return ""

    def take(self, expected: str) -> str:
        """Returns the next character; raises ValueError if it is not one of `expected`."""
        found = self.peek()
        if not found or found not in expected:
            raise self.unexpected(f"expected {' or '.join(expected)}")
        self._place += 1
        return found

    def value(self) -> Any:
        """Reads the next value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._place)
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._place > MAX_VALUE or not self._read():
                    raise self.unexpected(error.msg) from error
                continue
            # A number may continue in the next part of the file, even if this part ends with "e-".
            length = end - self._place
            if end + 2 < len(self._buffer) or not self._read():
                self._place += length
                return value

    def unexpected(self, reason: str) -> ValueError:
        found = repr(self._buffer[self._place : self._place + 20]) if self.peek() else "its end"
        return ValueError(
            f"{self._path} is damaged, cut off or of another layout after {self.count} entries, at {found}: {reason}"
        )

    def _read(self) -> bool:
        """Reads the next part of the file and drops the text already used; False at the end of the file."""
        more = self._file.read(max(CHUNK, len(self._buffer) - self._place))  # doubles, so that long values cost little
        self._buffer, self._place = self._buffer[self._place :] + more, 0
        return bool(more)
