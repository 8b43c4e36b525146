"""MACE (Batatia et al., NeurIPS 2022) from a local .model file."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from matterform.errors import one_line
from matterform.potentials.base import (
    BatchModel,
    Potential,
    Prediction,
    Predictions,
    Quantity,
    bare_atoms,
    check_elements,
    check_neighbors,
    collect_predictions,
    run_in_batches,
)
from matterform.potentials.torch_state import UNPICKLING_ERRORS, check_device, check_path, to_numpy, unchanged_process

if TYPE_CHECKING:
    import pymatgen.core

BATCH_SIZE = 8
# Batches of wide models are faster only as long as all features fit in a processor's cache.
MAX_ATOMS_ON_CPU = 16


def load_mace(
    path: pathlib.Path | None, variant: str | None = None, device: str = "cpu", batch_size: int | None = None
) -> Potential:
    """Loads a published model (`2023-12-03-mace-128-L1_epoch-199.model`, ...) or another .model file.

    A .model file is a pickle, which can run code when it is loaded, so it must come from a trusted source. The model
    is evaluated in the precision of the file; its energies do not include the MP2020 corrections.

    Args:
        path: the file.
        variant: head of a model with several heads; by default its default head.
        batch_size: default `BATCH_SIZE`; on a CPU also limited by `MAX_ATOMS_ON_CPU` atoms per batch.

    Raises:
        ImportError: mace-torch is not installed.
        ValueError: no path is given, the head or device is unknown, or the file is not a MACE model.
        FileNotFoundError: the path does not exist.
    """
    path = check_path("MACE", path, "a .model file")
    with unchanged_process():
        _import_mace()
        check_device(device)
        model = _load_file(path)
    return mace_potential(model.to(device), f"mace {path.name}", variant, batch_size)


def mace_potential(model: Any, name: str = "mace", head: str | None = None, batch_size: int | None = None) -> Potential:
    """The potential of a MACE module, evaluated on its present device.

    Raises:
        ValueError: the model has no such head.
    """
    heads = list(getattr(model, "heads", None) or ["Default"])
    head = _choose_head(heads, head)
    model = model.eval().requires_grad_(False)
    max_atoms = MAX_ATOMS_ON_CPU if batch_size is None and model.r_max.device.type == "cpu" else None

    def predict(structures: Sequence["pymatgen.core.Structure"], quantity: Quantity) -> Predictions:
        package = BatchModel(
            lambda structure: _graph(model, structure, head, heads),
            lambda graphs: _run(model, graphs, quantity),
            (ValueError, RuntimeError),
        )
        return collect_predictions(*run_in_batches(structures, package, batch_size or BATCH_SIZE, max_atoms))

    return Potential(name, predict, corrected=False)


def _import_mace() -> None:
    try:
        # Imported before e3nn, which can load its own file only with MACE's setting of PyTorch.
        import mace.modules
        import mace.tools.torch_geometric  # noqa: F401
    except ImportError as error:
        raise ImportError("MACE is not installed: pip install 'matterform[mace]'") from error


def _load_file(path: pathlib.Path) -> Any:
    import torch

    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except UNPICKLING_ERRORS as error:
        raise ValueError(f"{path} holds no MACE: {one_line(error)[:200]}") from error
    if not (isinstance(model, torch.nn.Module) and hasattr(model, "r_max") and hasattr(model, "atomic_numbers")):
        raise ValueError(f"{path} holds no MACE but a {type(model).__name__}")
    return model


def _choose_head(heads: list[str], requested: str | None) -> str:
    if requested is None:
        default = heads if len(heads) == 1 else [head for head in heads if head.lower() == "default"]
        if default:
            return default[0]
    if requested not in heads:
        raise ValueError(f"this MACE has the heads {', '.join(heads)}; choose one as variant, got {requested!r}")
    return requested


def _graph(model: Any, structure: "pymatgen.core.Structure", head: str, heads: list[str]) -> Any:
    from mace import data
    from mace.tools import AtomicNumberTable, torch_tools

    known, cutoff = [int(number) for number in model.atomic_numbers], float(model.r_max)
    check_elements(structure, known)
    atoms = bare_atoms(structure)
    with torch_tools.default_dtype(_dtype(model)):
        graph = data.AtomicData.from_config(
            data.config_from_atoms(atoms, data.KeySpecification(), head_name=head),
            z_table=AtomicNumberTable(known),
            cutoff=cutoff,
            heads=heads,
        )
    check_neighbors(structure, graph.edge_index[1].numpy(), cutoff)
    return graph


def _run(model: Any, graphs: list[Any], quantity: Quantity) -> list[Prediction]:
    import torch
    from mace.tools import torch_tools
    from mace.tools.torch_geometric import Batch

    batch = Batch.from_data_list(graphs).to(model.r_max.device)
    with torch_tools.default_dtype(_dtype(model)), torch.set_grad_enabled(quantity != "energy"):
        output = model(batch.to_dict(), compute_force=quantity != "energy", compute_stress=quantity == "stress")
    energies = to_numpy(output["energy"])
    if quantity == "energy":
        return [Prediction(float(energy)) for energy in energies]
    places = np.cumsum([graph.num_nodes for graph in graphs])[:-1]
    forces = np.split(to_numpy(output["forces"]), places)
    stress = to_numpy(output["stress"]) if quantity == "stress" else [None] * len(graphs)
    return [Prediction(float(energy), *parts) for energy, *parts in zip(energies, forces, stress, strict=True)]


def _dtype(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
