"""CrystalFormer: crystals by space group, as sequences of Wyckoff letters, elements, coordinates and a lattice."""

import importlib
from typing import Any

# Public name -> module; loaded when first used, so that importing the package stays light.
_EXPORTS = {
    "Checkpoint": "checkpoint.published",
    "Constraints": "sampling.constraints",
    "Crystals": "data.crystals",
    "DpoConfig": "rl",
    "LogProb": "loss",
    "LossConfig": "config",
    "McmcConfig": "sampling.config",
    "ObjectiveConfig": "rl",
    "PairingConfig": "rl",
    "PpoConfig": "rl",
    "PreferenceConfig": "rl",
    "Reward": "rl",
    "RewardConfig": "rl",
    "SHIPPED": "checkpoint.pretrained",
    "SamplingConfig": "sampling.config",
    "Scores": "rl",
    "TableWriter": "table",
    "TrainConfig": "config",
    "Transformer": "network.transformer",
    "TransformerConfig": "config",
    "WeightsConfig": "config",
    "build_structures": "data.primitive",
    "cell_parameters": "data.crystals",
    "cell_problem": "symmetry.lattice",
    "check_reward": "rl",
    "count_spacegroups": "symmetry.wyckoff",
    "describe_problems": "rl",
    "draw_spacegroups": "symmetry.wyckoff",
    "ehull_reward": "rl",
    "find_checkpoint": "checkpoint.pretrained",
    "force_reward": "rl",
    "from_structures": "data.convert",
    "held_out_statistics": "checkpoint.pretrained",
    "init_params": "network.parameters",
    "iterate_crystals": "data.crystals",
    "load_checkpoint": "checkpoint.published",
    "load_crystals": "data.dataset",
    "load_model": "checkpoint.pretrained",
    "load_pretrained": "checkpoint.pretrained",
    "load_split": "training",
    "log_prob": "loss",
    "main": "cli",
    "make_constraints": "sampling.constraints",
    "make_scores": "rl",
    "make_transformer": "network.transformer",
    "model_card": "checkpoint.pretrained",
    "num_atoms": "data.crystals",
    "num_sites": "data.crystals",
    "open_dataset": "data.dataset",
    "open_properties": "data.dataset",
    "open_reward": "rl",
    "prepare": "data.dataset",
    "read_any": "data.convert",
    "read_constraints": "sampling.constraints",
    "read_crystal_table": "table",
    "read_csv": "data.convert",
    "refine": "sampling.mcmc",
    "sample": "sampling.sample",
    "sample_chunks": "sampling.sample",
    "save_checkpoint": "checkpoint.published",
    "symmetry_tables": "symmetry.wyckoff",
    "table_rows": "table",
    "to_cif": "data.crystals",
    "to_structures": "data.crystals",
    "train": "training",
    "train_dpo": "rl",
    "train_ppo": "rl",
    "training_spacegroups": "checkpoint.pretrained",
    "truncate": "data.crystals",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'crystalformer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crystalformer.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
