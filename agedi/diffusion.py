"""A diffusion model as one thing: what describes it and its weights, made new or loaded from a run."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from agedi.checks import SAME_CELL, check_cell
from agedi.config import (
    NOISERS,
    ConditionConfig,
    DiffusionConfig,
    ForceFieldConfig,
    ModelConfig,
    diffuses_types,
    position_noiser,
)
from agedi.data.dataset import EXTENSIVE, Dataset, all_graphs, condition_kinds, fit_reference_energies
from agedi.data.graph import AtomsGraph
from agedi.network.score import Params, ScoreModel, make_score_model
from agedi.noise.noisers import choose_sigma_max
from matterform.config import from_dict, load_values
from matterform.training.checkpoint import complete_steps, load_inference_params

logger = logging.getLogger(__name__)

HPARAMS = "hparams.yaml"
BEST, LAST = "best_model", "last_model"
SMALLEST_SCALE = 1e-2  # eV an atom
OPEN_WIDTHS = 3.0  # of a molecule: noise that hides where its atoms were, yet lets them see each other


class Diffusion(NamedTuple):
    """A diffusion model with its weights."""

    config: DiffusionConfig
    model: ScoreModel

    @property
    def params(self) -> Params:
        """The weights."""
        return self.model.params


def create_diffusion(
    noisers: str | Sequence[str] = ("CellPositions",),
    sde: Literal["ve", "vp"] | None = None,
    cutoff: float | None = None,
    feature_size: int = 64,
    n_blocks: int = 4,
    n_rbf: int = 30,
    conditioning: str | Sequence[str] = "none",
    conditioning_type: str | Sequence[str] = "scalar",
    extensive: Sequence[str] = EXTENSIVE,
    force_field: bool = False,
    conservative_forces: bool = False,
    reference_energies: str | Mapping[str | int, float] = "auto",
    confinement: Sequence[float] | None = None,
    loss_scaling: Sequence[float] = (),
    eps: float = 1e-5,
    seed: int = 42,
    dataset: Dataset | None = None,
    **settings: Any,
) -> Diffusion:
    """An untrained model.

    Args:
        noisers: `Positions`, `CellPositions`, `ConfinedCellPositions` or `Types`; several, or names joined by commas.
        sde: `ve`, or `vp` (only `Positions`, which take it by default).
        cutoff: in Å, 6 by default.
        conditioning: names of properties, or "none"; `conditioning_type` is one kind for all or a kind each.
        extensive: properties that grow with the number of atoms, if they are conditioned on.
        reference_energies: "auto" (fitted to the data), "none", or eV by element, as "Cu:-3.72,O:-4.95" or a mapping.
        confinement: z_min and z_max (Å).
        dataset: gives what is left open: species, sigma_max, means of properties, and so on. Without it, `train` does.
        settings: other fields of `DiffusionConfig`, such as schedule, sigma_max or condition_dropout.

    Raises:
        ValueError: the arguments contradict each other, or the data do not fit them.
    """
    names = tuple(noiser_name(name) for name in split_names(noisers))
    walls = None if confinement is None else _pair(confinement)
    if walls is None and dataset is not None and "ConfinedCellPositions" in names:
        walls = dataset_confinement(dataset)
    references = parse_reference_energies(reference_energies)
    config = DiffusionConfig(
        noisers=names,
        sde=sde or ("vp" if "Positions" in names else "ve"),
        model=ModelConfig(
            feature_size=feature_size, n_blocks=n_blocks, n_rbf=n_rbf, cutoff=6.0 if cutoff is None else float(cutoff)
        ),
        conditions=make_conditions(conditioning, conditioning_type, extensive),
        force_field=ForceFieldConfig(conservative=conservative_forces, reference_energies=references or ())
        if force_field
        else None,
        confinement=walls,
        loss_scaling=tuple(map(float, loss_scaling)),
        eps=eps,
        **settings,
    )
    if dataset is not None:
        config = resolve(config, dataset, reference_energies)
    return Diffusion(config, new_model(config, seed))


def new_model(config: DiffusionConfig, seed: int) -> ScoreModel:
    """The network with fresh parameters, which one compiled function draws: op by op takes three times as long."""
    params = jax.jit(lambda key: make_score_model(key, config).params)(jax.random.key(seed))
    return network(config)._replace(params=params)


def network(config: DiffusionConfig) -> ScoreModel:
    """The network with the shapes of its parameters in their place; computes nothing."""
    made: list[ScoreModel] = []

    def params(key: Any) -> Params:
        made.append(make_score_model(key, config))  # its functions do not depend on the key
        return made[0].params

    shapes = jax.eval_shape(params, jax.random.key(0))
    return made[0]._replace(params=shapes)


def split_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names given one by one or joined by commas; "none" is none."""
    parts = [names] if isinstance(names, str) else list(names)
    found = [name.strip() for part in parts for name in part.split(",")]
    return tuple(name for name in found if name and name.lower() != "none")


