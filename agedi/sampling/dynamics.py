"""Dynamics of a force field that may end a sampling run: Brownian, or molecular with a Langevin thermostat."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from agedi.data.graph import AtomsGraph, free_atoms
from agedi.noise.kernels import atom_normal
from matterform.elements import element_table

ACCELERATION = 9.648533212e-3  # Å/fs^2 of 1 eV/Å on 1 u (CODATA 2018)

Forces = Callable[[Float[Array, "n 3"]], tuple[Float[Array, "n 3"], Bool[Array, ""]]]
Project = Callable[[AtomsGraph, Float[Array, "n 3"]], Float[Array, "n 3"]]
Run = tuple[Float[Array, "n 3"], Float[Array, "s n 3"], Bool[Array, ""]]  # last positions, all of them, overflow


def brownian_steps(
    forces: Forces,
    graph: AtomsGraph,
    key: PRNGKeyArray,
    steps: int,
    temperature: float,
    step_size: float | None,
    friction: float | None,
    project: Project,
) -> Run:
    """Overdamped dynamics x + eta F + sqrt(2 eta k_B T) z, whose density is proportional to exp(-U / (k_B T)).

    Args:
        temperature: k_B T in eV.
        step_size: eta in Å^2/eV, by default 1e-3; stable below 2 over the largest force constant.
        friction: not used; the same arguments as `langevin_steps`.
    """
    eta = 1e-3 if step_size is None else step_size
    free = free_atoms(graph)[:, None]

    def step(carry: tuple, step_key: PRNGKeyArray) -> tuple[tuple, Float[Array, "n 3"]]:
        pos, overflow = carry
        force, crowded = forces(pos)
        moved = pos + eta * force + jnp.sqrt(2 * eta * temperature) * atom_normal(step_key, pos.shape[0])
        pos = jnp.where(free, project(graph, moved), pos)
        return (pos, overflow | crowded), pos

    (pos, overflow), frames = jax.lax.scan(step, (graph.pos, jnp.array(False)), jax.random.split(key, steps))
    return pos, frames, overflow


def langevin_steps(
    forces: Forces,
    graph: AtomsGraph,
    key: PRNGKeyArray,
    steps: int,
    temperature: float,
    step_size: float | None,
    friction: float | None,
    project: Project,
) -> Run:
    """Molecular dynamics with the BAOAB splitting (Leimkuhler and Matthews 2013), masses of the elements.

    Velocities start from the Maxwell distribution; a structure without fixed atoms has no drift of its centre of mass.
    At walls the velocity across is turned round.

    Args:
        temperature: k_B T in eV.
        step_size: in fs, by default 1.
        friction: in 1/fs, by default 0.1 / step_size.
    """
    dt = 1.0 if step_size is None else step_size
    rate = 0.1 / dt if friction is None else friction
    free = free_atoms(graph)[:, None]
    masses = jnp.where(free, jnp.asarray(element_table().mass_u)[graph.x][:, None], 1.0)
    thermal = jnp.sqrt(temperature * ACCELERATION / masses)  # Å/fs
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
        force, crowded = forces(pos)
        velocity = jnp.where(free, velocity + dt / 2 * ACCELERATION * force / masses, 0.0)
        return (pos, velocity, force, overflow | crowded), pos

    start_key, steps_key = jax.random.split(key)
    velocity = without_drift(thermal * atom_normal(start_key, graph.x.shape[0]))
    force, crowded = forces(graph.pos)
    start = (graph.pos, velocity, force, crowded)
    (pos, _, _, overflow), frames = jax.lax.scan(step, start, jax.random.split(steps_key, steps))
    return pos, frames, overflow
