"""Relaxation of many crystals at once, atoms and cells together, by FIRE (Bitzek et al., PRL 97, 170201 (2006)).

Good for a few steps as for many: what is returned is the lowest state seen, never above the start.
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
    """When to stop, and FIRE's parameters; masses are one, so a time step squared is Å²/eV."""

    max_force: float = 0.05  # eV/Å; of the cell: virial over the root of the number of atoms and 1 Å
    cell: bool = True  # whether the cell moves too
    max_displacement_ang: float = 0.15  # of an atom in one step
    max_strain: float = 0.03  # of the cell in one step
    time_step: float = 0.2  # of the first step; with it 5 steps relax most of what 20 do
    max_time_step: float = 0.5

    def __post_init__(self) -> None:
        for name in ("max_force", "max_displacement_ang", "max_strain", "time_step", "max_time_step"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


class Relaxed(NamedTuple):
    """One entry per structure: the lowest state seen, or the structure as given where even that has no energy."""

    structures: "list[pymatgen.core.Structure]"
    energy: Float[np.ndarray, " b"]  # eV, of the whole structure; NaN where even the start has none
    problems: list[str]  # why a structure went no further, though not converged; empty where all is well
    steps: Int[np.ndarray, " b"]  # moves made
    max_force: Float[np.ndarray, " b"]  # eV/Å, of the state returned: the largest of its atoms and of its cell
    converged: Bool[np.ndarray, " b"]


class Best(NamedTuple):
    """The lowest state of one crystal so far."""

    structure: "pymatgen.core.Structure"
    energy: float
    max_force: float


class Path(NamedTuple):
    """One crystal under way. Its coordinates are positions and √n times the strain, both in Å.

    So scaled, the cell is about as stiff as an atom's place, however many atoms there are: V C / n is 10 to 20 eV/Å².
    """

    structure: "pymatgen.core.Structure"
    velocity: Float[np.ndarray, "m 3"]  # m = n + 3
    time_step: float
    best: Best
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
    """At most `steps` moves of every structure; those still moving are evaluated together.

    Steps are bounded. A structure that moves to where the potential has no energy stops and keeps its lowest state.
    Space groups are kept as far as the forces have the crystal's symmetry, which is up to rounding.

    Args:
        steps: 0 only evaluates.
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative; got {steps}")
    paths = [_start(structure, config) for structure in structures]
    for step in range(steps + 1):
        moving = [i for i, path in enumerate(paths) if not (path.problem or path.converged)]
        if not moving:
            break
        predictions = potential.predict([paths[i].structure for i in moving], "stress" if config.cell else "forces")
        for i, energy, forces, stress, problem in zip(moving, *predictions, strict=True):
            if problem:
                paths[i] = paths[i]._replace(problem=f"after {step} steps: {problem}" if step else problem)
                continue
            assert forces is not None
            forces = _generalised_forces(paths[i].structure, forces, stress if config.cell else np.zeros((3, 3)))
            paths[i] = _judged(paths[i], float(energy), float(np.linalg.norm(forces, axis=-1).max()), config)
            if step < steps and not paths[i].converged:
                paths[i] = _moved(paths[i], forces, config)
    return Relaxed(
        [path.best.structure for path in paths],
        np.array([path.best.energy for path in paths], np.float64),
        [path.problem for path in paths],
        np.array([path.moves for path in paths], np.int64),
        np.array([path.best.max_force for path in paths], np.float64),
        np.array([path.converged for path in paths], bool),
    )


def _start(structure: "pymatgen.core.Structure", config: RelaxConfig) -> Path:
    return Path(structure, np.zeros((len(structure) + 3, 3)), config.time_step, Best(structure, np.nan, np.nan))


def _judged(path: Path, energy: float, max_force: float, config: RelaxConfig) -> Path:
    """The path with its present energy and largest force taken into account."""
    start = energy if np.isnan(path.start_energy) else path.start_energy
    converged = max_force <= config.max_force
    # A converged state is taken though rounding may place it above an earlier one.
    if not energy >= path.best.energy or (converged and energy <= start):
        path = path._replace(best=Best(path.structure, energy, max_force))
    return path._replace(start_energy=start, converged=converged)


def _generalised_forces(
    structure: "pymatgen.core.Structure", forces: Float[np.ndarray, "n 3"], stress: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "m 3"]:
    """Minus the derivatives by positions and by √n times the strain (eV/Å), m = n + 3."""
    pull = -structure.volume * (stress + stress.T) / 2 / len(structure) ** 0.5
    return np.concatenate([np.asarray(forces, np.float64), pull])


def _moved(path: Path, forces: Float[np.ndarray, "m 3"], config: RelaxConfig) -> Path:
    """One step of FIRE: velocities turn towards the forces, and are dropped when they point uphill."""
    velocity, time_step, mixing, downhill = path.velocity, path.time_step, path.mixing, path.downhill + 1
    if np.vdot(forces, velocity) < 0:
        velocity, time_step, mixing, downhill = np.zeros_like(velocity), time_step * SLOWER, MIXING, 0
    else:
        along = forces * (np.linalg.norm(velocity) / max(np.linalg.norm(forces), TINY))
        velocity = (1 - mixing) * velocity + mixing * along
        if downhill > DOWNHILL_BEFORE_FASTER:
            time_step, mixing = min(time_step * FASTER, config.max_time_step), mixing * MIXING_DECAY
    velocity = velocity + time_step * forces
    return path._replace(
        structure=_displaced(path.structure, _bounded(time_step * velocity, config)),
        velocity=velocity,
        time_step=time_step,
        mixing=mixing,
        downhill=downhill,
        moves=path.moves + 1,
    )


def _bounded(step: Float[np.ndarray, "m 3"], config: RelaxConfig) -> Float[np.ndarray, "m 3"]:
    """The step, shortened as a whole where an atom or the cell would go too far."""
    strain = step[-3:] / (len(step) - 3) ** 0.5
    excess = max(
        np.linalg.norm(step[:-3], axis=-1).max() / config.max_displacement_ang,
        np.linalg.norm(strain, ord=2) / config.max_strain,
    )
    return step / max(excess, 1.0)


def _displaced(structure: "pymatgen.core.Structure", step: Float[np.ndarray, "m 3"]) -> "pymatgen.core.Structure":
    """Atoms moved by the step's rows, then everything strained by its last three over √n."""
    from pymatgen.core import Lattice, Structure

    n, cell = len(structure), structure.lattice.matrix
    strain = step[n:] / n**0.5
    return Structure(
        Lattice(cell @ (np.eye(3) + strain)),
        structure.species_and_occu,
        structure.frac_coords + step[:n] @ np.linalg.inv(cell),
        site_properties=structure.site_properties,
    )
