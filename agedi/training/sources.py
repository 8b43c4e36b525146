"""Structures to train on: given in Python, or read from files."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from agedi.config import DiffusionConfig
from agedi.data.dataset import Dataset, create_dataset
from agedi.training.config import DataConfig

if TYPE_CHECKING:
    import ase

logger = logging.getLogger(__name__)


class Structures(NamedTuple):
    """Structures given in Python instead of files."""

    data: "Sequence[ase.Atoms] | None" = None
    regressor_data: "Sequence[ase.Atoms] | None" = None
    properties: "Sequence[Mapping[str, Any]] | None" = None


NOTHING_GIVEN = Structures()


def read_dataset(source: DataConfig, config: DiffusionConfig, structures: Structures = NOTHING_GIVEN) -> Dataset:
    """The data set for a model, from the given structures, or else from the files of `source`.

    Raises:
        ValueError: no file is named, or its structures do not fit the model.
    """
    data, regressor_data, properties = structures
    if data is None:
        if source.train is None:
            raise ValueError("train (data_path) must name a file of structures; found none")
        data = read_atoms(source.train)
    if regressor_data is None and source.regressor_data is not None:
        regressor_data = read_atoms(source.regressor_data)
    return create_dataset(
        list(data),
        source.dataset,
        conditioning=tuple(condition.name for condition in config.conditions) or "none",
        conditioning_type=tuple(condition.kind for condition in config.conditions) or "scalar",
        properties=properties,
        cutoff=config.model.cutoff,
        force_field=config.force_field is not None,
        regressor_data=regressor_data,
    )


def read_atoms(path: pathlib.Path) -> "list[ase.Atoms]":
    """The structures of a file as ASE's Atoms; those that cannot be read are counted in a warning.

    Raises:
        ValueError: the file has no structure that can be read.
    """
    from matterform.io.formats import read_structures, to_atoms

    structures, refused = read_structures(path)
    if not structures:
        raise ValueError(f"{path} holds no structure that can be read: {next(iter(refused.values()))}")
    if refused:
        index, reason = next(iter(refused.items()))
        logger.warning("%s: %d entries cannot be read; the first is %d: %s", path, len(refused), index, reason)
    return [to_atoms(structure) for structure in structures]
