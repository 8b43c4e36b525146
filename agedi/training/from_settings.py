"""Training from structures and settings, or from a YAML file, in one call."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agedi.checkpoint import split_checkpoint
from agedi.diffusion import create_diffusion, options_of
from agedi.training.config import TrainConfig, train_config
from agedi.training.run import load_run
from agedi.training.sources import NOTHING_GIVEN, Structures, read_dataset
from agedi.training.train import TrainResult, resume, train
from matterform.config import load_values
from matterform.io.files import existing

if TYPE_CHECKING:
    import ase

logger = logging.getLogger(__name__)


def train_from_atoms(
    data: "Sequence[ase.Atoms]",
    *,
    regressor_data: "Sequence[ase.Atoms] | None" = None,
    properties: "Sequence[Mapping[str, Any]] | None" = None,
    checkpoint: str | pathlib.Path | None = None,
    **options: Any,
) -> TrainResult:
    """Creates a data set and a model from ASE Atoms and trains it.

    Args:
        regressor_data: structures that only the force field learns from.
        properties: values by name for each structure, which replace its own.
        checkpoint: a run to continue, as in `resume`.
        options: fields of `TrainConfig` and of the dataclasses in it.

    Raises:
        ValueError: an option is invalid, or the data do not fit the model.
        FloatingPointError: the loss is not finite.
    """
    base = None if checkpoint is None else saved_config(checkpoint)
    structures = Structures(data, regressor_data, properties)
    return train_with(train_config(options, base), checkpoint, structures)


def train_from_config(config: str | pathlib.Path | Mapping[str, Any], **overrides: Any) -> TrainResult:
    """Trains from a YAML file or a mapping of settings.

    Args:
        config: keys are fields of `TrainConfig` and of the dataclasses in it, `data_path` among them; with
            `checkpoint` it continues that run, as `resume` does.
        overrides: settings that replace those of `config`.

    Raises:
        ValueError: a key is unknown, a value is invalid, or the data do not fit the model.
        FloatingPointError: the loss is not finite.
    """
    values = dict(config) if isinstance(config, Mapping) else load_values(existing(config))
    values |= overrides
    checkpoint = values.pop("checkpoint", None)
    return train_with(train_config(values, None if checkpoint is None else saved_config(checkpoint)), checkpoint)


def saved_config(checkpoint: str | pathlib.Path) -> TrainConfig:
    """The settings of a run.

    Raises:
        FileNotFoundError: the run folder does not exist.
        ValueError: the folder is not a run of AGeDi.
    """
    run = load_run(split_checkpoint(checkpoint)[0])
    return TrainConfig(data=run.data, diffusion=options_of(run.diffusion), fit=run.training)


def train_with(
    config: TrainConfig, checkpoint: str | pathlib.Path | None = None, structures: Structures = NOTHING_GIVEN
) -> TrainResult:
    """Trains a new model, or continues the run that `checkpoint` names.

    Raises:
        ValueError: settings contradict each other, the data, or those of a run that is continued.
        FloatingPointError: the loss is not finite.
    """
    if checkpoint is not None:
        return _continue(config, checkpoint, structures)
    data = config.data.dataset
    options = vars(config.diffusion) | {"confinement": data.confinement, "extensive": data.extensive}
    diffusion = create_diffusion(**options, reference_energies=config.fit.reference_energies, seed=config.fit.seed)
    dataset = read_dataset(config.data, diffusion.config, structures)
    species = {number for graph in dataset.graphs for number in graph.x.tolist()}
    limit = config.diffusion.n_classes
    if limit is not None and len(species) > limit:
        raise ValueError(f"n_classes is {limit}, but the data hold {len(species)} species; leave it out or raise it")
    return train(diffusion, dataset, config.fit, source=config.data)


def _continue(config: TrainConfig, checkpoint: str | pathlib.Path, structures: Structures) -> TrainResult:
    """Continues a run with its own model and preparation of the data; `config` does not change these."""
    run = load_run(split_checkpoint(checkpoint)[0])
    ignored = [
        *_different(config.diffusion, options_of(run.diffusion)),
        *_different(config.data.dataset, run.data.dataset),
        *_different(config.data.regressor_data, run.data.regressor_data, "regressor_data"),
    ]
    if ignored:
        logger.warning("%s is continued with its own %s", run.run_dir, ", ".join(sorted(ignored)))
    source = dataclasses.replace(run.data, train=config.data.train)
    return resume(checkpoint, read_dataset(source, run.diffusion, structures), config.fit)


def _different(given: Any, own: Any, name: str | None = None) -> list[str]:
    """Names of the fields in which two dataclasses differ, or `name` if two values do."""
    if name is not None:
        return [name] if given != own else []
    return [field.name for field in dataclasses.fields(own) if getattr(given, field.name) != getattr(own, field.name)]
