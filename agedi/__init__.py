"""AGeDi: score-based diffusion of atomistic structures, molecules, crystals and surfaces."""

import importlib
from typing import Any

# Public name -> module; loaded when first used, so that importing the package stays light.
_EXPORTS = {
    "AtomsGraph": "data.graph",
    "DatasetConfig": "data.config",
    "Diffusion": "diffusion",
    "DiffusionConfig": "config",
    "DiffusionOptions": "config",
    "ForcefieldGuidanceConfig": "sampling.config",
    "InpaintConfig": "sampling.config",
    "SampleConfig": "sampling.config",
    "SampleRequest": "sampling.request",
    "SamplerConfig": "sampling.config",
    "Selection": "sampling.config",
    "Structures": "training.sources",
    "TrainConfig": "training.config",
    "create_dataset": "data.dataset",
    "create_diffusion": "diffusion",
    "from_atoms": "data.graph",
    "inpaint": "sampling.inpainting",
    "load_diffusion": "checkpoint",
    "load_run": "training.run",
    "make_score_model": "network.score",
    "predict": "forcefield.relaxation",
    "read_dataset": "training.sources",
    "relax": "forcefield.relaxation",
    "resume": "training.train",
    "sample": "sampling.sample",
    "sample_each": "sampling.sample",
    "to_atoms": "data.graph",
    "train": "training.train",
    "train_from_atoms": "training.from_settings",
    "train_from_config": "training.from_settings",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'agedi' has no attribute {name!r}")
    return getattr(importlib.import_module(f"agedi.{_EXPORTS[name]}"), name)
