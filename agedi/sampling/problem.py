"""The reverse process of one structure: its state, and the functions that all solvers call.

Solvers work with y = (x - origin) / mean and the noise level nu = std / mean: in these variables every process is
dy = sqrt(d nu^2 / dt) dw (Karras et al. 2022, section 2), the network's noise is dy / d nu along the probability flow,
and -noise / nu is the score of y. See eqs. 2 and 3 of docs/formulas/agedi.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from agedi.config import DiffusionConfig, diffuses_types
from agedi.data.graph import AtomsGraph, free_atoms
from agedi.network.groups import in_groups
from agedi.network.score import ScoreModel
from agedi.network.search import Search
from agedi.noise.noisers import PositionNoiser, absorb, make_levels, reveal
from agedi.sampling.config import ReverseConfig
from agedi.sampling.guidance import guided_shift, make_guided_score
from agedi.sampling.plan import Step


class State(NamedTuple):
    """Variables that a solver step changes."""

    y: Float[Array, "n 3"]  # (position - origin) / mean, Å
    x: Int[Array, " n"]  # atomic numbers, 0 where not sampled yet
    remaining: Int[Array, " k"] | None  # atoms left of each species, if the composition is prescribed
    overflow: Bool[Array, ""]  # a neighbor list was truncated


class Evaluation(NamedTuple):
    """Network outputs at one state."""

    noise: Float[Array, "n 3"]
    log_probs: Float[Array, "n k"] | None  # of the species; None if they are not sampled


class Trajectory(NamedTuple):
    """Structures from t = 1 to 0."""

    pos: Float[Array, "f n 3"]  # Å
    x: Int[Array, "f n"]


class ModelFunctions(NamedTuple):
    """Model functions shared by all solver steps and all structures."""

    # (params, graph, conditions, noise level, t) -> network outputs, overflow
    evaluate: Callable[..., tuple[Evaluation, Bool[Array, ""]]]
    # (params, graph) -> forces in eV/Å, overflow
    forces: Callable[..., tuple[Float[Array, "n 3"], Bool[Array, ""]]]
    noiser: PositionNoiser | None
    settings: ReverseConfig
    with_types: bool
    species: Int[np.ndarray, " k"]


class Problem(NamedTuple):
    """The structure to sample, with the model functions."""

    model: ModelFunctions
    params: Any
    graph: AtomsGraph
    conditions: dict[str, Array]
    selected: Bool[Array, " n"] | None  # inpainting: atoms to sample; the other ones are known

    def at(self, state: State, noise: Array) -> AtomsGraph:
        """The structure of a state at a noise level; fixed atoms keep their exact positions."""
        free, noiser, graph = free_atoms(self.graph), self.model.noiser, self.graph
        if noiser is not None:
            origin = noiser.space.origin(graph)[None]
            pos = origin + noiser.sde.mean_of_noise(noise) * state.y
            graph = graph._replace(pos=jnp.where(free[:, None], pos, graph.pos))
        return graph._replace(x=jnp.where(free, state.x, graph.x))

    def evaluate(self, state: State, noise: Array, t: Array) -> tuple[State, Evaluation]:
        """Network outputs with all guidance; the returned state has the overflow of the neighbor search."""
        found, overflow = self.model.evaluate(self.params, self.at(state, noise), self.conditions, noise, t)
        settings = self.model.settings.guidance
        if settings.guidance == 0 or self.model.noiser is None:
            return state._replace(overflow=state.overflow | overflow), found
        forces, also = self.forces_on_clean(state, found, noise)
        shift = guided_shift(forces, noise, t, settings)
        found = found._replace(noise=found.noise - shift / positive(noise))
        return state._replace(overflow=state.overflow | overflow | also), found

    def moved(self, state: State, y: Float[Array, "n 3"]) -> State:
        """The state at other positions, wrapped into the cell or reflected at the walls."""
        noiser = self.model.noiser
        return state if noiser is None else state._replace(y=noiser.space.project(self.graph, y))

    def normal(self, key: PRNGKeyArray) -> Float[Array, "n 3"]:
        """Unit noise on the space of the positions."""
        noiser = self.model.noiser
        return jnp.zeros_like(self.graph.pos) if noiser is None else noiser.space.normal(key, self.graph)

    def revealed(self, state: State, found: Evaluation, step: Step, key: PRNGKeyArray) -> State:
        """Species sampled in a step: each hidden one with probability (t - t_next) / t."""
        if found.log_probs is None:
            return state
        share = jnp.where(step.t_next <= 0, 1.0, (step.t - step.t_next) / step.t)
        hidden = jnp.where(free_atoms(self.graph), state.x, -1)
        x, remaining = reveal(key, hidden, found.log_probs, self.model.species, share, state.remaining)
        return state._replace(x=jnp.where(free_atoms(self.graph), x, state.x), remaining=remaining)

    def clean(self, state: State, found: Evaluation, noise: Array) -> AtomsGraph:
        """Predicted clean structure: Tweedie's formula for positions, the most likely species where hidden."""
        state = self.moved(state, state.y - noise * found.noise)
        if found.log_probs is not None:
            likeliest = jnp.asarray(self.model.species)[jnp.argmax(found.log_probs, axis=-1)]
            state = state._replace(x=jnp.where(free_atoms(self.graph) & (state.x == 0), likeliest, state.x))
        return self.at(state, jnp.zeros(()))

    def forces_on_clean(
        self, state: State, found: Evaluation, noise: Array
    ) -> tuple[Float[Array, "n 3"], Bool[Array, ""]]:
        """Forces (eV/Å) on the free atoms of the predicted clean structure, and the overflow of its neighbor list."""
        forces, overflow = self.model.forces(self.params, self.clean(state, found, noise))
        return jnp.where(free_atoms(self.graph)[:, None], forces, 0.0), overflow

    def frame(self, state: State, noise: Array) -> Trajectory:
        """The structure of a state as one frame, without the frame axis."""
        graph = self.at(state, noise)
        return Trajectory(graph.pos, graph.x)

    def frames(self, states: list[State], step: Step) -> Trajectory:
        """The structures of states at the end of a step."""
        return jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(self.frame(state, step.noise_next) for state in states)
        )