def noiser_name(name: str) -> str:
    """The noiser that is meant, also by `cell_positions`."""
    known = {noiser.lower(): noiser for noiser in NOISERS}
    return known.get(name.replace("_", "").lower(), name)


def make_conditions(
    names: str | Sequence[str], kinds: str | Sequence[str], extensive: Sequence[str] = EXTENSIVE
) -> tuple[ConditionConfig, ...]:
    """The properties to be conditioned on; `kinds` is one for all of them, or one each."""
    return tuple(
        ConditionConfig(name=name, kind=kind, extensive=name in extensive)  # pyright: ignore[reportArgumentType]
        for name, kind in condition_kinds(names, kinds).items()
    )


def dataset_confinement(dataset: Dataset) -> tuple[float, float]:
    """The walls of the structures.

    Raises:
        ValueError: they have none.
    """
    low, high = dataset.graphs[0].confinement.tolist()
    if not np.isfinite([low, high]).all():
        raise ValueError(
            "ConfinedCellPositions needs a confinement; give the data set one: z_min and z_max in angstrom"
        )
    return low, high


def _pair(values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2:
        raise ValueError(f"confinement must be z_min and z_max in angstrom; got {tuple(values)}")
    return float(values[0]), float(values[1])


def parse_reference_energies(
    given: str | Mapping[str | int, float],
) -> tuple[tuple[int, float], ...] | None:
    """Energies (eV) by atomic number, from "Cu:-3.72,O:-4.95" or a mapping; () for "none", None for "auto"."""
    from matterform.elements import atomic_number

    if given in ("auto", "none"):
        return None if given == "auto" else ()
    pairs: list[tuple[str | int, Any]]
    if isinstance(given, str):
        pairs = [(symbol.strip(), value) for symbol, _, value in (part.partition(":") for part in given.split(","))]
    else:
        pairs = list(given.items())
    try:
        energies = {
            symbol if isinstance(symbol, int) else atomic_number(symbol): float(value) for symbol, value in pairs
        }
    except ValueError as error:
        raise ValueError(
            f"reference_energies must be auto, none or eV by element, as Cu:-3.72,O:-4.95; got {given}"
        ) from error
    return tuple(sorted(energies.items()))


def resolve(
    config: DiffusionConfig, dataset: Dataset, reference_energies: str | Mapping[str | int, float] = "auto"
) -> DiffusionConfig:
    """The config with what it leaves open taken from the data, and from `reference_energies`; what it gives stays.

    Raises:
        ValueError: the data do not fit it.
    """
    diffused = [graph for graph, diffuse in zip(dataset.graphs, dataset.diffuse, strict=True) if diffuse]
    cells, pbcs = np.stack([graph.cell for graph in diffused]), np.stack([graph.pbc for graph in diffused])
    _check_spaces(config, diffused)
    changes: dict[str, Any] = {}
    found = tuple(np.unique(np.concatenate([graph.x for graph in diffused])).tolist())
    if not config.species:
        changes["species"] = found
    elif diffuses_types(config) and (new := sorted(set(found) - set(config.species))):
        raise ValueError(
            f"the model draws the species {list(config.species)}; the data also hold {new}: train a new one"
        )
    if config.sigma_max is None and config.sde == "ve" and position_noiser(config) is not None:
        # Cells of the force field's own structures do no harm here, those of copies matter.
        changes["sigma_max"] = largest_noise(config, all_graphs(dataset) if dataset.repeat > 1 else diffused)
    if config.cell is None and pbcs.any() and np.ptp(cells, axis=0).max() < SAME_CELL:
        changes["cell"] = tuple(cells[0].astype(float).ravel().tolist())
    if config.pbc is None and (pbcs == pbcs[:1]).all():
        changes["pbc"] = tuple(pbcs[0].tolist())
    changes["conditions"] = tuple(
        _standardised(condition, condition_values(dataset, condition.name)) for condition in config.conditions
    )
    if config.force_field is not None:
        changes["force_field"] = _scaled(config.force_field, dataset, reference_energies)
    return dataclasses.replace(config, **changes)


def _check_spaces(config: DiffusionConfig, graphs: Sequence[AtomsGraph]) -> None:
    """Refuses structures that the noise of the positions is not made for, the first by its index."""
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


def condition_values(dataset: Dataset, name: str) -> np.ndarray:
    """All values of a property that training sees, those of repeated cells included."""
    values = [np.ravel(v) for v, diffuse in zip(dataset.conditions[name], dataset.diffuse, strict=True) if diffuse]
    single = np.concatenate(values)
    if name not in dataset.extensive:
        return single
    return np.concatenate([single * k**2 for k in range(1, dataset.repeat + 1)])


def _scaled(
    config: ForceFieldConfig, dataset: Dataset, reference_energies: str | Mapping[str | int, float]
) -> ForceFieldConfig:
    """The force field with energies of the elements, and the spread of energies about them as its unit."""
    known = np.flatnonzero(np.isfinite(dataset.energies))
    if not len(known):
        return config
    if not config.reference_energies:
        given = parse_reference_energies(reference_energies)
        fitted = fit_reference_energies(dataset) if given is None else given
        config = dataclasses.replace(config, reference_energies=fitted)
    if config.energy_scale == 1.0:
        references = dict(config.reference_energies)
        rest = [
            (dataset.energies[row] - sum(references.get(number, 0.0) for number in dataset.graphs[row].x.tolist()))
            / len(dataset.graphs[row].x)
            for row in known
        ]
        config = dataclasses.replace(config, energy_scale=max(float(np.std(rest)), SMALLEST_SCALE))
    return config


def load_diffusion(path: str | pathlib.Path, checkpoint: str | None = None) -> Diffusion:
    """The model of a training run, with its weights: the moving average where there is one.

    Args:
        path: a run's folder, or its checkpoints/best_model or checkpoints/last_model.
        checkpoint: "best_model" or "last_model"; by default what `path` names, or else the best where there is one.

    Raises:
        ValueError: there is no such run or checkpoint, or it is of another kind.
    """
    run_dir, named = split_checkpoint(path)
    config = load_hparams(run_dir)
    folder = choose_checkpoint(run_dir, named if checkpoint is None else checkpoint)
    model = network(config)
    return Diffusion(config, model._replace(params=load_inference_params(folder, model.params)))


def split_checkpoint(path: str | pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """The run's folder, and the checkpoint that a path inside it names."""
    path = pathlib.Path(path)
    if path.parent.name == "checkpoints":
        return path.parent.parent, path.name
    return (path.parent, None) if path.name == "checkpoints" else (path, None)


def load_hparams(run_dir: pathlib.Path) -> DiffusionConfig:
    """What describes the model of a run.

    Raises:
        ValueError: the folder is no run of AGeDi.
    """
    if not run_dir.exists():
        raise FileNotFoundError(f"{run_dir} does not exist (looked from {pathlib.Path.cwd()})")
    if not (run_dir / HPARAMS).is_file():
        raise ValueError(f"{run_dir} is no run of AGeDi: it has no {HPARAMS}{_what_it_is(run_dir)}")
    values = load_values(run_dir / HPARAMS)
    if not isinstance(values.get("diffusion"), dict):
        raise ValueError(f"{run_dir / HPARAMS} describes no diffusion model (no key 'diffusion'); found {list(values)}")
    try:
        return from_dict(DiffusionConfig, values["diffusion"])
    except ValueError as error:
        raise ValueError(f"{run_dir / HPARAMS}: {error}") from error


def choose_checkpoint(run_dir: pathlib.Path, name: str | None) -> pathlib.Path:
    """The folder of a run's checkpoint called `name`; of the best where there is one, by default."""
    folders = {kind: run_dir / "checkpoints" / kind for kind in (BEST, LAST)}
    found = [kind for kind, folder in folders.items() if complete_steps(folder)]
    if not found:
        raise ValueError(f"{run_dir} has no complete checkpoint: its training was stopped before the first one")
    if name is None:
        return folders[found[0]]
    kind = name.removesuffix(".ckpt")
    kind = kind if kind.endswith("_model") else f"{kind}_model"
    if kind not in found:
        raise ValueError(f"{run_dir} has no checkpoint {name!r}; found {', '.join(found)}")
    return folders[kind]


def _what_it_is(folder: pathlib.Path) -> str:
    if folder.is_dir() and (versions := sorted(path.name for path in folder.glob("version_*"))):
        return f"; choose one of its runs: {', '.join(versions)}"
    if (folder / "config.yaml").is_file():
        return ", but a config.yaml: a run of CrystalFormer or AtomFormer"
    return ""


def largest_noise(config: DiffusionConfig, graphs: Sequence[AtomsGraph]) -> float:
    """The noise (Å) of t = 1: uniform in periodic directions and between walls, wider than the structure in others."""
    cells, pbcs = np.stack([graph.cell for graph in graphs]), np.stack([graph.pbc for graph in graphs])
    noiser = position_noiser(config)
    if noiser == "ConfinedCellPositions":
        assert config.confinement is not None
        low, high = config.confinement
        # A truncated normal has no mirror images, so it takes a larger deviation to become uniform.
        width = (high - low) * (4 if config.walls == "truncated" else 1)
        return choose_sigma_max(cells, pbcs & np.array([True, True, False]), width)
    if noiser == "Positions":
        pbcs = np.zeros_like(pbcs)
    widths = [
        _open_width(np.asarray(graph.pos), cell, pbc) for graph, cell, pbc in zip(graphs, cells, pbcs, strict=True)
    ]
    largest = max(choose_sigma_max(cells, pbcs), OPEN_WIDTHS * max(widths), 2 * config.sigma_min)
    if max(widths) > 0 and largest > config.model.cutoff:
        logger.warning(
            "sigma_max is %.1f angstrom and the cutoff %.1f: at the end of the noise most atoms do not see each other; "
            "use a larger cutoff, or sde vp with Positions",
            *(largest, config.model.cutoff),
        )
    return largest


def _open_width(pos: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> float:
    """Standard deviation (Å) of a coordinate across the periodic directions."""
    if pbc.all():
        return 0.0
    periodic = cell[pbc].astype(float)
    across = np.eye(3) - np.linalg.pinv(periodic) @ periodic if pbc.any() else np.eye(3)
    centred = (pos - pos.mean(axis=0)) @ across
    return float(np.sqrt(np.sum(centred**2) / (len(pos) * (3 - pbc.sum()))))


def _standardised(condition: ConditionConfig, values: np.ndarray) -> ConditionConfig:
    """The property with the mean and deviation of its values, unless it has others; classes are checked."""
    if condition.kind == "integer":
        if values.min() < 0 or values.max() >= condition.num_classes:
            raise ValueError(
                f"classes of {condition.name} must lie in 0 ... {condition.num_classes - 1}; "
                f"the data hold {values.min()} to {values.max()}"
            )
        return condition
    if (condition.mean, condition.std) != (0.0, 1.0):
        return condition
    std = float(np.std(values))
    if std == 0:
        logger.warning("%s is %g in every structure: nothing can be learned from it", condition.name, values[0])
    return dataclasses.replace(condition, mean=float(np.mean(values)), std=std or 1.0)
