"""Requests for samples: checked, completed from the model, and converted to the structure that sampling starts from."""

import collections
import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from agedi.checks import SAME_CELL, check_cell, check_counts, check_known
from agedi.config import ConditionConfig, DiffusionConfig, diffuses_types, position_noiser
from agedi.data.graph import AtomsGraph, from_atoms, to_atoms
from agedi.noise.noisers import choose_sigma_max
from agedi.sampling.parsing import parse_cell, parse_confinement, parse_formula, parse_numbers, parse_pbc
from matterform.config import setting

if TYPE_CHECKING:
    import ase

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampleRequest:
    """What to sample. Species, positions or a cell must be given if the model does not generate them.

    A cell is needed unless nothing is periodic or all training structures share one.
    """

    # number of atoms to sample, not counting the template's; none: from the species
    num_atoms: int | None = setting(None, "n_atoms")
    # atomic numbers of the sampled atoms; a composition only, if the model generates species
    atomic_numbers: Any = None
    formula: str | None = None  # chemical formula of the sampled atoms, e.g. Pd4O4; replaces atomic_numbers
    positions: Any = None  # (num_atoms, 3) in Å, if the model does not generate positions
    cell: Any = None  # lattice vectors as rows in Å: three lengths, lengths and angles (degrees), or nine numbers
    pbc: Any = None  # periodic directions; none: those of the training data, or all (none for noiser Positions)
    # ASE's Atoms or an AtomsGraph: fixed atoms, which come first in every sample, and their cell
    template: Any = None
    confinement: Any = None  # z_min and z_max in Å, for models with a confinement; none: those of the training data
    # values by name of a conditional model: a number, or one number per atom (template first)
    property: Mapping[str, Any] | None = None


class InitialState(NamedTuple):
    """The structure from which one sample starts."""

    atoms: "ase.Atoms"  # fixed atoms as given, then the atoms to sample
    graph: AtomsGraph  # the same atoms, not padded
    conditions: dict[str, np.ndarray]  # values of the properties by name; {} for unconditional sampling
    remaining: Int[np.ndarray, " k"] | None = None  # number of atoms of each species, if prescribed
    selected: Bool[np.ndarray, " n"] | None = None  # inpainting: the free atoms to sample


def make_initial_state(config: DiffusionConfig, request: SampleRequest) -> InitialState:
    """Checks a request and completes it from the model.

    Raises:
        ValueError: a field is missing, out of range, or contradicts the model or another field.
    """
    import ase
    from ase.constraints import FixAtoms

    template = _template(config, request.template)
    cell, pbc = _cell_and_pbc(config, request, template)
    walls = parse_confinement(config, request.confinement, cell, pbc)
    numbers, count = _species(config, request)
    sampled = ase.Atoms(np.zeros(count, int) if numbers is None else numbers, _positions(config, request, count))
    atoms = sampled if template is None else template + sampled
    atoms.set_cell(cell)
    atoms.set_pbc(pbc)
    mask = np.arange(len(atoms)) < len(atoms) - count
    try:
        known = np.maximum(atoms.numbers, 1)  # from_atoms does not accept 0, which marks species to sample
        graph = from_atoms(ase.Atoms(known, atoms.positions, cell=cell, pbc=pbc))._replace(mask=mask)
    except ValueError as error:
        raise ValueError(f"the requested structure {error}") from error
    if walls is not None:
        graph = graph._replace(confinement=np.array(walls, np.float32))
    warn_of_large_cell(config, graph)
    if mask.any() and not atoms.constraints:
        atoms.set_constraint(FixAtoms(mask=mask))
    remaining = None
    if diffuses_types(config):
        remaining = None if numbers is None else _amounts(config, numbers)
        graph = graph._replace(x=np.where(mask, graph.x, 0).astype(np.int32))
    return InitialState(atoms, graph, make_conditions(config, request.property, len(atoms)), remaining)


def warn_of_large_cell(config: DiffusionConfig, graph: AtomsGraph) -> None:
    """Warns if the noise at t = 1 is not the prior, in a cell or between walls larger than the training data's."""
    noiser = position_noiser(config)
    if config.sde != "ve" or config.sigma_max is None or noiser not in ("CellPositions", "ConfinedCellPositions"):
        return
    cells, pbcs, width = graph.cell[None], graph.pbc[None], None
    if noiser == "ConfinedCellPositions":
        pbcs, width = pbcs & np.array([True, True, False]), float(np.ptp(graph.confinement))
    needed = choose_sigma_max(cells, pbcs, width)
    if needed > 1.1 * config.sigma_max:
        logger.warning(
            "the cell is larger than those of the training data: uniform positions need noise of %.2f angstrom, "
            "and the model has %.2f; expect uneven samples",
            *(needed, config.sigma_max),
        )


def _template(config: DiffusionConfig, template: "ase.Atoms | AtomsGraph | None") -> "ase.Atoms | None":
    import ase

    if template is None:
        return None
    if isinstance(template, AtomsGraph):
        template = to_atoms(template)
    if not isinstance(template, ase.Atoms):
        raise ValueError(f"template must be ASE's Atoms or an AtomsGraph; got {type(template).__name__}")
    if len(template) == 0:
        raise ValueError("template has no atoms; leave it out")
    check_known(config, template.numbers, "template")
    return template


