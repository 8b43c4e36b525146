"""CrystalFormer: crystals by space group, as sequences of Wyckoff letters, elements, coordinates and a lattice."""

import importlib
from typing import Any

# Public name -> module; loaded when first used, so that importing the package stays light.
_EXPORTS = {
    "Crystals": "data.crystals",
    "TransformerConfig": "config",
    "from_structures": "data.dataset",
    "load_checkpoint": "checkpoint.published",
    "log_prob": "loss",
    "make_transformer": "network.transformer",
    "open_dataset": "data.dataset",
    "prepare": "data.dataset",
    "read_csv": "data.dataset",
    "sample": "sampling.sample",
    "save_checkpoint": "checkpoint.published",
    "to_cif": "data.crystals",
    "to_structures": "data.crystals",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'crystalformer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crystalformer.{_EXPORTS[name]}"), name)
