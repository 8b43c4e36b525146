"""Common base of the model families: structures, potentials, convex hulls, evaluation and training."""

import importlib
from typing import Any

from matterform._version import __version__

# Public name -> module; loaded when first used, so that importing the package stays light.
_EXPORTS = {
    "EvaluationConfig": "evaluation.summary",
    "Hull": "stability.hull",
    "LoopConfig": "training.config",
    "METASTABLE_EV": "stability.above_hull",
    "OptimizerConfig": "training.config",
    "Potential": "potentials.base",
    "PotentialConfig": "potentials.config",
    "PotentialFit": "stability.above_hull",
    "PropertyConfig": "potentials.config",
    "PropertyModel": "potentials.base",
    "References": "stability.references",
    "RelaxConfig": "potentials.relax",
    "above_hull": "stability.above_hull",
    "check_references": "stability.above_hull",
    "describe": "evaluation.summary",
    "evaluate": "evaluation.summary",
    "fit_potential_references": "stability.above_hull",
    "fit_references": "stability.references",
    "index_hull": "stability.hull_files",
    "iterate_csv": "io.formats",
    "iterate_records": "io.formats",
    "load_config": "config",
    "load_property": "potentials.load",
    "load_references": "stability.references",
    "mp2020_corrections": "stability.corrections",
    "new_figure": "plots.curves",
    "open_hull": "stability.hull",
    "open_potential": "potentials.open",
    "parse_structure": "io.cif",
    "plot": "plots",
    "progress_bar": "progress",
    "read_structures": "io.formats",
    "relax": "potentials.relax",
    "save_references": "stability.references",
    "stability_shares": "stability.above_hull",
    "tabulate": "evaluation.summary",
    "to_atoms": "io.formats",
    "write_atomically": "io.files",
    "write_picture": "plots.gallery",
    "write_structures": "io.formats",
}

__all__ = ["__version__", *sorted(_EXPORTS)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'matterform' has no attribute {name!r}")
    return getattr(importlib.import_module(f"matterform.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
