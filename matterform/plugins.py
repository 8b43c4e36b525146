"""Loading of user functions and classes, given as `module:name`."""

import importlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from matterform.errors import Explained


def load_callable(target: str, what: str, form: str) -> Callable[..., Any]:
    """Imports the function or class `module:name`; modules in the current folder are found.

    Args:
        target: module and name, e.g. "my_rewards:hardness".
        what: kind of the target for messages, e.g. "the reward".
        form: expected form of `target` for messages, with an example.

    Raises:
        ValueError: `target` has another form, or the module cannot be imported or has no such function or class.
    """
    module_name, _, name = target.partition(":")
    if not (module_name and name):
        raise ValueError(f"{what} is named {form}; found {target!r}")
    here = str(pathlib.Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that a file here does not hide an installed package
    importlib.invalidate_caches()  # the file may be new
    with Explained(f"importing {module_name} for {what} {target}"):
        module = importlib.import_module(module_name)
    found = getattr(module, name, None)
    if not callable(found):
        where = getattr(module, "__file__", None) or module_name
        raise ValueError(f"{what} {target}: {where} has no function or class {name}")
    return found
