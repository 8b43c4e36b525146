"""Training and validation structures of a run."""

import logging
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from atomformer.config import TrainConfig
from atomformer.data.dataset import Dataset, atom_counts, select
from atomformer.data.sources import load_dataset
from matterform.training.split import split_rows

logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """The structures to train on, and those held out for validation (None without validation)."""

    train: Dataset
    rows: Int64[np.ndarray, " m"]  # indices of the training structures in `train`
    validation: Dataset | None


def load_split(config: TrainConfig) -> Split:
    """The training and validation structures of a run; always the same for the same settings.

    A memory-mapped data set is not copied: its statistics then include the held-out structures.

    Raises:
        FileNotFoundError, ValueError: the data cannot be read, or all structures would be held out.
    """
    dataset = _load(config.train, config.split)
    total = len(atom_counts(dataset))
    if config.validation is not None or config.validation_split is not None:
        return Split(dataset, np.arange(total), _load(config.validation or config.train, config.validation_split))
    rows = split_rows(total, config.validation_fraction, config.seed, "structures")
    if not len(rows.held_out):
        return Split(dataset, np.arange(total), None)
    kept, others = np.sort(rows.train), np.sort(rows.held_out)
    if isinstance(dataset.offsets, np.memmap):
        return Split(dataset, kept, select(dataset, others))
    return Split(select(dataset, kept), np.arange(len(kept)), select(dataset, others))


def _load(path: pathlib.Path, split: str | None) -> Dataset:
    dataset, refused = load_dataset(path, split=split)
    if refused:
        row, reason = next(iter(refused.items()))
        logger.warning("%s: %d of its structures cannot be used; the first is %d: %s", path, len(refused), row, reason)
    return dataset
