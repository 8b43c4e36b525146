"""The base of the model families: structures, potentials, hulls and evaluation; the training loop is in `training`."""

import importlib
from typing import Any

from matterform._version import __version__

# Public name -> module; loaded when first used, so that importing the package stays light.
_EXPORTS = {
    "EvaluationConfig": "evaluation.summary",
    "PotentialConfig": "potentials.config",
    "PropertyConfig": "potentials.config",
    "RelaxConfig": "potentials.relax",
    "above_hull": "stability.above_hull",
    "evaluate": "evaluation.summary",
    "fit_potential_references": "stability.above_hull",
    "index_hull": "stability.hull_files",
    "load_property": "potentials.load",
    "load_references": "stability.references",
    "open_hull": "stability.hull",
    "open_potential": "potentials.open",
    "plot": "plots",
    "read_structures": "io.formats",
    "relax": "potentials.relax",
    "write_structures": "io.formats",
}

__all__ = ["__version__", *sorted(_EXPORTS)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'matterform' has no attribute {name!r}")
    return getattr(importlib.import_module(f"matterform.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
