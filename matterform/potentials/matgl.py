"""Potentials and property models of matgl (Ko et al., npj Comput. Mater. 11, 253 (2025)) from a local folder."""

import copy
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
    Properties,
    PropertyModel,
    Quantity,
    check_elements,
    check_neighbors,
    collect_predictions,
    collect_properties,
    run_in_batches,
)
from matterform.potentials.torch_state import check_device, check_path, to_numpy, unchanged_process

if TYPE_CHECKING:
    import pymatgen.core

BATCH_SIZE = 16
PROPERTY_BATCH_SIZE = 64

FILES = ("model.json", "model.pt", "state.pt")
# Checked before matgl, which would search the network for a missing file for half a minute.
FOLDER = f"a folder with {', '.join(FILES)}"
GPA_PER_EV_ANG3 = 160.21766208


def load_matgl(
    path: pathlib.Path | None, variant: str | None = None, device: str = "cpu", batch_size: int = BATCH_SIZE
) -> Potential:
    """Loads a potential (M3GNet, TensorNet, CHGNet, ...) saved by matgl's `Potential.save`.

    Energies do not include the MP2020 corrections; for CHGNet models, which may be trained with them, this is unknown.

    Raises:
        ImportError: matgl is not installed.
        ValueError: no path or a variant is given, the device does not exist, or the folder contains no potential.
        FileNotFoundError: the path does not exist.
    """
    if variant is not None:
        raise ValueError(f"a matgl folder contains its architecture and has no variants; got {variant!r}")
    path = check_path("matgl", path, FOLDER)
    model = _load_folder(path, device)
    if not hasattr(model, "calc_forces"):
        raise ValueError(f"{path} holds a {type(model).__name__}, a model of a property, and no potential")
    return matgl_potential(model, f"matgl {path.absolute().name}", batch_size)


def load_matgl_property(
    path: pathlib.Path | None,
    fidelity: int | None = None,
    device: str = "cpu",
    batch_size: int = PROPERTY_BATCH_SIZE,
) -> PropertyModel:
    """Loads a property model (MEGNet, M3GNet, TensorNet, ...) saved by matgl; k targets give values of shape (b, k).

    Args:
        path: the folder.
        fidelity: fidelity of a multi-fidelity model; for the published band gaps 0 PBE, 1 GLLB-SC, 2 HSE, 3 SCAN.

    Raises:
        ImportError: matgl is not installed.
        ValueError: no path is given, the folder contains no such model, or the fidelity or device does not exist.
        FileNotFoundError: the path does not exist.
    """
    path = check_path("matgl", path, FOLDER)
    model = _load_folder(path, device)
    if hasattr(model, "calc_forces"):
        raise ValueError(f"{path} holds a potential and no model of a property")
    return matgl_property(model, f"matgl {path.absolute().name}", fidelity, batch_size)


def matgl_potential(potential: Any, name: str = "matgl", batch_size: int = BATCH_SIZE) -> Potential:
    """The potential of a matgl `Potential`, evaluated on its present device."""
    potential = copy.copy(potential.eval().requires_grad_(False))  # to change settings; the weights are shared
    converter = _converter(potential.model)

    def predict(structures: Sequence["pymatgen.core.Structure"], quantity: Quantity) -> Predictions:
        package = BatchModel(
            lambda structure: _graph(converter, structure),
            lambda graphs: _run_potential(potential, graphs, quantity),
            (ValueError, RuntimeError),
        )
        return collect_predictions(*run_in_batches(structures, package, batch_size))

    return Potential(name, predict, None if type(potential.model).__name__ == "CHGNet" else False)


def matgl_property(
    model: Any, name: str = "matgl", fidelity: int | None = None, batch_size: int = PROPERTY_BATCH_SIZE
) -> PropertyModel:
    """The property model of a matgl model, evaluated on its present device.

    Raises:
        ValueError: the model does not have this fidelity.
    """
    model = model.eval().requires_grad_(False)
    core = getattr(model, "model", model)  # a wrapper only transforms the target
    converter = _converter(core)
    state = _state(core, fidelity)
    shape = _target_shape(model, converter, state)

    def predict(structures: Sequence["pymatgen.core.Structure"]) -> Properties:
        package = BatchModel(
            lambda structure: _graph(converter, structure),
            lambda graphs: list(_run_property(model, graphs, state).reshape(-1, *shape)),
            (ValueError, RuntimeError),
        )
        return collect_properties(*run_in_batches(structures, package, batch_size), shape)

    return PropertyModel(name, predict)


