"""Functions and classes of the user's own, which are named as `module:name`."""

import importlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from matterform.errors import Explained


def load_callable(target: str, what: str, form: str) -> Callable[..., Any]:
    """Imports the function or class `module:name`; modules in the current folder are found.

    Args:
        target: the module and the name in it, "my_rewards:hardness" for instance.
        what: what it is, for messages: "the reward", for instance.
        form: how it is to be named, for messages, with an example.

    Raises:
        ValueError: `target` has another form, its module cannot be imported, or has no such function or class.
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
