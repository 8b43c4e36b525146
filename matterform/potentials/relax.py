"""Relaxation of many crystals at once, atoms and cells together, by FIRE (Bitzek et al., PRL 97, 170201 (2006)).

Formulas: docs/formulas/potentials.md, section 2. The result is the lowest state seen, so its energy never exceeds that
of the start, however few the steps.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from matterform.potentials.base import Potential

if TYPE_CHECKING:
    import pymatgen.core

# The published choice.
DOWNHILL_BEFORE_FASTER, FASTER, SLOWER, MIXING, MIXING_DECAY = 5, 1.1, 0.5, 0.1, 0.99
TINY = 1e-300


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelaxConfig:
    """Convergence criterion and parameters of FIRE; all masses are 1, so the unit of time is Å/√eV."""

    max_force: float = 0.05  # eV/Å; for the cell: virial / (√n · 1 Å), n atoms
    cell: bool = True  # whether the cell is relaxed as well
    max_displacement_ang: float = 0.15  # largest displacement of an atom per step
    max_strain: float = 0.03  # largest strain of the cell per step
    time_step: float = 0.2  # first time step; with this value 5 steps give most of the relaxation of 20
    max_time_step: float = 0.5

    def __post_init__(self) -> None:
        for name in ("max_force", "max_displacement_ang", "max_strain", "time_step", "max_time_step"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


class Relaxed(NamedTuple):
    """One entry per structure: the lowest state seen, or the structure as given if it has no energy."""

    structures: "list[pymatgen.core.Structure]"
    energy: Float[np.ndarray, " b"]  # eV, of the whole structure; NaN if the start has none
    problems: list[str]  # why a relaxation stopped before it converged; empty otherwise
    steps: Int[np.ndarray, " b"]  # number of steps taken
    max_force: Float[np.ndarray, " b"]  # eV/Å, of the state returned: the largest of its atoms and of its cell
    converged: Bool[np.ndarray, " b"]


class LowestState(NamedTuple):
    """The state of lowest energy (eV) of one crystal so far, with its largest force (eV/Å)."""

    structure: "pymatgen.core.Structure"
    energy: float
    max_force: float


class Relaxation(NamedTuple):
    """A crystal that is being relaxed. Its coordinates are positions and √n times the strain, both in Å.

    With this scaling, the stiffness of a cell of any size is similar to that of an atomic position: V C / n is 10 to
    20 eV/Å², where C is an elastic constant.
    """

    structure: "pymatgen.core.Structure"
    velocity: Float[np.ndarray, "m 3"]  # m = n + 3
    time_step: float
    lowest: LowestState
    mixing: float = MIXING
    downhill: int = 0  # steps since power was last negative
    moves: int = 0
    start_energy: float = np.nan
    problem: str = ""
    converged: bool = False


def relax(
    potential: Potential,
    structures: Sequence["pymatgen.core.Structure"],
    steps: int,
    config: RelaxConfig = RelaxConfig(),
) -> Relaxed:
    """Relaxes every structure by at most `steps` steps; the potential evaluates all unconverged ones together.

    Step lengths are limited. A structure that reaches a point where the potential has no energy stops and keeps its
    lowest state. Space groups are conserved up to rounding, because forces have the symmetry of the crystal.

    Args:
        potential: gives energies (eV), forces (eV/Å) and, if the cell moves, stresses (eV/Å³).
        steps: largest number of steps; 0 only evaluates the energy and forces.

    Raises:
        ValueError: `steps` is negative.
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative; got {steps}")
    relaxations = [_start(structure, config) for structure in structures]
    for step in range(steps + 1):
        moving = [i for i, relaxation in enumerate(relaxations) if not (relaxation.problem or relaxation.converged)]
        if not moving:
            break
        predictions = potential.predict(
            [relaxations[i].structure for i in moving], "stress" if config.cell else "forces"
        )
        for i, energy, forces, stress, problem in zip(moving, *predictions, strict=True):
            if problem:
                relaxations[i] = relaxations[i]._replace(problem=f"after {step} steps: {problem}" if step else problem)
                continue
            assert forces is not None
            forces = _generalised_forces(relaxations[i].structure, forces, stress if config.cell else np.zeros((3, 3)))
            relaxations[i] = _with_energy(
                relaxations[i], float(energy), float(np.linalg.norm(forces, axis=-1).max()), config
            )
            if step < steps and not relaxations[i].converged:
                relaxations[i] = _with_step(relaxations[i], forces, config)
    return Relaxed(
        [relaxation.lowest.structure for relaxation in relaxations],
        np.array([relaxation.lowest.energy for relaxation in relaxations], np.float64),
        [relaxation.problem for relaxation in relaxations],
        np.array([relaxation.moves for relaxation in relaxations], np.int64),
        np.array([relaxation.lowest.max_force for relaxation in relaxations], np.float64),
        np.array([relaxation.converged for relaxation in relaxations], bool),
    )


