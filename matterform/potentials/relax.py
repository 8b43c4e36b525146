"""Relaxation of many crystals at once, atoms and cells together, by FIRE (Bitzek et al., PRL 97, 170201 (2006)).

Good for a few steps as for many: what is returned is the lowest state seen, never above the start.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from matterform.potentials.base import Potential, Prediction, Predictions

if TYPE_CHECKING:
    import pymatgen.core


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelaxConfig:
    """When to stop, and FIRE's parameters; masses are one, so a time step squared is Å²/eV."""

    max_force: float = 0.05  # eV/Å; of the cell: virial over the root of the number of atoms and 1 Å
    cell: bool = True  # whether the cell moves too
    max_displacement_ang: float = 0.15  # of an atom in one step
    max_strain: float = 0.03  # of the cell in one step
    time_step: float = 0.1
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


class State(NamedTuple):
    """One crystal under way. Its coordinates are positions and √n times the strain, both in Å.

    So scaled, the cell is about as stiff as an atom's place, however many atoms there are: V C / n is 10 to 20 eV/Å².
    """

    structure: "pymatgen.core.Structure"
    velocity: Float[np.ndarray, "m 3"]  # m = n + 3
    time_step: float
    mixing: float
    downhill: int  # steps since power was last negative


class Best(NamedTuple):
    """The lowest state of one crystal so far."""

    structure: "pymatgen.core.Structure"
    energy: float
    max_force: float


# The published choice.
DOWNHILL_BEFORE_FASTER, FASTER, SLOWER, MIXING, MIXING_DECAY = 5, 1.1, 0.5, 0.1, 0.99


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
    states = [_start(structure, config) for structure in structures]
    best = [Best(structure, np.nan, np.nan) for structure in structures]
    problems, converged = [""] * len(states), np.zeros(len(states), bool)
    moves, start = np.zeros(len(states), int), np.full(len(states), np.nan)
    moving = list(range(len(states)))
    for step in range(steps + 1):
        predictions = potential.predict([states[i].structure for i in moving], "stress" if config.cell else "forces")
        still = []
        for i, result, problem in zip(moving, _results(predictions), predictions.problems, strict=True):
            if result is None:
                problems[i] = problem if step == 0 else f"after {step} steps: {problem}"
                continue
            structure = states[i].structure
            forces = _generalised_forces(structure, result, config.cell)
            current = Best(structure, result.energy, float(np.linalg.norm(forces, axis=-1).max()))
            start[i] = result.energy if step == 0 else start[i]
            converged[i] = current.max_force <= config.max_force
            # The last of converged states is taken though rounding may place it above another.
            if not current.energy >= best[i].energy or (converged[i] and current.energy <= start[i]):
                best[i] = current
            if not converged[i] and step < steps:
                states[i] = _move(states[i], forces, config)
                moves[i] += 1
                still.append(i)
        moving = still
        if not moving:
            break
    return Relaxed(
        [state.structure for state in best],
        np.array([state.energy for state in best], np.float64),
        problems,
        moves,
        np.array([state.max_force for state in best], np.float64),
        converged,
    )


def _start(structure: "pymatgen.core.Structure", config: RelaxConfig) -> State:
    return State(structure, np.zeros((len(structure) + 3, 3)), config.time_step, MIXING, 0)


def _results(predictions: Predictions) -> list[Prediction | None]:
    return [
        None if problem else Prediction(float(energy), forces, stress)
        for energy, forces, stress, problem in zip(*predictions, strict=True)
    ]


def _generalised_forces(
    structure: "pymatgen.core.Structure", result: Prediction, cell: bool
) -> Float[np.ndarray, "m 3"]:
    """Minus the derivatives by positions and by √n times the strain (eV/Å), m = n + 3."""
    pull = np.zeros((3, 3))
    if cell:
        assert result.stress is not None
        pull = -structure.volume * (result.stress + result.stress.T) / 2 / len(structure) ** 0.5
    return np.concatenate([np.asarray(result.forces, np.float64), pull])


def _move(state: State, forces: Float[np.ndarray, "m 3"], config: RelaxConfig) -> State:
    """One step of FIRE: velocities turn towards the forces, and are dropped when they point uphill."""
    velocity, time_step, mixing, downhill = state[1:]
    if np.vdot(forces, velocity) < 0:
        velocity, time_step, mixing, downhill = np.zeros_like(velocity), time_step * SLOWER, MIXING, 0
    else:
        along = forces * (np.linalg.norm(velocity) / max(np.linalg.norm(forces), 1e-300))
        velocity, downhill = (1 - mixing) * velocity + mixing * along, downhill + 1
        if downhill > DOWNHILL_BEFORE_FASTER:
            time_step, mixing = min(time_step * FASTER, config.max_time_step), mixing * MIXING_DECAY
    velocity = velocity + time_step * forces
    structure = _displaced(state.structure, _bounded(time_step * velocity, config))
    return State(structure, velocity, time_step, mixing, downhill)


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
