"""AtomFormer: a transformer over atoms with distances as attention bias, for energies, forces and properties."""

import importlib
from typing import Any

# Public name -> module; loaded at first use, so that importing the package does not load JAX.
_EXPORTS = {
    "ATOM3D": "prediction.metrics",
    "AtomformerConfig": "config",
    "Calculator": "prediction.calculator",
    "Dataset": "data.dataset",
    "Edges": "data.structure",
    "EnergyScale": "config",
    "Evaluation": "prediction.evaluation",
    "FinetuneConfig": "config",
    "FlatBatch": "data.collate",
    "LossConfig": "config",
    "Outputs": "network.heads",
    "Prediction": "prediction.predict",
    "PretrainConfig": "config",
    "Pretrained": "checkpoint.published",
    "Structure": "data.structure",
    "TrainConfig": "config",
    "Transformer": "network.transformer",
    "annotate": "prediction.predict",
    "embed": "prediction.predict",
    "evaluate": "prediction.evaluation",
    "flatten": "data.collate",
    "from_pretrained": "checkpoint.published",
    "iterate_raw": "data.converters",
    "iterate_rows": "data.sources",
    "laplacian_encodings": "data.collate",
    "load_dataset": "data.sources",
    "make_transformer": "network.transformer",
    "model_config": "config",
    "predict": "prediction.predict",
    "predict_all": "prediction.predict",
    "predict_rows": "prediction.predict",
    "prepare_dataset": "data.sources",
    "radius_edges": "data.collate",
    "row_from_atoms": "data.rows",
    "row_to_atoms": "data.rows",
    "save_pretrained": "checkpoint.published",
    "tokenize": "data.vocabulary",
    "train": "training",
    "write_dataset": "data.dataset",
    "write_evaluation": "prediction.evaluation",
    "write_parity": "prediction.evaluation",
}

__all__ = sorted(_EXPORTS)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'atomformer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"atomformer.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
