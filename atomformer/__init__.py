"""AtomFormer: a transformer over atoms with distances as attention bias, for energies, forces and properties."""

import importlib
from typing import Any

# Public name -> module; loaded when first used, so that importing the package stays light.
_EXPORTS = {
    "AtomformerConfig": "config",
    "Calculator": "prediction.calculator",
    "Edges": "data.structure",
    "Outputs": "network.heads",
    "Structure": "data.structure",
    "embed": "prediction.predict",
    "evaluate": "prediction.evaluation",
    "from_pretrained": "checkpoint.published",
    "load_dataset": "data.sources",
    "make_transformer": "network.transformer",
    "model_config": "config",
    "predict": "prediction.predict",
    "predict_all": "prediction.predict",
    "save_pretrained": "checkpoint.published",
    "tokenize": "data.vocabulary",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'atomformer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"atomformer.{_EXPORTS[name]}"), name)
