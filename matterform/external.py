"""Code that is not ours: what a user names as `module:name`, and errors of others in one line each."""

import contextlib
import importlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any


def load_callable(target: str, what: str, form: str) -> Callable[..., Any]:
    """The function or class `module:name`; modules in the current folder are found.

    Args:
        what: it is, for messages, such as "the reward".
        form: how it is named, with an example.

    Raises:
        ValueError: there is none.
    """
    module_name, _, name = target.partition(":")
    if not (module_name and name):
        raise ValueError(f"{what} is named {form}; found {target!r}")
    here = str(pathlib.Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that a file here does not take the place of an installed package
    importlib.invalidate_caches()  # the file may be new
    with Explained(f"importing {module_name} for {what} {target}"):
        module = importlib.import_module(module_name)
    found = getattr(module, name, None)
    if not callable(found):
        where = getattr(module, "__file__", None) or module_name
        raise ValueError(f"{what} {target}: {where} has no function or class {name}")
    return found


class Explained(contextlib.AbstractContextManager[None]):
    """Turns whatever a user's code raises into one line that says whose it is, with the original as the cause.

    The exceptions of code that we do not know cannot be listed, so this is no `except`; interrupts pass.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, (Exception, SystemExit)):
            raise ValueError(f"{self._doing} raised {type(error).__name__}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What an exception says, with single spaces for its line breaks."""
    return " ".join(str(error).split())