def _load_folder(path: pathlib.Path, device: str) -> Any:
    with unchanged_process():
        matgl = _import_matgl()
        check_device(device)
        missing = [name for name in FILES if not (path / name).is_file()]
        if missing:
            raise ValueError(f"{path} is not a folder of a matgl model: {', '.join(missing)} missing")
        try:
            return matgl.load_model(path).to(device)
        except (ValueError, RuntimeError) as error:
            reason = error.__cause__ or error  # matgl's own message has no reason
            raise ValueError(f"{path} holds no model that matgl can load: {one_line(reason)}") from error


def _import_matgl() -> Any:
    try:
        import matgl
    except ImportError as error:
        raise ImportError("matgl is not installed: pip install 'matterform[matgl]'") from error
    return matgl


def _converter(core: Any) -> Any:
    from matgl.ext.pymatgen import Structure2Graph

    return Structure2Graph(element_types=core.element_types, cutoff=float(core.cutoff))


def _graph(converter: Any, structure: "pymatgen.core.Structure") -> Any:
    check_elements(structure, converter.element_types)
    graph, cell, _ = converter.get_graph(structure)
    check_neighbors(structure, graph.edge_index[0].numpy(), converter.cutoff)
    graph.pbc_offshift = graph.pbc_offset @ cell[0]
    graph.pos = graph.frac_coords @ cell[0]
    return graph, cell


def _state(core: Any, fidelity: int | None) -> int | None:
    """Returns the fidelity after checking that the model has it."""
    count = core._init_args.get("ntypes_state")
    if not count:
        if fidelity is not None:
            raise ValueError(f"this model has no fidelities; got fidelity {fidelity}")
        return None
    if fidelity is None or not 0 <= fidelity < count:
        raise ValueError(f"this model has {count} fidelities: give one of 0 to {count - 1}; got {fidelity}")
    return fidelity


def _target_shape(model: Any, converter: Any, state: int | None) -> tuple[int, ...]:
    """Shape of the prediction for one crystal: () or (k,), found by evaluating a crystal of common elements."""
    from pymatgen.core import Lattice, Structure

    pair = Structure(Lattice.cubic(3.0), [converter.element_types[0]] * 2, [[0, 0, 0], [0.5, 0.5, 0.5]])
    count = _run_property(model, [_graph(converter, pair)], state).size
    return () if count == 1 else (count,)


def _run_property(model: Any, graphs: list[Any], state: int | None) -> np.ndarray:
    import torch

    batch, _ = _batch(graphs, next(model.parameters()).device)
    with torch.no_grad():
        return to_numpy(model(g=batch, state_attr=_state_features(len(graphs), state, batch.pos.device)))


def _run_potential(potential: Any, graphs: list[Any], quantity: Quantity) -> list[Prediction]:
    batch, cells = _batch(graphs, potential.data_mean.device)
    potential.calc_forces, potential.calc_stresses = quantity != "energy", quantity == "stress"
    potential.calc_hessian = False
    energies, forces, stress = potential(batch, cells, _state_features(len(graphs), None, cells.device))[:3]
    energies = to_numpy(energies).reshape(-1)
    if quantity == "energy":
        return [Prediction(float(energy)) for energy in energies]
    places = np.cumsum([graph.num_nodes for graph, _ in graphs])[:-1]
    parts = np.split(to_numpy(forces), places)
    stresses = to_numpy(stress).reshape(-1, 3, 3) / GPA_PER_EV_ANG3 if quantity == "stress" else [None] * len(graphs)
    return [Prediction(float(energy), *rest) for energy, *rest in zip(energies, parts, stresses, strict=True)]


def _batch(graphs: list[Any], device: Any) -> tuple[Any, Any]:
    """One graph of all crystals, and their cells (b, 3, 3), Å."""
    import torch
    from torch_geometric.data import Batch

    joined: Any = Batch.from_data_list([graph for graph, _ in graphs])
    return joined.to(device), torch.cat([cell for _, cell in graphs]).to(device)


def _state_features(count: int, state: int | None, device: Any) -> Any:
    """The fidelity of each graph; two zeros per graph for models without fidelities."""
    import torch

    if state is None:
        return torch.zeros(count, 2, device=device)
    return torch.full((count,), state, dtype=torch.long, device=device)