def _species(config: DiffusionConfig, request: SampleRequest) -> tuple[Int[np.ndarray, " n"] | None, int]:
    """Atomic numbers, or None if they are sampled freely, and the number of atoms to sample."""
    numbers = None
    if request.formula is not None:
        numbers = parse_formula(request.formula)
    if request.atomic_numbers is not None:
        listed = parse_numbers(request.atomic_numbers)
        if numbers is not None and sorted(numbers) != sorted(listed):
            raise ValueError(f"formula {request.formula} and atomic_numbers {listed.tolist()} contradict each other")
        numbers = listed
    positions = None if request.positions is None else len(request.positions)
    counts = {
        "num_atoms": request.num_atoms,
        "formula or atomic_numbers": None if numbers is None else len(numbers),
        "positions": positions,
    }
    given = {name: count for name, count in counts.items() if count is not None}
    if request.num_atoms is not None:
        check_counts(num_atoms=request.num_atoms)
    if len(set(given.values())) > 1:
        found = " and ".join(f"{name} for {count} atoms" for name, count in given.items())
        raise ValueError(f"contradicting numbers of atoms: {found} (those of a template do not count)")
    if numbers is None and not diffuses_types(config):
        raise ValueError("this model does not sample species: give formula or atomic_numbers")
    if not given:
        raise ValueError("the number of atoms is not given: give num_atoms, atomic_numbers or formula")
    if numbers is not None:
        check_known(config, numbers, "formula" if request.formula is not None else "atomic_numbers")
    return numbers, next(iter(given.values()))


def _positions(config: DiffusionConfig, request: SampleRequest, count: int) -> Float[np.ndarray, "n 3"]:
    noiser = position_noiser(config)
    if noiser is not None:
        if request.positions is not None:
            raise ValueError(f"positions contradict the model, which samples them ({noiser}); fix atoms by a template")
        return np.zeros((count, 3))
    if request.positions is None:
        raise ValueError("this model does not sample positions: give positions")
    positions = np.asarray(request.positions, float)
    if positions.shape != (count, 3) or not np.isfinite(positions).all():
        raise ValueError(f"positions must be {count} times 3 finite numbers; got shape {positions.shape}")
    return positions


def _cell_and_pbc(
    config: DiffusionConfig, request: SampleRequest, template: "ase.Atoms | None"
) -> tuple[Float[np.ndarray, "3 3"], Bool[np.ndarray, "3"]]:
    """From the request, the template, or the training data, in this order; the first two must agree."""
    cell = None if request.cell is None else parse_cell(request.cell)
    pbc = None if request.pbc is None else parse_pbc(request.pbc)
    if template is not None:
        if template.cell.rank > 0:
            if cell is not None and np.abs(cell - template.cell.array).max() > SAME_CELL:
                raise ValueError("cell and the template's cell contradict each other; leave cell out")
            cell = template.cell.array
        if pbc is not None and (pbc != template.pbc).any():
            raise ValueError(
                f"pbc {pbc.tolist()} and the template's {template.pbc.tolist()} contradict each other; leave pbc out"
            )
        pbc = template.pbc
    if pbc is None:
        pbc = np.array(config.pbc if config.pbc is not None else [position_noiser(config) != "Positions"] * 3)
    if cell is None and config.cell is not None and template is None:
        cell = np.reshape(config.cell, (3, 3))
    if cell is None and pbc.any():
        raise ValueError(
            "a cell is needed for periodic structures: give cell, or a template with one, or pbc=False for none"
        )
    cell = np.zeros((3, 3)) if cell is None else cell
    check_cell(config, cell, pbc)
    return cell, pbc


def _amounts(config: DiffusionConfig, numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    counts = collections.Counter(numbers.tolist())
    return np.array([counts[species] for species in config.species], np.int32)


def make_conditions(
    config: DiffusionConfig, property: Mapping[str, Any] | None, num_atoms: int
) -> dict[str, np.ndarray]:
    """Values of all properties of the model by name; {} if none is given.

    Raises:
        ValueError: a property is unknown or missing, or a value is not of its kind.
    """
    if not property:
        return {}
    names = [condition.name for condition in config.conditions]
    for name in property:
        if name not in names:
            known = f"is conditioned on {', '.join(names)}" if names else "is not conditioned on any"
            raise ValueError(f"property {name!r} is not one of this model, which {known}")
    if missing := [name for name in names if name not in property]:
        raise ValueError(f"the model is conditioned on {', '.join(names)}: give {', '.join(missing)} too, or none")
    return {condition.name: _value(condition, property[condition.name], num_atoms) for condition in config.conditions}


def _value(config: ConditionConfig, given: Any, num_atoms: int) -> np.ndarray:
    try:
        value = np.asarray(given, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"property {config.name} must be a number; got {given!r}") from error
    if not np.isfinite(value).all():
        raise ValueError(f"property {config.name} must be finite; got {given!r}")
    if config.kind == "node":
        if value.shape not in ((), (num_atoms,)):
            raise ValueError(
                f"property {config.name} must be a number, or one for each of the {num_atoms} atoms (template first); "
                f"got shape {value.shape}"
            )
        return np.broadcast_to(value, num_atoms).copy()
    if value.shape != ():
        raise ValueError(f"property {config.name} must be one number; got shape {value.shape}")
    if config.kind == "scalar":
        return value
    if value != np.floor(value) or not 0 <= value < config.num_classes:
        raise ValueError(f"property {config.name} must be a whole number below {config.num_classes}; got {given!r}")
    return value.astype(np.int32)
