"""One-line messages for exceptions of other packages and of user code."""

import contextlib
from typing import Any


def one_line(error: BaseException) -> str:
    """The message of an exception, with line breaks replaced by spaces."""
    return " ".join(str(error).split())


def reason_of(error: BaseException) -> str:
    """Type and message of an exception in one line, for a table of refused entries."""
    return f"{type(error).__name__}: {one_line(error)}"


class Explained(contextlib.AbstractContextManager[None]):
    """Converts any exception of user code to a ValueError that names the code, with the original as its cause.

    A context manager rather than `except`, because the exceptions of unknown code cannot be listed. Interrupts pass.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, (Exception, SystemExit)):
            raise ValueError(f"{self._doing} raised {reason_of(error)}") from error
