"""CrystalFormer: crystals by space group, as sequences of Wyckoff letters, elements, coordinates and a lattice."""

import importlib
from typing import Any

# Public name -> module; loaded when first used, so that importing the package stays light.
_EXPORTS = {
    "Crystals": "data.crystals",
    "TrainConfig": "config",
    "TransformerConfig": "config",
    "WeightsConfig": "config",
    "build_structures": "data.primitive",
    "cell_parameters": "data.crystals",
    "cell_problem": "symmetry.lattice",
    "count_spacegroups": "symmetry.wyckoff",
    "draw_spacegroups": "symmetry.wyckoff",
    "from_structures": "data.dataset",
    "held_out_statistics": "checkpoint.pretrained",
    "iterate_crystals": "data.crystals",
    "load_checkpoint": "checkpoint.published",
    "load_model": "checkpoint.pretrained",
    "load_pretrained": "checkpoint.pretrained",
    "load_split": "training",
    "log_prob": "loss",
    "make_constraints": "sampling.constraints",
    "make_transformer": "network.transformer",
    "model_card": "checkpoint.pretrained",
    "open_dataset": "data.dataset",
    "prepare": "data.dataset",
    "read_csv": "data.dataset",
    "read_crystal_table": "table",
    "sample": "sampling.sample",
    "save_checkpoint": "checkpoint.published",
    "to_cif": "data.crystals",
    "to_structures": "data.crystals",
    "train": "training",
    "training_spacegroups": "checkpoint.pretrained",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'crystalformer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crystalformer.{_EXPORTS[name]}"), name)
