"""A diffusion model: its configuration and its weights, created from settings and training data."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from agedi.checks import SAME_CELL, check_cell
from agedi.config import (
    NOISERS,
    DiffusionConfig,
    DiffusionOptions,
    ForceFieldConfig,
    ModelConfig,
    ReferenceEnergies,
    diffuses_types,
    from_keywords,
    parse_reference_energies,
    position_noiser,
    split_names,
)
from agedi.data.conditions import make_conditions, standardize
from agedi.data.config import EXTENSIVE
from agedi.data.dataset import Dataset, all_graphs, condition_values, dataset_confinement
from agedi.data.graph import AtomsGraph
from agedi.data.reference_energies import normalize_energies
from agedi.network.score import Params, ScoreModel, make_score_model
from agedi.noise.noise_range import largest_noise

# Fields of `DiffusionOptions` that `DiffusionConfig` has too, with the same meaning.
SHARED = ("sigma_min", "sigma_max", "beta_min", "beta_max", "walls", "species", "condition_dropout", "smallest_time")


class Diffusion(NamedTuple):
    """A diffusion model with its weights."""

    config: DiffusionConfig
    model: ScoreModel

    @property
    def params(self) -> Params:
        """The weights."""
        return self.model.params


def create_diffusion(
    noisers: str | Sequence[str] = DiffusionOptions.noisers,
    *,
    confinement: Sequence[float] | None = None,
    extensive: Sequence[str] = EXTENSIVE,
    reference_energies: ReferenceEnergies = "auto",
    dataset: Dataset | None = None,
    seed: int = 42,
    **options: Any,
) -> Diffusion:
    """Creates an untrained model.

    Args:
        noisers: `Positions`, `CellPositions`, `ConfinedCellPositions`, `Types`; several, or names joined by commas.
        confinement: z_min and z_max (Å).
        extensive: properties that grow with the number of atoms, if the model is conditioned on them.
        reference_energies: "auto" (fitted to the data), "none", or eV by element, as "Cu:-3.72,O:-4.95" or a mapping.
        dataset: determines what is not given: species, sigma_max, means of properties and so on. Without it, `train`
            determines these from its own data.
        seed: random seed of the initial weights.
        options: other fields of `DiffusionOptions`: sde, cutoff, feature_size, conditioning, force_field, ...

    Raises:
        ValueError: an option is unknown, arguments contradict each other, or the data do not fit them.
    """
    names = [noiser_name(name) for name in split_names(noisers)]
    settings = from_keywords(DiffusionOptions, {**options, "noisers": names})
    walls = None if confinement is None else _confinement(confinement)
    if walls is None and dataset is not None and "ConfinedCellPositions" in settings.noisers:
        walls = dataset_confinement(dataset)
    config = make_config(settings, walls, extensive, reference_energies)
    if dataset is not None:
        config = complete_config(config, dataset, reference_energies)
    return Diffusion(config, new_model(config, seed))


def make_config(
    options: DiffusionOptions,
    confinement: tuple[float, float] | None,
    extensive: Sequence[str],
    reference_energies: ReferenceEnergies,
) -> DiffusionConfig:
    """The part of a model's configuration that its settings determine.

    Raises:
        ValueError: the settings contradict each other.
    """
    references = parse_reference_energies(reference_energies) or ()
    force_field = ForceFieldConfig(conservative=options.conservative_forces, reference_energies=references)
    return DiffusionConfig(
        noisers=options.noisers,
        sde=options.sde or ("vp" if "Positions" in options.noisers else "ve"),
        model=ModelConfig(
            feature_size=options.feature_size,
            n_blocks=options.n_blocks,
            n_rbf=options.n_rbf,
            cutoff=float(options.cutoff or ModelConfig.cutoff),
        ),
        conditions=make_conditions(options.conditioning, options.conditioning_type, extensive),
        force_field=force_field if options.force_field else None,
        confinement=confinement,
        loss_scaling=options.loss_scaling,
        schedule=options.noise_schedule,
        **{name: getattr(options, name) for name in SHARED},
    )


def options_of(config: DiffusionConfig) -> DiffusionOptions:
    """The settings that give this configuration."""
    return DiffusionOptions(
        noisers=config.noisers,
        sde=config.sde,
        cutoff=config.model.cutoff,
        feature_size=config.model.feature_size,
        n_blocks=config.model.n_blocks,
        n_rbf=config.model.n_rbf,
        conditioning=tuple(condition.name for condition in config.conditions),
        conditioning_type=tuple(condition.kind for condition in config.conditions)
        or DiffusionOptions.conditioning_type,
        force_field=config.force_field is not None,
        conservative_forces=config.force_field is not None and config.force_field.conservative,
        loss_scaling=config.loss_scaling,
        noise_schedule=config.schedule,
        **{name: getattr(config, name) for name in SHARED},
    )


def new_model(config: DiffusionConfig, seed: int) -> ScoreModel:
    """The network with initial weights, sampled by one compiled function: three times as fast as op by op."""
    params = jax.jit(lambda key: make_score_model(key, config).params)(jax.random.key(seed))
    return network(config)._replace(params=params)


def network(config: DiffusionConfig) -> ScoreModel:
    """The network with the shapes of its weights instead of their values; computes nothing."""
    made: list[ScoreModel] = []

    def params(key: Any) -> Params:
        made.append(make_score_model(key, config))  # its functions do not depend on the key
        return made[0].params

    shapes = jax.eval_shape(params, jax.random.key(0))
    return made[0]._replace(params=shapes)


def noiser_name(name: str) -> str:
    """The noiser's name in its usual spelling, also from `cell_positions`; unknown names are returned as they are."""
    known = {noiser.lower(): noiser for noiser in NOISERS}
    return known.get(name.replace("_", "").lower(), name)


