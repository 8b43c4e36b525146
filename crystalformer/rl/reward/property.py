"""Rewards from property models: distance to a target, dielectric figure of merit (docs/formulas/reinforcement.md)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from crystalformer.rl.config import RewardConfig
from crystalformer.rl.reward.base import Reward, Scores, make_scores
from matterform.potentials.base import Properties, PropertyModel

if TYPE_CHECKING:
    import pymatgen.core

Form = Literal["absolute", "squared"]


def property_reward(
    model: PropertyModel,
    target: float,
    form: Form = RewardConfig.property_form,
    largest_error: float = RewardConfig.reward_clip,
) -> Reward:
    """-|y - target| or -(y - target)^2, in the unit of the model or its square.

    Args:
        largest_error: larger errors, and structures without a value, count as this error.

    Raises:
        ValueError: when structures are scored, if the model predicts more than one number per structure.
    """
    worst = -largest_error if form == "absolute" else -(largest_error**2)

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        predicted = model.predict(structures)
        values = _scalar(model, predicted)
        error = np.abs(values - target)
        return make_scores(
            -error if form == "absolute" else -(error**2), predicted.problems, worst, {"property": values}
        )

    return Reward("property", score, worst)


def dielectric_reward(dielectric_model: PropertyModel, gap_model: PropertyModel) -> Reward:
    """Total dielectric constant times band gap (eV), a figure of merit of dielectrics (arXiv:2504.02367); worst is 0.

    The dielectric constant is the mean eigenvalue of the predicted tensor, which is given as six components
    (xx, yy, zz first), as nine, or as its mean eigenvalue. Negative predictions count as 0.

    Raises:
        ValueError: when structures are scored, if the predictions have another number of components.
    """

    def score(structures: "Sequence[pymatgen.core.Structure]") -> Scores:
        tensors, gaps = dielectric_model.predict(structures), gap_model.predict(structures)
        details = {"dielectric": _mean_eigenvalue(dielectric_model, tensors), "band_gap": _scalar(gap_model, gaps)}
        values = np.maximum(details["dielectric"], 0) * np.maximum(details["band_gap"], 0)
        problems = [first or second for first, second in zip(tensors.problems, gaps.problems, strict=True)]
        return make_scores(values, problems, 0.0, details)

    return Reward("dielectric", score, 0.0)


def _scalar(model: PropertyModel, predicted: Properties) -> Float[np.ndarray, " b"]:
    """One predicted number per structure.

    Raises:
        ValueError: the model predicts more than one number.
    """
    width = int(np.prod(predicted.values.shape[1:]))
    if width != 1:
        raise ValueError(
            f"{model.name} predicts {width} numbers for a crystal; expected a model that predicts one number"
        )
    return predicted.values.reshape(-1)


def _mean_eigenvalue(model: PropertyModel, predicted: Properties) -> Float[np.ndarray, " b"]:
    """A third of the tensor's trace.

    Raises:
        ValueError: the predictions have neither one, six nor nine components.
    """
    values = predicted.values.reshape(len(predicted.values), int(np.prod(predicted.values.shape[1:])))
    diagonal = {1: (0,), 6: (0, 1, 2), 9: (0, 4, 8)}.get(values.shape[1])
    if diagonal is None:
        raise ValueError(
            f"{model.name} predicts {values.shape[1]} numbers for a crystal; expected 1, 6 or 9 of a tensor"
        )
    return values[:, diagonal].mean(1)
