"""AGeDi: score-based diffusion of atomistic structures, molecules, crystals and surfaces."""

import importlib
from typing import Any

# Public name -> module; loaded when first used, so that importing the package stays light.
_EXPORTS = {
    "AtomsGraph": "graph",
    "Diffusion": "diffusion",
    "DiffusionConfig": "config",
    "ForcefieldGuidanceConfig": "sampling",
    "SamplerConfig": "reverse",
    "create_dataset": "dataset",
    "create_diffusion": "diffusion",
    "from_atoms": "graph",
    "inpaint": "inpainting",
    "load_diffusion": "diffusion",
    "make_score_model": "score",
    "predict": "relaxation",
    "relax": "relaxation",
    "sample": "sampling",
    "to_atoms": "graph",
    "resume": "training",
    "train": "training",
    "train_from_atoms": "training",
    "train_from_config": "training",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'agedi' has no attribute {name!r}")
    return getattr(importlib.import_module(f"agedi.{_EXPORTS[name]}"), name)
