"""Orb (Neumann et al., arXiv:2410.22570; Rhodes et al., arXiv:2504.06231), versions 2 and 3, from local files."""

import functools
import inspect
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Sequence
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
from matterform.potentials.torch_state import check_device, check_path, to_numpy, unchanged_process

if TYPE_CHECKING:
    import pymatgen.core

BATCH_SIZE = 8
MAX_ATOMIC_NUMBER = 117
DOWNLOAD = pathlib.Path("download")

# Without the models for dispersion only and for charged molecules, and version 1, which is no longer available.
VARIANTS = (
    "orb_v2",
    "orb_mptraj_only_v2",
    "orb_d3_v2",
    "orb_d3_sm_v2",
    "orb_d3_xs_v2",
    "orb_v3_conservative_20_omat",
    "orb_v3_conservative_inf_omat",
    "orb_v3_direct_20_omat",
    "orb_v3_direct_inf_omat",
    "orb_v3_conservative_20_mpa",
    "orb_v3_conservative_inf_mpa",
    "orb_v3_direct_20_mpa",
    "orb_v3_direct_inf_mpa",
)


def load_orb(
    path: pathlib.Path | None, variant: str | None = None, device: str = "cpu", batch_size: int = BATCH_SIZE
) -> Potential:
    """Loads a published checkpoint (`orb-v2-20241011.ckpt`, ...) or a fine-tuned one.

    Energies do not include the MP2020 corrections. Energies of v2 and of the v3 "mpa" models are comparable with the
    Materials Project and Alexandria; "omat" models were trained on OMat24, which uses newer pseudopotentials.

    Args:
        path: a state dict saved by torch; or `download` (if no such file exists) to download the published checkpoint
            to the cache of the package.
        variant: one of `VARIANTS`, the architecture of the file; default orb_v2. The weights do not determine whether
            a variant with "20" or "inf" neighbours is meant.

    Raises:
        ImportError: orb-models is not installed.
        ValueError: no path is given, the variant or device is unknown, or the weights are of another architecture.
        FileNotFoundError: the path does not exist.
        OSError: the download fails; the message gives the URL.
    """
    name = (variant or VARIANTS[0]).replace("-", "_")
    if name not in VARIANTS:
        raise ValueError(f"no architecture of Orb is called {variant!r}; there is {', '.join(VARIANTS)}")
    expected = f"a checkpoint of {name}, for instance orb-v2-20241011.ckpt, or `download` to download it"
    download = path is not None and path == DOWNLOAD and not path.exists()
    file = None if download else check_path("Orb", path, expected)
    with unchanged_process():
        pretrained = _import_pretrained()
        check_device(device)
        # Compilation takes longer than most runs, and is no faster on CPUs.
        load = functools.partial(pretrained.ORB_PRETRAINED_MODELS[name.replace("_", "-")], device=device, compile=False)
        url = inspect.signature(load).parameters["weights_path"].default
        model = _fetch(load, url) if file is None else _load_file(load, file, name)
    return orb_potential(model, f"{name} {(file or pathlib.PurePosixPath(url)).name}", device, batch_size)


def orb_potential(model: Any, name: str = "orb", device: str = "cpu", batch_size: int = BATCH_SIZE) -> Potential:
    """The potential of an Orb regressor on `device`; the model must have a `system_config`."""
    model = model.eval().requires_grad_(False)

    def predict(structures: Sequence["pymatgen.core.Structure"], quantity: Quantity) -> Predictions:
        package = BatchModel(
            lambda structure: _graph(model, structure, device),
            lambda graphs: _run(model, graphs, quantity),
            (ValueError, RuntimeError),
        )
        return collect_predictions(*run_in_batches(structures, package, batch_size))

    return Potential(name, predict, corrected=False)


def _import_pretrained() -> Any:
    try:
        from orb_models.forcefield import pretrained
    except ImportError as error:
        raise ImportError("Orb is not installed: pip install 'matterform[orb]'") from error
    return pretrained


