"""What sampling, inpainting and relaxation refuse alike."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from agedi.config import DiffusionConfig
from agedi.score import ScoreModel


def check_counts(**counts: int) -> None:
    """Whole numbers, at least 1; a seed may be 0."""
    for name, count in counts.items():
        least = 0 if name == "seed" else 1
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
            raise ValueError(f"{name} must be a whole number of at least {least}; got {count!r}")


def check_force_field(model: ScoreModel, purpose: str) -> None:
    """Refuses what needs a force field where there is none."""
    if model.force_field is None:
        raise ValueError(f"{purpose} needs a force field, and this model was trained without one (--force_field)")


def check_known(config: DiffusionConfig, numbers: Sequence[int] | Int[np.ndarray, " n"], source: str) -> None:
    """Every species must be one that the model was trained on."""
    unknown = sorted(set(np.asarray(numbers).tolist()) - set(config.species))
    if config.species and unknown:
        raise ValueError(f"{source} has {_symbols(unknown)}, but the model was trained on {_symbols(config.species)}")


def _symbols(numbers: Sequence[int]) -> str:
    from matterform.elements import element_table

    return ", ".join(str(element_table().symbol[number]) for number in numbers)
