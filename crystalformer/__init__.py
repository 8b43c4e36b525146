"""CrystalFormer: crystals by space group, as sequences of Wyckoff letters, elements, coordinates and a lattice."""

import importlib
from typing import Any

# Public name -> module; loaded when first used, so that importing the package stays light.
_EXPORTS = {
    "Crystals": "crystal",
    "TransformerConfig": "config",
    "from_structures": "dataset",
    "load_checkpoint": "checkpoint",
    "log_prob": "likelihood",
    "make_transformer": "transformer",
    "open_dataset": "dataset",
    "prepare": "dataset",
    "read_csv": "dataset",
    "sample": "sampling",
    "save_checkpoint": "checkpoint",
    "to_cif": "crystal",
    "to_structures": "crystal",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'crystalformer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crystalformer.{_EXPORTS[name]}"), name)