def complete_config(
    config: DiffusionConfig, dataset: Dataset, reference_energies: ReferenceEnergies = "auto"
) -> DiffusionConfig:
    """The config with all missing values determined from the data; values that it has are kept.

    These are species, sigma_max, a cell and periodicity that all structures share, statistics of the properties, and
    reference energies and energy scale of a force field.

    Raises:
        ValueError: the data do not fit the config.
    """
    diffused = [graph for graph, diffuse in zip(dataset.graphs, dataset.diffuse, strict=True) if diffuse]
    _check_cells(config, diffused)
    changes = _species(config, diffused) | _shared_cell(config, diffused)
    if config.sigma_max is None and config.sde == "ve" and position_noiser(config) is not None:
        # Cells of regressor structures may be counted here, those of repeated cells must be.
        changes["sigma_max"] = largest_noise(config, all_graphs(dataset) if dataset.repeat > 1 else diffused)
    changes["conditions"] = tuple(
        standardize(condition, condition_values(dataset, condition.name)) for condition in config.conditions
    )
    if config.force_field is not None:
        changes["force_field"] = normalize_energies(config.force_field, dataset, reference_energies)
    return dataclasses.replace(config, **changes)


def _species(config: DiffusionConfig, graphs: Sequence[AtomsGraph]) -> dict[str, Any]:
    """The species of the data, if the config has none; if it has, noiser Types requires that they cover the data."""
    found = tuple(np.unique(np.concatenate([graph.x for graph in graphs])).tolist())
    if not config.species:
        return {"species": found}
    if diffuses_types(config) and (new := sorted(set(found) - set(config.species))):
        raise ValueError(
            f"the model samples the species {list(config.species)}; the data also hold {new}: train a new model"
        )
    return {}


def _shared_cell(config: DiffusionConfig, graphs: Sequence[AtomsGraph]) -> dict[str, Any]:
    """The cell and the periodicity that all structures share, where the config has none."""
    cells, pbcs = np.stack([graph.cell for graph in graphs]), np.stack([graph.pbc for graph in graphs])
    changes: dict[str, Any] = {}
    if config.cell is None and pbcs.any() and np.ptp(cells, axis=0).max() < SAME_CELL:
        changes["cell"] = tuple(cells[0].astype(float).ravel().tolist())
    if config.pbc is None and (pbcs == pbcs[:1]).all():
        changes["pbc"] = tuple(pbcs[0].tolist())
    return changes


def _check_cells(config: DiffusionConfig, graphs: Sequence[AtomsGraph]) -> None:
    """Checks that the noise of the positions is defined in the cell and between the walls of every structure."""
    for index, graph in enumerate(graphs):
        try:
            check_cell(config, np.asarray(graph.cell), np.asarray(graph.pbc))
        except ValueError as error:
            raise ValueError(f"structure {index}: {error}") from error
        walls = np.asarray(graph.confinement)
        confined = position_noiser(config) == "ConfinedCellPositions" and config.confinement is not None
        if confined and not np.allclose(walls, np.array(config.confinement)):
            raise ValueError(
                f"structure {index} is confined to {walls.tolist()}, but the model to {config.confinement}: give both "
                "the same confinement"
            )


def _confinement(values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2:
        raise ValueError(f"confinement must be z_min and z_max in angstrom; got {tuple(values)}")
    return float(values[0]), float(values[1])