def make_model_functions(
    config: DiffusionConfig,
    model: ScoreModel,
    settings: ReverseConfig,
    search: Search,
    noiser: PositionNoiser | None,
) -> ModelFunctions:
    """The network and the force field with their neighbor search, and with guidance by properties."""
    levels = make_levels(config, noiser)
    score = make_guided_score(model.apply, settings.sampler.guidance_weight)
    force_field = None if model.force_field is None else in_groups(model.force_field)

    def evaluate(
        params: Any, graph: AtomsGraph, conditions: dict[str, Array], noise: Array, t: Array
    ) -> tuple[Evaluation, Bool[Array, ""]]:
        graph = search(graph)
        found = score(params, graph, levels(noise, t), conditions)
        free = free_atoms(graph)[:, None]
        noise_hat = jnp.zeros_like(graph.pos) if found.noise is None else jnp.where(free, found.noise, 0.0)
        if noiser is not None:
            # The noise of a molecule does not move its center of mass; on the other spaces this is the identity.
            noise_hat = jnp.where(free, noiser.space.tangent(graph, noise_hat), 0.0)
        log_probs = None if found.logits is None else jax.nn.log_softmax(found.logits, axis=-1)
        return Evaluation(noise_hat, log_probs), graph.edges.overflow

    def forces(params: Any, graph: AtomsGraph) -> tuple[Float[Array, "n 3"], Bool[Array, ""]]:
        assert force_field is not None  # checked when the sampler is made
        graph = search(graph)
        return force_field(params, graph)[1], graph.edges.overflow

    species = np.asarray(config.species, np.int32)
    return ModelFunctions(evaluate, forces, noiser, settings, diffuses_types(config), species)


def start_state(problem: Problem, key: PRNGKeyArray, step: Step, remaining: Int[Array, " k"] | None) -> State:
    """The state before the first step: a sample of the prior, or for inpainting with t_start < 1 the noised reference.

    Args:
        step: the first step.
        remaining: number of atoms of each species, if the composition is prescribed.
    """
    graph, noiser, inpaint = problem.graph, problem.model.noiser, problem.model.settings.inpaint
    position_key, type_key = jax.random.split(key)
    y, x = jnp.zeros_like(graph.pos), graph.x
    noised = inpaint is not None and inpaint.t_start < 1
    if noiser is not None:
        origin, noise = noiser.space.origin(graph)[None], jnp.asarray(step.noise)
        if noised:
            y = noiser.space.perturb(position_key, graph, graph.pos - origin, noise)
        else:
            prior = noiser.space.prior(position_key, graph)
            y = (prior - origin) / noiser.sde.mean_of_noise(noise)
        y = noiser.space.project(graph, y)
    if problem.model.with_types:
        x = absorb(type_key, graph.x, jnp.asarray(step.t)) if noised else jnp.zeros_like(graph.x)
    return State(y, x, remaining, jnp.array(False))


def positive(noise: Array) -> Array:
    """The noise level clipped at 1e-9 before division or log."""
    return jnp.maximum(noise, 1e-9)
