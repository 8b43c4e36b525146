"""Reverse processes: the trajectories of a batch of structures as one compiled scan, neighbor search included."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from agedi.config import DiffusionConfig
from agedi.data.graph import AtomsGraph
from agedi.network.score import ScoreModel
from agedi.network.search import Search, make_search
from agedi.noise.noisers import make_position_noiser
from agedi.sampling.config import ReverseConfig
from agedi.sampling.dynamics import terminal_dynamics
from agedi.sampling.plan import Step, make_plan
from agedi.sampling.problem import Problem, State, Trajectory, make_model_functions, start_state
from agedi.sampling.repaint import make_repaint, restore_known
from agedi.sampling.solvers import SOLVERS, Solver
from matterform.training.mesh import DATA_AXIS, make_mesh


class ReverseResult(NamedTuple):
    """The sampled structure; with `overflow` a neighbor list was truncated, and the sample is invalid."""

    graph: AtomsGraph
    frames: Trajectory | None
    overflow: Bool[Array, ""]


# `reverse(params, keys, graphs, conditions, remaining[, selected])`, all but params with a leading axis b.
Reverse = Callable[..., ReverseResult]


def make_reverse(
    config: DiffusionConfig,
    model: ScoreModel,
    settings: ReverseConfig,
    *,
    capacity: int,
    images: tuple[int, int, int],
) -> Reverse:
    """Returns the compiled `reverse(params, keys, graphs, conditions, remaining[, selected])` over all devices.

    It samples the free atoms of `graphs`; positions or species that the model does not diffuse are kept. `remaining`
    (b, k) counts the atoms of each of `config.species` if the composition is prescribed (`settings.constrained`).
    `selected` (b, n) is needed with `settings.inpaint`: the atoms to sample; the graphs are then the reference. The
    number of structures must be a multiple of the number of devices. Each structure depends on its own key only.

    Args:
        capacity: neighbor slots per atom.
        images: periodic images searched each way; see `agedi.network.search.make_search`.

    Raises:
        ValueError: the settings use forces and the model has no force field.
    """
    single = make_single(config, model, settings, make_search(config.model.cutoff, capacity, images))
    by_rows = PartitionSpec(DATA_AXIS)
    inputs = 4 if settings.inpaint is None else 5

    def batch(params: Any, *rows: Any) -> ReverseResult:
        return jax.vmap(single, in_axes=(None, *(0,) * inputs))(params, *rows)

    spread = jax.shard_map(
        batch, mesh=make_mesh(), in_specs=(PartitionSpec(), *(by_rows,) * inputs), out_specs=by_rows, check_vma=False
    )
    return jax.jit(spread)


def make_single(
    config: DiffusionConfig, model: ScoreModel, settings: ReverseConfig, search: Search
) -> Callable[..., ReverseResult]:
    """`make_reverse` for one structure, not compiled.

    Raises:
        ValueError: the settings use forces and the model has no force field.
    """
    _check_force_field(model, settings)
    noiser = make_position_noiser(config)
    plan = make_plan(settings.sampler, noiser, settings.inpaint)
    functions = make_model_functions(config, model, settings, search, noiser)
    solver = SOLVERS[settings.sampler.sampler]

    def single(
        params: Any,
        key: PRNGKeyArray,
        graph: AtomsGraph,
        conditions: dict[str, Array],
        remaining: Int[Array, " k"],
        selected: Bool[Array, " n"] | None = None,
    ) -> ReverseResult:
        prior_key, steps_key, end_key = jax.random.split(key, 3)
        problem = Problem(functions, params, graph, conditions, selected)
        first = jax.tree.map(lambda leaf: leaf[0], plan)
        start = start_state(problem, prior_key, first, remaining if settings.constrained else None)
        step = solver if selected is None else make_repaint(solver)
        state, frames = solve(problem, start, plan, step, steps_key)
        result = problem.at(state, jnp.zeros(()))
        if selected is not None:
            result = restore_known(problem, result)
        return _finish(problem, ReverseResult(result, frames, state.overflow), end_key)

    return single


def solve(
    problem: Problem, start: State, plan: Step, solver: Solver, key: PRNGKeyArray
) -> tuple[State, Trajectory | None]:
    """The state after all steps, and with `settings.trajectory` the frames, `start` first."""

    def body(state: State, step: tuple[Step, Int[Array, ""]]) -> tuple[State, Trajectory | None]:
        state, frames = solver(problem, state, step[0], jax.random.fold_in(key, step[1]))
        return state, frames if problem.model.settings.trajectory else None

    numbers = jnp.arange(len(plan.t))
    state, steps = jax.lax.scan(body, start, (jax.tree.map(jnp.asarray, plan), numbers))
    if steps is None:
        return state, None
    first = problem.frame(start, jnp.asarray(plan.noise[0]))
    frames = jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest.reshape(-1, *one.shape)]), first, steps)
    return state, frames


def _finish(problem: Problem, result: ReverseResult, key: PRNGKeyArray) -> ReverseResult:
    """The result after the dynamics of the force field at t = 0, if any; in inpainting, known atoms do not move."""
    sampler = problem.model.settings.sampler
    if sampler.sampler != "ffpc" or not sampler.terminal_steps:
        return result
    mask = problem.graph.mask
    fixed = mask if problem.selected is None else mask | ~problem.selected
    graph = result.graph._replace(mask=fixed)

    def forces(pos: Array) -> tuple[Array, Bool[Array, ""]]:
        return problem.model.forces(problem.params, graph._replace(pos=pos))

    noiser = problem.model.noiser
    project = noiser.space.project if noiser is not None else lambda _, pos: pos
    pos, positions, overflow = terminal_dynamics(forces, graph, key, sampler, project)
    frames = result.frames
    if frames is not None:
        species = jnp.broadcast_to(graph.x[None], positions.shape[:2])
        frames = jax.tree.map(lambda *parts: jnp.concatenate(parts), frames, Trajectory(positions, species))
    return ReverseResult(graph._replace(pos=pos, mask=mask), frames, result.overflow | overflow)


def _check_force_field(model: ScoreModel, settings: ReverseConfig) -> None:
    uses_forces = settings.guidance.guidance > 0 or settings.sampler.sampler == "ffpc"
    if uses_forces and model.force_field is None:
        raise ValueError(
            "guidance by forces (ff_guidance, sampler ffpc) needs a model with a force field; this one has none: "
            "train with --force-field, or sample without it"
        )
