"""Finds and loads weights: a file, a folder, a run, a published model on this disk, or the small shipped model."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Int

from crystalformer.checkpoint.published import BEST, EPOCH_PATTERN, PUBLISHED, Checkpoint, load_checkpoint
from crystalformer.config import WeightsConfig

SHIPPED = pathlib.Path(__file__).parents[1] / "assets" / "mp20_biternary"  # .pkl, .json and _held_out.json
ADVICE = (
    "Published weights are on https://huggingface.co/zdcao/CrystalFormer and zdcao/CrystalFormer-CSP: download a .pkl "
    "and give its path, or fetch the whole model once with `huggingface-cli download zdcao/CrystalFormer` and give "
    "its name"
)


def load_model(weights: WeightsConfig | str | os.PathLike[str] | None = None, **hyperparameters: Any) -> Checkpoint:
    """Loads weights; by default those of the small model that comes with the package.

    Args:
        weights: a file or folder as in `find_checkpoint`, or a `WeightsConfig` that names one.
        hyperparameters: as in `load_checkpoint`; they take precedence over those of a `WeightsConfig`.

    Raises:
        ValueError: nothing is found (see `find_checkpoint`), or the file is not a checkpoint (see `load_checkpoint`).
    """
    if not isinstance(weights, WeightsConfig):
        weights = WeightsConfig(model=None if weights is None else pathlib.Path(weights))
    given = {name: value for name, value in dataclasses.asdict(weights).items() if value is not None}
    model = given.pop("model", None)
    path = pathlib.Path(f"{SHIPPED}.pkl") if model is None else find_checkpoint(model)
    return load_checkpoint(path, **given | hyperparameters)


def find_checkpoint(model: str | os.PathLike[str]) -> pathlib.Path:
    """Finds the .pkl file of weights that `model` refers to.

    `model` is a file; a folder with .pkl files (best.pkl is preferred, then the newest epoch); a run folder (its
    published/ is searched); or a published model, ORG/NAME or ORG/NAME/FILE, in the cache of Hugging Face
    ($HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub).

    Raises:
        ValueError: nothing is found, or a folder has several candidates.
    """
    path = pathlib.Path(model)
    if path.is_file():
        return path
    if path.is_dir():
        return _checkpoint_in(path)
    found = _in_hub_cache(path)
    if found is None:
        raise ValueError(
            f"there is no file or folder {path}, and no published model of that name in {_hub_cache()}. {ADVICE}"
        )
    return found if found.is_file() else _checkpoint_in(found)


def _checkpoint_in(folder: pathlib.Path) -> pathlib.Path:
    """best.pkl, the newest epoch or the only .pkl in a folder, in its published/, or in its only subfolder."""
    for place in (folder / PUBLISHED, folder):
        if (place / BEST).is_file():
            return place / BEST
        epochs = {int(match[1]): path for path in place.glob("*.pkl") if (match := EPOCH_PATTERN.search(path.stem))}
        if epochs:
            return epochs[max(epochs)]
    files = sorted(folder.rglob("*.pkl"))
    if not files:
        raise ValueError(f"{folder} holds no .pkl of weights, nor does a folder in it; is it a run that has not ended?")
    folders = {path.parent for path in files}
    if len(files) > 1 and len(folders) == 1 and folders != {folder}:
        return _checkpoint_in(folders.pop())
    if len(files) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in files[:8])
        raise ValueError(f"{folder} holds {len(files)} files of weights; add the name of one of them: {names}")
    return files[0]


def _hub_cache() -> pathlib.Path:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return pathlib.Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def _in_hub_cache(model: pathlib.Path) -> pathlib.Path | None:
    """A file or folder of a published model in the local cache of huggingface_hub; None if it is not there."""
    if model.is_absolute() or len(model.parts) < 2:
        return None
    organisation, name, *inside = model.parts
    repository = _hub_cache() / f"models--{organisation}--{name}"
    snapshots = sorted(repository.glob("snapshots/*/"), key=lambda path: path.stat().st_mtime, reverse=True)
    main = repository / "refs" / "main"
    if main.is_file():
        snapshots.insert(0, repository / "snapshots" / main.read_text(encoding="utf-8").strip())
    for snapshot in snapshots:
        path = snapshot.joinpath(*inside)
        if path.is_file() or (path.is_dir() and any(path.rglob("*.pkl"))):
            return path
    return None


def load_pretrained(**hyperparameters: Any) -> Checkpoint:
    """The shipped weights: binary and ternary crystals of MP-20, up to 20 atoms per primitive cell (see `model_card`).

    `hyperparameters` are those of `load_checkpoint`.
    """
    return load_model(**hyperparameters)


def model_card() -> dict[str, Any]:
    """Training data, settings and quality of the shipped weights."""
    return json.loads(pathlib.Path(f"{SHIPPED}.json").read_text(encoding="utf-8"))


def held_out_statistics() -> dict[str, list[Any]]:
    """Columns (formula, num_atoms, density_g_cm3, ...) of the held-out crystals, to compare samples with."""
    return json.loads(pathlib.Path(f"{SHIPPED}_held_out.json").read_text(encoding="utf-8"))


def training_spacegroups() -> Int[np.ndarray, "230"]:
    """Number of training crystals in each space group; entry 0 is group 1."""
    counts = np.zeros(230, np.int64)
    for group, count in model_card()["spacegroups"].items():
        counts[int(group) - 1] = count
    return counts
