"""Which weights to use: by default the small model that ships, so that sampling works right after installation."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Int

from crystalformer.checkpoint.published import Checkpoint, load_checkpoint
from crystalformer.config import WeightsConfig

FOLDER = pathlib.Path(__file__).parents[1] / "assets"
NAME = "mp20_biternary"


def load_model(weights: WeightsConfig) -> Checkpoint:
    """The weights asked for, with the hyper-parameters given; errors as in `load_checkpoint`."""
    given = {name: value for name, value in dataclasses.asdict(weights).items() if value is not None}
    path = given.pop("model", None)
    return load_pretrained(**given) if path is None else load_checkpoint(path, **given)


def load_pretrained(**hyperparameters: Any) -> Checkpoint:
    """The shipped weights: binary and ternary crystals of MP-20, up to 20 atoms a primitive cell (see `model_card`).

    `hyperparameters` are those of `load_checkpoint`.
    """
    return load_checkpoint(FOLDER / f"{NAME}.pkl", **hyperparameters)


def model_card() -> dict[str, Any]:
    """What the shipped weights were trained on, how, and how good they are."""
    return json.loads((FOLDER / f"{NAME}.json").read_text(encoding="utf-8"))


def held_out_statistics() -> dict[str, list[Any]]:
    """Columns (formula, atoms, density, ...) of the held-out crystals: what samples should look like on the whole."""
    return json.loads((FOLDER / f"{NAME}_held_out.json").read_text(encoding="utf-8"))


def training_spacegroups() -> Int[np.ndarray, "230"]:
    """How many training crystals each space group has; entry 0 is group 1."""
    counts = np.zeros(230, np.int64)
    for group, count in model_card()["spacegroups"].items():
        counts[int(group) - 1] = count
    return counts
