"""Readers of the raw pre-training sets as they are distributed, row by row in bounded memory.

`atomformer.data.sources.prepare_dataset(iterate_raw(kind, path), out)` converts one of them for training.
"""

import importlib
import os
from collections.abc import Iterator
from typing import Any

from atomformer.data.sources import ReadRow

# Kind of set -> the module that reads it, and the options for this kind.
CONVERTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mptrj": ("mptrj", {}),
    "oc20": ("oc", {"release": "oc20"}),
    "oc22": ("oc", {"release": "oc22"}),
    "odac23": ("odac23", {}),
    "spice": ("spice", {}),
}


def iterate_raw(kind: str, path: str | os.PathLike[str], **options: Any) -> Iterator[ReadRow]:
    """Yields the structures of a raw set in order; an entry that cannot be used has a reason instead of a row.

    Args:
        kind: one of `CONVERTERS`; the docstring of its module documents the format and the `options`.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: an unknown kind, or damage beyond a single structure.
        ModuleNotFoundError: a package for the format is missing (extra `datasets`).
    """
    if kind not in CONVERTERS:
        raise ValueError(f"kind of raw set: expected one of {', '.join(CONVERTERS)}; found {kind!r}")
    name, fixed_options = CONVERTERS[kind]
    module = importlib.import_module(f"{__name__}.{name}")
    return module.iterate_rows(path, **options, **fixed_options)
