"""AtomFormer: a transformer over atoms with distances as attention bias, for energies, forces and properties."""

import importlib
from typing import Any

# Public name -> module; loaded when first used, so that importing the package stays light.
_EXPORTS = {
    "AtomformerConfig": "config",
    "Calculator": "calculator",
    "Edges": "structure",
    "Outputs": "heads",
    "Structure": "structure",
    "embed": "prediction",
    "evaluate": "evaluation",
    "from_pretrained": "weights",
    "load_dataset": "sources",
    "make_transformer": "transformer",
    "model_config": "config",
    "predict": "prediction",
    "predict_all": "prediction",
    "save_pretrained": "weights",
    "tokenize": "vocabulary",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'atomformer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"atomformer.{_EXPORTS[name]}"), name)
