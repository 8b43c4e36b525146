"""The raw pre-training sets, as their makers distribute them, read row by row; memory does not grow with a set.

`atomformer.data.sources.write_parquet("mptrj.parquet", rows)` writes any of them as one table for training.
"""

import importlib
import os
from collections.abc import Iterator
from typing import Any

from atomformer.data.sources import ReadRow

# Kind of set -> the module here that reads it, and the options that make the module read this kind.
CONVERTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mptrj": ("mptrj", {}),
    "oc20": ("oc", {"release": "oc20"}),
    "oc22": ("oc", {"release": "oc22"}),
    "odac23": ("odac23", {}),
    "spice": ("spice", {}),
}


def iterate_raw(kind: str, path: str | os.PathLike[str], **options: Any) -> Iterator[ReadRow]:
    """The structures of a raw set in their order; what cannot be used comes with the reason and ends nothing.

    Args:
        kind: one of `CONVERTERS`, whose module says what of the set is read and which `options` it takes.

    Raises:
        ValueError: unknown kind, or damage beyond a single structure.
    """
    if kind not in CONVERTERS:
        raise ValueError(f"kind of raw set: expected one of {', '.join(CONVERTERS)}; found {kind!r}")
    name, fixed_options = CONVERTERS[kind]
    module = importlib.import_module(f"{__name__}.{name}")
    return module.iterate_rows(path, **options, **fixed_options)
