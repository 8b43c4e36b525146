"""Dynamics of the force field at the end of sampling: Brownian, or molecular with a Langevin thermostat."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from agedi.data.graph import AtomsGraph, free_atoms
from agedi.noise.kernels import atom_normal
from agedi.sampling.config import SamplerConfig
from matterform.elements import element_table

ACCELERATION = 9.648533212e-3  # Å/fs^2 of 1 eV/Å on 1 u (CODATA 2018)
BROWNIAN_STEP = 1e-3  # Å^2/eV, unless `terminal_step_size` is given
LANGEVIN_STEP = 1.0  # fs, unless `terminal_step_size` is given
FRICTION_PER_STEP = 0.1  # product of friction and step, unless `terminal_friction` is given

Forces = Callable[[Float[Array, "n 3"]], tuple[Float[Array, "n 3"], Bool[Array, ""]]]
Project = Callable[[AtomsGraph, Float[Array, "n 3"]], Float[Array, "n 3"]]
Run = tuple[Float[Array, "n 3"], Float[Array, "s n 3"], Bool[Array, ""]]  # last positions, all of them, overflow


def terminal_dynamics(
    forces: Forces, graph: AtomsGraph, key: PRNGKeyArray, settings: SamplerConfig, project: Project
) -> Run:
    """Runs `settings.terminal_steps` steps of the dynamics that `settings.terminal_dynamics` names.

    Args:
        forces: positions (Å) -> forces (eV/Å), overflow of the neighbor list.
        project: moves positions back into the cell or between the walls.
    """
    run = brownian_steps if settings.terminal_dynamics == "overdamped" else langevin_steps
    return run(forces, graph, key, settings, project)


def brownian_steps(
    forces: Forces, graph: AtomsGraph, key: PRNGKeyArray, settings: SamplerConfig, project: Project
) -> Run:
    """Overdamped Langevin dynamics x + eta F + sqrt(2 eta k_B T) z, which samples exp(-U / (k_B T)).

    eta is `terminal_step_size` (Å^2/eV); the dynamics is stable if eta is below 2 over the largest force constant.
    See eq. 34 of docs/formulas/agedi.md.
    """
    eta = BROWNIAN_STEP if settings.terminal_step_size is None else settings.terminal_step_size
    free = free_atoms(graph)[:, None]

    def step(carry: tuple, step_key: PRNGKeyArray) -> tuple[tuple, Float[Array, "n 3"]]:
        pos, overflow = carry
        force, also = forces(pos)
        moved = pos + eta * force + jnp.sqrt(2 * eta * settings.temperature) * atom_normal(step_key, pos.shape[0])
        pos = jnp.where(free, project(graph, moved), pos)
        return (pos, overflow | also), pos

    keys = jax.random.split(key, settings.terminal_steps)
    (pos, overflow), frames = jax.lax.scan(step, (graph.pos, jnp.array(False)), keys)
    return pos, frames, overflow


def langevin_steps(
    forces: Forces, graph: AtomsGraph, key: PRNGKeyArray, settings: SamplerConfig, project: Project
) -> Run:
    """Langevin molecular dynamics with the BAOAB splitting (Leimkuhler and Matthews 2013), masses of the elements.

    The step is `terminal_step_size` (fs), the friction `terminal_friction` (1/fs). Velocities start from the Maxwell
    distribution; the center of mass of a structure without fixed atoms does not drift. Walls reflect the velocity.
    """
    dt = LANGEVIN_STEP if settings.terminal_step_size is None else settings.terminal_step_size
    rate = FRICTION_PER_STEP / dt if settings.terminal_friction is None else settings.terminal_friction
    free = free_atoms(graph)[:, None]
    masses = jnp.where(free, jnp.asarray(element_table().mass_u)[graph.x][:, None], 1.0)
    thermal = jnp.sqrt(settings.temperature * ACCELERATION / masses)  # Å/fs
    damping = jnp.exp(-rate * dt)
    low, high = graph.confinement[0], graph.confinement[1]
    held = jnp.any(graph.mask & graph.present)

    def without_drift(velocity: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
        weights = jnp.where(free, masses, 0.0)
        drift = jnp.sum(weights * velocity, axis=0) / jnp.maximum(jnp.sum(weights), 1e-9)
        return jnp.where(free, velocity - jnp.where(held, 0.0, drift)[None], 0.0)

    def drift(pos: Float[Array, "n 3"], velocity: Float[Array, "n 3"]) -> tuple[Array, Array]:
        moved = pos + dt / 2 * velocity
        outside = free[:, 0] & ((moved[:, 2] < low) | (moved[:, 2] > high))
        velocity = velocity.at[:, 2].multiply(jnp.where(outside, -1.0, 1.0))
        return jnp.where(free, project(graph, moved), pos), velocity

    def step(carry: tuple, step_key: PRNGKeyArray) -> tuple[tuple, Float[Array, "n 3"]]:
        pos, velocity, force, overflow = carry
        velocity = velocity + dt / 2 * ACCELERATION * force / masses
        pos, velocity = drift(pos, velocity)
        kick = thermal * atom_normal(step_key, pos.shape[0])
        velocity = without_drift(damping * velocity + jnp.sqrt(1 - damping**2) * kick)
        pos, velocity = drift(pos, velocity)
        force, also = forces(pos)
        velocity = jnp.where(free, velocity + dt / 2 * ACCELERATION * force / masses, 0.0)
        return (pos, velocity, force, overflow | also), pos

    start_key, steps_key = jax.random.split(key)
    velocity = without_drift(thermal * atom_normal(start_key, graph.x.shape[0]))
    force, overflow = forces(graph.pos)
    start = (graph.pos, velocity, force, overflow)
    keys = jax.random.split(steps_key, settings.terminal_steps)
    (pos, _, _, overflow), frames = jax.lax.scan(step, start, keys)
    return pos, frames, overflow