def _fetch(load: Callable[..., Any], url: str) -> Any:
    try:
        return load()
    except OSError as error:  # the kind that the package's downloader raises
        raise OSError(
            f"Orb could not fetch {url}: get this file by other means and give its path ({one_line(error)[:200]})"
        ) from error


def _load_file(load: Callable[..., Any], path: pathlib.Path, name: str) -> Any:
    _check_heads(path, name)
    try:
        return load(weights_path=str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is not a checkpoint of {name}: {one_line(error)[:200]}") from error


def _check_heads(path: pathlib.Path, name: str) -> None:
    """Raises ValueError for weights with other heads, because the package would leave missing parameters random."""
    import torch

    if not zipfile.is_zipfile(path):  # torch would read it as a pickle, with unclear errors
        raise ValueError(f"{path} is not a checkpoint of {name}: torch.save has not written it, or not to its end")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its own message advises to trust the file
        raise ValueError(f"{path} is not a checkpoint of {name}: it holds more than weights, or is damaged") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a checkpoint of {name}: {one_line(error)[:200]}") from error
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise ValueError(
            f"{path} is not a checkpoint of {name}: it holds a {type(weights).__name__} that is not a state dict"
        )
    names = {
        "node_head": "forces",
        "graph_head": "energy",
        "stress_head": "stress",
    }  # names in the first files of version 2
    heads = {names.get(key.split(".")[0]) or key.split(".")[1] for key in weights if "head" in key.split(".")[0]}
    direct = "conservative" not in name
    if ("forces" in heads) != direct or "energy" not in heads:
        raise ValueError(f"{path} is not a checkpoint of {name}: it predicts {', '.join(sorted(heads)) or 'nothing'}")


def _graph(model: Any, structure: "pymatgen.core.Structure", device: str) -> Any:
    import torch
    from orb_models.forcefield.atomic_system import ase_atoms_to_atom_graphs

    dtype = next(model.parameters()).dtype  # the default dtype may have been set by another package
    check_elements(structure, range(1, MAX_ATOMIC_NUMBER + 1))
    atoms = bare_atoms(structure)
    graph = ase_atoms_to_atom_graphs(
        atoms,
        model.system_config,
        device=torch.device(device),
        output_dtype=dtype,
        graph_construction_dtype=dtype,
    )
    check_neighbors(structure, graph.receivers.cpu().numpy(), model.system_config.radius)
    return graph


def _run(model: Any, graphs: list[Any], quantity: Quantity) -> list[Prediction]:
    from ase.stress import voigt_6_to_full_3x3_stress
    from orb_models.forcefield.base import batch_graphs

    counts = [int(graph.n_node.sum()) for graph in graphs]
    batch = batch_graphs(graphs)
    if quantity == "energy":
        return [Prediction(float(energy)) for energy in _energies(model, batch)]
    gradient = "grad_" if hasattr(model, "grad_forces_name") else ""
    if quantity == "stress" and not model.has_stress:
        raise ValueError("this Orb model has no stress")
    output = model.predict(batch)
    energies, places = to_numpy(output["energy"]), np.cumsum(counts)[:-1]
    forces = np.split(to_numpy(output[f"{gradient}forces"]), places)
    if quantity == "forces":
        return [Prediction(float(energy), part) for energy, part in zip(energies, forces, strict=True)]
    stress = [voigt_6_to_full_3x3_stress(part) for part in to_numpy(output[f"{gradient}stress"]).reshape(-1, 6)]
    return [Prediction(float(energy), *parts) for energy, *parts in zip(energies, forces, stress, strict=True)]


def _energies(model: Any, batch: Any) -> np.ndarray:
    """Energies (eV) without forces, which takes conservative models a third of the time."""
    import torch

    with torch.no_grad():
        energies = model.heads["energy"].predict(model.model(batch)["node_features"], batch)
    if model.pair_repulsion:
        energies = energies + model.pair_repulsion_fn(batch)["energy"]
    return to_numpy(energies)
