"""CHGNet (Deng et al., Nat. Mach. Intell. 5, 1031 (2023)): its weights are part of its package."""

import pathlib
import warnings
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
    check_elements,
    collect_predictions,
    run_in_batches,
)
from matterform.potentials.torch_state import UNPICKLING_ERRORS, check_device, check_path, to_numpy, unchanged_process

if TYPE_CHECKING:
    import pymatgen.core

VERSIONS = ("0.3.0", "0.2.0", "r2scan")
MAX_ATOMIC_NUMBER = 94
BATCH_SIZE = 8


def load_chgnet(
    path: pathlib.Path | None = None, variant: str | None = None, device: str = "cpu", batch_size: int = BATCH_SIZE
) -> Potential:
    """Loads CHGNet with the weights in its package, or from a file that its trainer wrote.

    Its energies include the MP2020 corrections, because it was trained with them. The version "r2scan" is for another
    functional, for which these corrections are not defined.

    Args:
        path: a checkpoint {"model": CHGNet.as_dict()}; it is unpickled, so it must come from a trusted source.
        variant: one of `VERSIONS`, only without a path.

    Raises:
        ImportError: CHGNet is not installed.
        ValueError: the version or device is unknown, or the file is not such a checkpoint.
    """
    model = _load_model(path, variant, device)

    def predict(structures: Sequence["pymatgen.core.Structure"], quantity: Quantity) -> Predictions:
        package = BatchModel(
            lambda structure: _graph(model, structure),
            lambda graphs: _run(model, graphs, quantity),
            (ValueError, RuntimeError),
        )
        return collect_predictions(*run_in_batches(structures, package, batch_size))

    return Potential(f"chgnet {path.name if path else variant or VERSIONS[0]}", predict, corrected=True)


def _load_model(path: pathlib.Path | None, variant: str | None, device: str) -> Any:
    try:
        import torch  # noqa: F401  # imported first, because CHGNet's own message does not name the missing package
        from chgnet.model.model import CHGNet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("CHGNet is not installed: pip install 'matterform[chgnet]'") from error
    check_device(device)
    if path is not None and variant is not None:
        raise ValueError(f"give CHGNet a file or a version, not both; got {path} and {variant!r}")
    if variant is not None and variant not in VERSIONS:
        raise ValueError(f"CHGNet has the versions {', '.join(VERSIONS)}; got {variant!r}")
    with unchanged_process():
        if path is None:
            model = CHGNet.load(model_name=variant or VERSIONS[0], use_device="cpu", verbose=False)
        else:
            model = _load_file(CHGNet, check_path("CHGNet", path, "a checkpoint of its trainer"))
    model.graph_converter.set_isolated_atom_response("error")
    return model.to(device).eval().requires_grad_(False)


def _load_file(CHGNet: Any, path: pathlib.Path) -> Any:
    try:
        return CHGNet.from_file(str(path))
    except UNPICKLING_ERRORS as error:
        raise ValueError(f"{path} is not a checkpoint of CHGNet: {one_line(error)[:200]}") from error


def _graph(model: Any, structure: "pymatgen.core.Structure") -> Any:
    check_elements(structure, range(1, MAX_ATOMIC_NUMBER + 1))
    return model.graph_converter(structure, graph_id=structure.reduced_formula)


def _run(model: Any, graphs: list[Any], quantity: Quantity) -> list[Prediction]:
    """Energies, and forces and stress by one backward pass; half the cost of CHGNet's own two backward passes."""
    import torch

    graphs = [graph.to(next(model.parameters()).device) for graph in graphs]
    counts = np.array([len(graph.atomic_number) for graph in graphs])
    with torch.set_grad_enabled(quantity != "energy"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")
        values = model(graphs, task="e")["e"]
        energies = values.detach().cpu().numpy().astype(np.float64) * (counts if model.is_intensive else 1)
        if quantity == "energy":
            return [Prediction(float(energy)) for energy in energies]
        totals = values * torch.as_tensor(counts, device=values.device) if model.is_intensive else values
        frac, cells = [graph.atom_frac_coord for graph in graphs], [graph.lattice for graph in graphs]
        gradients = torch.autograd.grad(totals.sum(), [*frac, *cells])
    half = len(graphs)
    rows = zip(energies, _arrays(gradients[:half]), _arrays(gradients[half:]), _arrays(cells), strict=True)
    return [_prediction(float(energy), by_frac, by_cell, cell, quantity) for energy, by_frac, by_cell, cell in rows]


def _arrays(tensors: Sequence[Any]) -> list[np.ndarray]:
    return [to_numpy(tensor) for tensor in tensors]


def _prediction(
    energy: float, by_frac: np.ndarray, by_cell: np.ndarray, cell: np.ndarray, quantity: Quantity
) -> Prediction:
    """Cartesian positions are frac @ cell, and a strain e makes the cell cell @ (1 + e) at fixed frac."""
    forces = -by_frac @ np.linalg.inv(cell).T
    if quantity == "forces":
        return Prediction(energy, forces)
    virial = cell.T @ by_cell
    return Prediction(energy, forces, (virial + virial.T) / 2 / abs(np.linalg.det(cell)))
