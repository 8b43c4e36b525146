"""RePaint (Lugmayr et al. 2022) around any solver: known atoms follow the forward process of the reference.

Equation numbers are those of docs/formulas/agedi.md.
"""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from agedi.data.graph import AtomsGraph, free_atoms
from agedi.noise.noisers import absorb
from agedi.sampling.plan import Step
from agedi.sampling.problem import Problem, State, Trajectory
from agedi.sampling.solvers import Solver


def make_repaint(solver: Solver) -> Solver:
    """The step of a solver after known atoms are set to their noised reference, or a step back in time."""

    def step_around_known(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> tuple[State, Trajectory]:
        known_key, step_key = jax.random.split(key)
        state = impose_known(problem, state, step, known_key)
        return jax.lax.cond(
            step.renoise,
            lambda: renoised(problem, state, step, step_key),
            lambda: solver(problem, state, step, step_key),
        )

    return step_around_known


def impose_known(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> State:
    """Eq. 35: sets known atoms to a sample of the forward process of the reference (Lugmayr et al. 2022, eq. 8a)."""
    graph, noiser = problem.graph, problem.model.noiser
    position_key, type_key = jax.random.split(key)
    known = known_atoms(problem)
    if noiser is not None:
        origin = noiser.space.origin(graph)[None]
        noised = noiser.space.perturb(position_key, graph, graph.pos - origin, step.noise)
        state = problem.moved(state, jnp.where(known[:, None], noised, state.y))
    if problem.model.with_types:
        state = state._replace(x=jnp.where(known, absorb(type_key, graph.x, step.t), state.x))
    return state


def renoised(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> tuple[State, Trajectory]:
    """Eq. 36: a step of the forward process, to a larger time; with as many frames as a step of the solver."""
    noise_key, type_key = jax.random.split(key)
    spread = jnp.sqrt(jnp.maximum(step.noise_next**2 - step.noise**2, 0.0))
    state = problem.moved(state, state.y + spread * problem.normal(noise_key))
    if problem.model.with_types:
        share = (step.t_next - step.t) / jnp.maximum(1 - step.t, 1e-6)
        state = state._replace(x=absorb(type_key, state.x, share))
    frames = problem.frames([state], step)
    settings = problem.model.settings.sampler
    repeats = settings.corrector_steps if settings.save_corrector_frames and settings.sampler in ("pc", "ffpc") else 0
    return state, jax.tree.map(lambda leaf: jnp.repeat(leaf, repeats + 1, axis=0), frames)


def restore_known(problem: Problem, graph: AtomsGraph) -> AtomsGraph:
    """The graph with the known atoms exactly as in the reference."""
    known, reference = known_atoms(problem), problem.graph
    return graph._replace(
        pos=jnp.where(known[:, None], reference.pos, graph.pos), x=jnp.where(known, reference.x, graph.x)
    )


def known_atoms(problem: Problem) -> jax.Array:
    """Free atoms that are not selected."""
    assert problem.selected is not None
    return free_atoms(problem.graph) & ~problem.selected
