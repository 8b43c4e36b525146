"""What a sample is to be: checked, completed from the model, and turned into the structure sampling starts from."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from agedi.checks import SAME_CELL, check_cell, check_counts, check_known, check_noise
from agedi.config import ConditionConfig, DiffusionConfig, diffuses_types, position_noiser
from agedi.data.graph import AtomsGraph, from_atoms, to_atoms

if TYPE_CHECKING:
    import ase


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """What a sample is to be; see `sample`."""

    n_atoms: int | None = None
    atomic_numbers: Any = None
    formula: str | None = None
    positions: Any = None
    cell: Any = None
    pbc: Any = None
    template: "ase.Atoms | AtomsGraph | None" = None
    confinement: Any = None
    property: Mapping[str, Any] | None = None


class Start(NamedTuple):
    """From where one sample is drawn."""

    atoms: "ase.Atoms"  # fixed atoms as they were given, then those to be drawn
    graph: AtomsGraph  # not padded; the same atoms
    conditions: dict[str, np.ndarray]  # {}: without
    remaining: Int[np.ndarray, " k"] | None = None  # atoms of each species to draw, where that is prescribed
    selected: Bool[np.ndarray, " n"] | None = None  # inpainting: the free atoms to draw anew


def make_start(config: DiffusionConfig, wanted: Wanted) -> Start:
    """Completes and checks what is wanted of a sample.

    Raises:
        ValueError: something is missing, contradicts the model or something else, or is out of range.
    """
    import ase
    from ase.constraints import FixAtoms

    template = _template(config, wanted.template)
    cell, pbc = _cell_and_pbc(config, wanted, template)
    walls = parse_confinement(config, wanted.confinement, cell, pbc)
    numbers, count = _species(config, wanted)
    drawn = ase.Atoms(np.zeros(count, int) if numbers is None else numbers, _positions(config, wanted, count))
    atoms = drawn if template is None else template + drawn
    atoms.set_cell(cell)
    atoms.set_pbc(pbc)
    mask = np.arange(len(atoms)) < len(atoms) - count
    try:
        known = np.maximum(atoms.numbers, 1)  # species to be drawn are 0, which no structure of the user's may have
        graph = from_atoms(ase.Atoms(known, atoms.positions, cell=cell, pbc=pbc))._replace(mask=mask)
    except ValueError as error:
        raise ValueError(f"what was asked for {error}") from error
    if walls is not None:
        graph = graph._replace(confinement=np.array(walls, np.float32))
    check_noise(config, graph)
    if mask.any() and not atoms.constraints:
        atoms.set_constraint(FixAtoms(mask=mask))
    remaining = None
    if diffuses_types(config):
        remaining = None if numbers is None else _amounts(config, numbers)
        graph = graph._replace(x=np.where(mask, graph.x, 0).astype(np.int32))
    return Start(atoms, graph, make_conditions(config, wanted.property, len(atoms)), remaining)


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


def _species(config: DiffusionConfig, wanted: Wanted) -> tuple[Int[np.ndarray, " n"] | None, int]:
    """Atomic numbers, or None where they are drawn freely, and how many atoms to draw."""
    numbers = None
    if wanted.formula is not None:
        numbers = parse_formula(wanted.formula)
    if wanted.atomic_numbers is not None:
        listed = _parse_numbers(wanted.atomic_numbers)
        if numbers is not None and sorted(numbers) != sorted(listed):
            raise ValueError(f"formula {wanted.formula} and atomic_numbers {listed.tolist()} contradict each other")
        numbers = listed
    positions = None if wanted.positions is None else len(wanted.positions)
    counts = {
        "n_atoms": wanted.n_atoms,
        "formula or atomic_numbers": None if numbers is None else len(numbers),
        "positions": positions,
    }
    given = {name: count for name, count in counts.items() if count is not None}
    if wanted.n_atoms is not None:
        check_counts(n_atoms=wanted.n_atoms)
    if len(set(given.values())) > 1:
        found = " and ".join(f"{name} for {count} atoms" for name, count in given.items())
        raise ValueError(f"contradicting numbers of atoms: {found} (those of a template do not count)")
    if numbers is None and not diffuses_types(config):
        raise ValueError("this model does not draw species: give formula or atomic_numbers")
    if not given:
        raise ValueError("how many atoms? give n_atoms, atomic_numbers or formula")
    if numbers is not None:
        check_known(config, numbers, "formula" if wanted.formula is not None else "atomic_numbers")
    return numbers, next(iter(given.values()))


def parse_formula(formula: str) -> Int[np.ndarray, " n"]:
    """Atomic numbers in the order of the formula."""
    from ase.formula import Formula

    from matterform.elements import atomic_number

    try:
        counts = Formula(formula).count()
    except ValueError as error:
        raise ValueError(f"formula must be one such as Cu2O; got {formula!r}") from error
    if not counts or min(counts.values()) < 1:
        raise ValueError(f"formula must name at least one atom, as Cu2O; got {formula!r}")
    try:
        return np.array([atomic_number(symbol) for symbol, count in counts.items() for _ in range(count)])
    except ValueError as error:
        raise ValueError(f"formula {formula!r}: {error}") from error


def _parse_numbers(numbers: Any) -> Int[np.ndarray, " n"]:
    parsed = np.asarray(numbers)
    valid = parsed.ndim == 1 and parsed.size > 0 and np.issubdtype(parsed.dtype, np.integer)
    if not valid or parsed.min() < 1 or parsed.max() > 118:
        raise ValueError(f"atomic_numbers must be whole numbers from 1 to 118; got {list(np.ravel(parsed))}")
    return parsed


def _positions(config: DiffusionConfig, wanted: Wanted, count: int) -> Float[np.ndarray, "n 3"]:
    noiser = position_noiser(config)
    if noiser is not None:
        if wanted.positions is not None:
            raise ValueError(f"positions contradict the model, which draws them ({noiser}); fix atoms by a template")
        return np.zeros((count, 3))
    if wanted.positions is None:
        raise ValueError("this model does not draw positions: give positions")
    positions = np.asarray(wanted.positions, float)
    if positions.shape != (count, 3) or not np.isfinite(positions).all():
        raise ValueError(f"positions must be {count} times 3 finite numbers; got shape {positions.shape}")
    return positions


def _cell_and_pbc(
    config: DiffusionConfig, wanted: Wanted, template: "ase.Atoms | None"
) -> tuple[Float[np.ndarray, "3 3"], Bool[np.ndarray, "3"]]:
    """From the arguments, the template, or what the training data share, in this order; they may not contradict."""
    cell = None if wanted.cell is None else parse_cell(wanted.cell)
    pbc = None if wanted.pbc is None else parse_pbc(wanted.pbc)
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


def parse_cell(given: Any) -> Float[np.ndarray, "3 3"]:
    """A cell from three lengths, lengths and angles, nine numbers or a matrix."""
    from ase.cell import Cell

    values = np.asarray(given, float)
    if values.size not in (3, 6, 9) or values.ndim > 2 or not np.isfinite(values).all():
        raise ValueError(
            "cell must be three lengths, three lengths and three angles, or nine numbers, all finite; "
            f"got {values.ravel().tolist()}"
        )
    try:
        cell = Cell.new(values.reshape(3, 3) if values.size == 9 else values.ravel())
    except (ValueError, AssertionError) as error:
        raise ValueError(f"cell {values.ravel().tolist()} does not exist: check its angles") from error
    return np.asarray(cell.array)


def parse_pbc(given: Any) -> Bool[np.ndarray, "3"]:
    """Periodic directions from one truth value or three."""
    values = np.asarray(given)
    if values.shape not in ((), (3,)) or not np.isin(values, (0, 1)).all():
        raise ValueError(f"pbc must be one or three truth values; got {given!r}")
    return np.broadcast_to(values.astype(bool), 3).copy()


def parse_confinement(
    config: DiffusionConfig, given: Any, cell: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"]
) -> tuple[float, float] | None:
    if position_noiser(config) != "ConfinedCellPositions":
        if given is not None:
            raise ValueError("confinement contradicts the model, which does not confine (no ConfinedCellPositions)")
        return None
    if given is None:
        return config.confinement
    values = np.asarray(given, float)
    if values.shape != (2,) or not np.isfinite(values).all() or not values[0] < values[1]:
        raise ValueError(f"confinement must be z_min < z_max in angstrom; got {list(np.ravel(given))}")
    if pbc[2] and values[1] - values[0] > abs(cell[2, 2]) + SAME_CELL:
        raise ValueError(
            f"confinement {values.tolist()} is wider than the cell is high ({abs(cell[2, 2]):.3f} angstrom)"
        )
    return float(values[0]), float(values[1])


def _amounts(config: DiffusionConfig, numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    counts = collections.Counter(numbers.tolist())
    return np.array([counts[species] for species in config.species], np.int32)


def make_conditions(
    config: DiffusionConfig, property: Mapping[str, Any] | None, num_atoms: int
) -> dict[str, np.ndarray]:
    """Values of all the model's properties, or {} without any."""
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
