"""Errors of other people's code, each in one line that says whose it is."""

import contextlib
from typing import Any


def one_line(error: BaseException) -> str:
    """The message of an exception, with single spaces for its line breaks."""
    return " ".join(str(error).split())


def reason_of(error: BaseException) -> str:
    """Type and message of an exception in one line, for a table of refused entries."""
    return f"{type(error).__name__}: {one_line(error)}"


class Explained(contextlib.AbstractContextManager[None]):
    """Turns whatever a user's code raises into a ValueError that says what was being done, with the original as cause.

    The exceptions of code that we do not know cannot be listed, so this is no `except`; interrupts pass.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, (Exception, SystemExit)):
            raise ValueError(f"{self._doing} raised {reason_of(error)}") from error