def _start(structure: "pymatgen.core.Structure", config: RelaxConfig) -> Relaxation:
    return Relaxation(
        structure, np.zeros((len(structure) + 3, 3)), config.time_step, LowestState(structure, np.nan, np.nan)
    )


def _with_energy(relaxation: Relaxation, energy: float, max_force: float, config: RelaxConfig) -> Relaxation:
    """The relaxation after its energy (eV) and largest force (eV/Å) have been evaluated."""
    start = energy if np.isnan(relaxation.start_energy) else relaxation.start_energy
    converged = max_force <= config.max_force
    # A converged state replaces an earlier one that is lower only by rounding.
    if not energy >= relaxation.lowest.energy or (converged and energy <= start):
        relaxation = relaxation._replace(lowest=LowestState(relaxation.structure, energy, max_force))
    return relaxation._replace(start_energy=start, converged=converged)


def _generalised_forces(
    structure: "pymatgen.core.Structure", forces: Float[np.ndarray, "n 3"], stress: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "m 3"]:
    """Negative derivatives of the energy by positions and by √n times the strain (eV/Å), m = n + 3 rows."""
    pull = -structure.volume * (stress + stress.T) / 2 / len(structure) ** 0.5
    return np.concatenate([np.asarray(forces, np.float64), pull])


def _with_step(relaxation: Relaxation, forces: Float[np.ndarray, "m 3"], config: RelaxConfig) -> Relaxation:
    """One step of FIRE: velocities are turned towards the forces, and set to zero if they point uphill."""
    velocity, time_step, mixing, downhill = (
        relaxation.velocity,
        relaxation.time_step,
        relaxation.mixing,
        relaxation.downhill + 1,
    )
    if np.vdot(forces, velocity) < 0:
        velocity, time_step, mixing, downhill = np.zeros_like(velocity), time_step * SLOWER, MIXING, 0
    else:
        along = forces * (np.linalg.norm(velocity) / max(np.linalg.norm(forces), TINY))
        velocity = (1 - mixing) * velocity + mixing * along
        if downhill > DOWNHILL_BEFORE_FASTER:
            time_step, mixing = min(time_step * FASTER, config.max_time_step), mixing * MIXING_DECAY
    velocity = velocity + time_step * forces
    return relaxation._replace(
        structure=_displaced(relaxation.structure, _limited(time_step * velocity, config)),
        velocity=velocity,
        time_step=time_step,
        mixing=mixing,
        downhill=downhill,
        moves=relaxation.moves + 1,
    )


def _limited(step: Float[np.ndarray, "m 3"], config: RelaxConfig) -> Float[np.ndarray, "m 3"]:
    """The step, scaled down as a whole if an atom or the cell would exceed its limit."""
    strain = step[-3:] / (len(step) - 3) ** 0.5
    excess = max(
        np.linalg.norm(step[:-3], axis=-1).max() / config.max_displacement_ang,
        np.linalg.norm(strain, ord=2) / config.max_strain,
    )
    return step / max(excess, 1.0)


def _displaced(structure: "pymatgen.core.Structure", step: Float[np.ndarray, "m 3"]) -> "pymatgen.core.Structure":
    """Moves atoms by the first n rows of the step (Å), then strains atoms and cell by its last three rows / √n."""
    from pymatgen.core import Lattice, Structure

    n, cell = len(structure), structure.lattice.matrix
    strain = step[n:] / n**0.5
    return Structure(
        Lattice(cell @ (np.eye(3) + strain)),
        structure.species_and_occu,
        structure.frac_coords + step[:n] @ np.linalg.inv(cell),
        site_properties=structure.site_properties,
    )
