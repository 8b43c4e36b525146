"""Reverse processes: whole trajectories of a batch of structures as one compiled scan, neighbour search included.

Samplers work with y = (x - origin) / mean and the noise level nu = std / mean: in these variables every process is
dy = sqrt(d nu^2 / dt) dw (Karras et al. 2022), the network's noise is dy / d nu along the probability flow, and
-noise / nu is the score of y.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from agedi.config import DiffusionConfig, diffuses_types
from agedi.data.graph import AnyArray, AtomsGraph, free_atoms
from agedi.network.groups import in_groups
from agedi.network.score import ScoreModel
from agedi.network.search import Search, make_search
from agedi.noise.noisers import PositionNoiser, absorb, make_levels, make_position_noiser, reveal
from agedi.noise.sdes import noise_level
from agedi.sampling.dynamics import brownian_steps, langevin_steps
from matterform.training.mesh import DATA_AXIS, make_mesh

SAMPLERS = ("em", "pc", "heun", "ddim", "heun_ode", "ffpc")
LARGEST_GUIDED_SHIFT = 0.1  # Å, of the predicted clean structure an evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How to run the reverse process.

    `em`: Euler-Maruyama. `pc`: em, then Langevin corrections (Song et al. 2021, algorithm 2). `heun`: stochastic, of
    second order (Karras et al. 2022, algorithm 2). `ddim`: the exponential integrator of the probability flow, of
    first order. `heun_ode`: Heun's method on it, of second order. `ffpc`: pc whose corrections also follow forces.
    """

    sampler: Literal["em", "pc", "heun", "ddim", "heun_ode", "ffpc"] = "em"
    steps: int = 500
    eps: float = 1e-3  # time of the last step, which goes to 0
    grid: Literal["uniform", "rho"] = "uniform"  # steps uniform in t, or in noise level^(1 / rho)
    rho: float = 7.0
    guidance_weight: float = 1.0  # of the property: 0 ignores it, 1 samples the conditional model, more exaggerates
    corrector_steps: int = 1  # pc, ffpc
    corrector_snr: float = 0.1  # length of a correction over the noise in it
    churn: float = 20.0  # heun: noise renewed, spread over the steps
    mixing_zeta: float = 1.0  # ffpc: forces have the share (1 - t)^zeta in corrections
    temperature: float = 1.0  # ffpc: k_B T in eV, which turns forces into scores
    terminal_steps: int = 0  # ffpc: steps of dynamics at t = 0
    terminal_dynamics: Literal["overdamped", "langevin_md"] = "overdamped"
    terminal_step_size: float | None = None  # Å^2/eV (default 1e-3), or fs for langevin_md (default 1)
    terminal_friction: float | None = None  # 1/fs, langevin_md; default 0.1 / step
    ff_guidance: float = 0.0  # 1/eV: weight of the forces on the predicted clean structure
    ff_zeta: float = 3.0  # times (1 - t)^zeta
    save_corrector_frames: bool = False

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {self.sampler!r}")
        if self.grid not in ("uniform", "rho"):
            raise ValueError(f"grid must be uniform or rho; got {self.grid!r}")
        if self.terminal_dynamics not in ("overdamped", "langevin_md"):
            raise ValueError(f"terminal_dynamics must be overdamped or langevin_md; got {self.terminal_dynamics!r}")
        for name in ("steps", "rho", "corrector_snr", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        for name in ("churn", "corrector_steps", "terminal_steps", "ff_guidance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")
        for name in ("terminal_step_size", "terminal_friction"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, or none; got {value}")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must lie between 0 and 1; got {self.eps}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InpaintConfig:
    """RePaint (Lugmayr et al. 2022): known atoms follow their forward process, the others are drawn around them."""

    t_start: float = 1.0  # below 1 the selected atoms begin at their noised reference, not at the prior
    n_resample: int = 1  # passes over each step
    jump_length: int = 1  # smaller steps a step

    def __post_init__(self) -> None:
        if not 0 < self.t_start <= 1:
            raise ValueError(f"t_start must lie in (0, 1]; got {self.t_start}")
        for name in ("n_resample", "jump_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


class Frames(NamedTuple):
    """Structures on the way from t = 1 to 0."""

    pos: Float[Array, "f n 3"]
    x: Int[Array, "f n"]


class ReverseResult(NamedTuple):
    """The sampled structure; with `overflow` some neighbour list was cut short, and it is not to be used."""

    graph: AtomsGraph
    frames: Frames | None
    overflow: Bool[Array, ""]


class Step(NamedTuple):
    """From where to where a step goes; `renoise` is a step back towards the prior."""

    t: Float[AnyArray, "*s"]
    t_next: Float[AnyArray, "*s"]
    noise: Float[AnyArray, "*s"]
    noise_next: Float[AnyArray, "*s"]
    renoise: Bool[AnyArray, "*s"]


class State(NamedTuple):
    """What a step changes."""

    y: Float[Array, "n 3"]  # (position - origin) / mean
    x: Int[Array, " n"]
    remaining: Int[Array, " k"] | None  # species left to draw, where a composition is prescribed
    overflow: Bool[Array, ""]


class Evaluation(NamedTuple):
    """What the network says at one point."""

    noise: Float[Array, "n 3"]
    log_probs: Float[Array, "n k"] | None


# `reverse(params, keys, graphs, conditions, remaining[, selected])`, each but params with a leading axis b.
Reverse = Callable[..., ReverseResult]


def make_reverse(
    config: DiffusionConfig,
    model: ScoreModel,
    settings: SamplerConfig,
    *,
    capacity: int,
    images: tuple[int, int, int],
    trajectory: bool = False,
    constrained: bool = False,
    inpaint: InpaintConfig | None = None,
) -> Reverse:
    """Returns the compiled `reverse(params, keys, graphs, conditions, remaining[, selected])` over all devices.

    Free atoms of `graphs` are drawn; of what is not diffused (positions, species) their values are taken. `remaining`
    (b, k) counts the atoms left of each of `config.species` where the composition is prescribed (`constrained`).
    `selected` (b, n) goes with `inpaint`: atoms to draw anew; the graphs are then the reference. The number of
    structures must be a multiple of the number of devices. Each structure depends on its own key only.

    Args:
        capacity: neighbours an atom may have.
        images: see `agedi.network.search.make_search`.

    Raises:
        ValueError: forces are asked for and the model has no force field.
    """
    single = make_single(
        config,
        model,
        settings,
        make_search(config.model.cutoff, capacity, images),
        trajectory=trajectory,
        constrained=constrained,
        inpaint=inpaint,
    )
    by_rows = PartitionSpec(DATA_AXIS)
    inputs = 4 if inpaint is None else 5

    def batch(params: Any, *rows: Any) -> ReverseResult:
        return jax.vmap(single, in_axes=(None, *(0,) * inputs))(params, *rows)

    spread = jax.shard_map(
        batch, mesh=make_mesh(), in_specs=(PartitionSpec(), *(by_rows,) * inputs), out_specs=by_rows, check_vma=False
    )
    return jax.jit(spread)


def make_single(
    config: DiffusionConfig,
    model: ScoreModel,
    settings: SamplerConfig,
    search: Search,
    *,
    trajectory: bool = False,
    constrained: bool = False,
    inpaint: InpaintConfig | None = None,
) -> Callable[..., ReverseResult]:
    """`make_reverse` for one structure, not compiled."""
    uses_forces = settings.ff_guidance > 0 or settings.sampler == "ffpc"
    if uses_forces and model.force_field is None:
        raise ValueError(
            "guidance by forces (ff_guidance, sampler ffpc) needs a model with a force field; this one has none: "
            "train with --force_field, or sample without it"
        )
    noiser = make_position_noiser(config)
    plan = make_plan(settings, noiser, inpaint)
    process = make_process(config, model, settings, search, noiser)
    steppers = {
        "em": em_step,
        "ddim": ddim_step,
        "heun": heun_step,
        "heun_ode": heun_step,
        "pc": corrected_step,
        "ffpc": corrected_step,
    }
    stepper = steppers[settings.sampler]

    def single(
        params: Any,
        key: PRNGKeyArray,
        graph: AtomsGraph,
        conditions: dict[str, Array],
        remaining: Int[Array, " k"],
        selected: Bool[Array, " n"] | None = None,
    ) -> ReverseResult:
        prior_key, steps_key, end_key = jax.random.split(key, 3)
        problem = Problem(process, params, graph, conditions, selected)
        start = start_state(problem, prior_key, plan, remaining if constrained else None, inpaint)

        def body(state: State, step: tuple[Step, Int[Array, ""]]) -> tuple[State, Frames | None]:
            step_key = jax.random.fold_in(steps_key, step[1])
            if selected is None:
                state, frames = stepper(problem, state, step[0], step_key)
            else:
                known_key, step_key = jax.random.split(step_key)
                state = impose_known(problem, state, step[0], known_key)
                state, frames = jax.lax.cond(
                    step[0].renoise,
                    lambda: renoised(problem, state, step[0], step_key),
                    lambda: stepper(problem, state, step[0], step_key),
                )
            return state, frames if trajectory else None

        numbers = jnp.arange(len(plan.t))
        state, frames = jax.lax.scan(body, start, (jax.tree.map(jnp.asarray, plan), numbers))
        if frames is not None:
            first = frame(problem, start, jnp.asarray(plan.noise[0]))
            frames = Frames(
                *(
                    jnp.concatenate([one[None], rest.reshape(-1, *one.shape)])
                    for one, rest in zip(first, frames, strict=True)
                )
            )
        result = problem.at(state, jnp.zeros(()))
        if selected is not None:
            known = free_atoms(graph) & ~selected
            result = result._replace(
                pos=jnp.where(known[:, None], graph.pos, result.pos), x=jnp.where(known, graph.x, result.x)
            )
        overflow = state.overflow
        if settings.sampler == "ffpc" and settings.terminal_steps:
            # Known atoms of an inpainting keep their places.
            held = graph.mask if selected is None else graph.mask | ~selected
            result, more, crowded = problem.finish(result._replace(mask=held), end_key)
            result = result._replace(mask=graph.mask)
            overflow |= crowded
            if frames is not None:
                frames = Frames(*(jnp.concatenate(parts) for parts in zip(frames, more, strict=True)))
        return ReverseResult(result, frames, overflow)

    return single


def make_plan(settings: SamplerConfig, noiser: PositionNoiser | None, inpaint: InpaintConfig | None) -> Step:
    """All steps, in order, as arrays; on the host."""
    start = 1.0 if inpaint is None else inpaint.t_start
    times = _times(settings, noiser, start)
    if inpaint is None:
        pairs = list(itertools.pairwise(times))
    else:
        pairs = []
        for high, low in itertools.pairwise(times):
            stops = np.linspace(high, low, inpaint.jump_length + 1)
            down = list(itertools.pairwise(stops))
            for number in range(inpaint.n_resample):
                pairs += ([(low, high)] if number else []) + down
    begin, end = np.array(pairs, np.float32).T
    noise, noise_next = (np.zeros_like(part) if noiser is None else _noises(noiser, part) for part in (begin, end))
    return Step(begin, end, noise, noise_next, end > begin)


def _times(settings: SamplerConfig, noiser: PositionNoiser | None, start: float) -> Float[np.ndarray, " s"]:
    """Decreasing times from `start` to 0, `settings.steps` steps."""
    eps = min(settings.eps, start / 2)
    if settings.grid == "uniform" or noiser is None:
        return np.append(np.linspace(start, eps, settings.steps), 0.0) if settings.steps > 1 else np.array([start, 0.0])
    # The noise level is inverted by interpolation on a grid much finer than any number of steps.
    fine = np.concatenate([np.geomspace(1e-6, 1e-2, 2000), np.linspace(1e-2, 1.0, 20001)[1:]])
    levels = _noises(noiser, fine.astype(np.float32)).astype(float) ** (1 / settings.rho)
    high, low = np.interp([start, eps], fine, levels)
    times = np.interp(np.linspace(high, low, settings.steps), levels, fine)
    return np.concatenate([[start], times[1:], [0.0]])


def _noises(noiser: PositionNoiser, times: Float[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
    return np.array(noise_level(noiser.sde, jnp.asarray(times)))


class Process(NamedTuple):
    """What the steps need of a model, whatever the structure."""

    evaluate: Callable[..., tuple[Evaluation, Bool[Array, ""]]]
    forces: Callable[..., tuple[Float[Array, "n 3"], Bool[Array, ""]]]
    noiser: PositionNoiser | None
    settings: SamplerConfig
    with_types: bool
    species: Int[np.ndarray, " k"]


class Problem(NamedTuple):
    """One structure to be drawn."""

    process: Process
    params: Any
    graph: AtomsGraph
    conditions: dict[str, Array]
    selected: Bool[Array, " n"] | None

    def at(self, state: State, noise: Array) -> AtomsGraph:
        """The structure of a state, with fixed atoms exactly in place."""
        free, noiser, graph = free_atoms(self.graph), self.process.noiser, self.graph
        if noiser is not None:
            origin = noiser.space.origin(graph)[None]
            pos = origin + noiser.sde.mean_of_noise(noise) * state.y
            graph = graph._replace(pos=jnp.where(free[:, None], pos, graph.pos))
        return graph._replace(x=jnp.where(free, state.x, graph.x))

    def evaluate(self, state: State, noise: Array, t: Array) -> tuple[State, Evaluation]:
        """Asks the network, and notes whether its neighbour list was complete."""
        found, crowded = self.process.evaluate(self.params, self.at(state, noise), self.conditions, noise, t)
        found, more = self._guided(found, state, noise, t)
        return state._replace(overflow=state.overflow | crowded | more), found

    def moved(self, state: State, y: Float[Array, "n 3"]) -> State:
        """The state with other positions, brought back into the cell or between the walls."""
        noiser = self.process.noiser
        return state if noiser is None else state._replace(y=noiser.space.project(self.graph, y))

    def normal(self, key: PRNGKeyArray) -> Float[Array, "n 3"]:
        """Unit noise on the space of the positions."""
        noiser = self.process.noiser
        return jnp.zeros_like(self.graph.pos) if noiser is None else noiser.space.normal(key, self.graph)

    def revealed(self, state: State, found: Evaluation, step: Step, key: PRNGKeyArray) -> State:
        """Species drawn in a step: of those hidden at t, the share (t - t_next) / t."""
        if found.log_probs is None:
            return state
        share = jnp.where(step.t_next <= 0, 1.0, (step.t - step.t_next) / step.t)
        hidden = jnp.where(free_atoms(self.graph), state.x, -1)
        x, remaining = reveal(key, hidden, found.log_probs, self.process.species, share, state.remaining)
        return state._replace(x=jnp.where(free_atoms(self.graph), x, state.x), remaining=remaining)

    def clean(self, state: State, found: Evaluation, noise: Array) -> AtomsGraph:
        """The structure that the network expects at the end (Tweedie's formula), hidden species by their likeliest."""
        state = self.moved(state, state.y - noise * found.noise)
        if found.log_probs is not None:
            likeliest = jnp.asarray(self.process.species)[jnp.argmax(found.log_probs, axis=-1)]
            state = state._replace(x=jnp.where(free_atoms(self.graph) & (state.x == 0), likeliest, state.x))
        return self.at(state, jnp.zeros(()))

    def forces_on_clean(
        self, state: State, found: Evaluation, noise: Array
    ) -> tuple[Float[Array, "n 3"], Bool[Array, ""]]:
        """Forces (eV/Å) on the free atoms of the predicted clean structure."""
        forces, crowded = self.process.forces(self.params, self.clean(state, found, noise))
        return jnp.where(free_atoms(self.graph)[:, None], forces, 0.0), crowded

    def _guided(self, found: Evaluation, state: State, noise: Array, t: Array) -> tuple[Evaluation, Bool[Array, ""]]:
        """Adds forces / (k_B T) to the score late in the process; the shift of the clean structure is bounded."""
        settings = self.process.settings
        if settings.ff_guidance == 0 or self.process.noiser is None:
            return found, jnp.array(False)
        forces, crowded = self.forces_on_clean(state, found, noise)
        shift = noise**2 * settings.ff_guidance * (1 - t) ** settings.ff_zeta * forces
        longest = jnp.sqrt(jnp.max(jnp.sum(shift**2, axis=-1)))
        shift = shift * jnp.minimum(1.0, LARGEST_GUIDED_SHIFT / jnp.maximum(longest, 1e-12))
        return found._replace(noise=found.noise - shift / jnp.maximum(noise, 1e-9)), crowded

    def finish(self, graph: AtomsGraph, key: PRNGKeyArray) -> tuple[AtomsGraph, Frames, Bool[Array, ""]]:
        """Dynamics of the force field at t = 0."""
        settings = self.process.settings
        run = brownian_steps if settings.terminal_dynamics == "overdamped" else langevin_steps
        pos, positions, crowded = run(
            lambda pos: self.process.forces(self.params, graph._replace(pos=pos)),
            graph,
            key,
            settings.terminal_steps,
            settings.temperature,
            settings.terminal_step_size,
            settings.terminal_friction,
            self.process.noiser.space.project if self.process.noiser is not None else lambda _, pos: pos,
        )
        species = jnp.broadcast_to(graph.x[None], positions.shape[:2])
        return graph._replace(pos=pos), Frames(positions, species), crowded


def make_process(
    config: DiffusionConfig,
    model: ScoreModel,
    settings: SamplerConfig,
    search: Search,
    noiser: PositionNoiser | None,
) -> Process:
    """The network with its neighbour search and guidance by properties."""
    levels = make_levels(config, noiser)
    weight = settings.guidance_weight
    score = in_groups(model.apply)
    force_field = None if model.force_field is None else in_groups(model.force_field)

    def outputs(params: Any, graph: AtomsGraph, level: Array, conditions: dict[str, Array]) -> Any:
        if not conditions or weight in (0.0, 1.0):
            return score(params, graph, level, conditions, jnp.array(bool(conditions) and weight == 1.0))
        without, wanted = (score(params, graph, level, conditions, jnp.array(known)) for known in (False, True))
        return jax.tree.map(lambda a, b: a + weight * (b - a), without, wanted)

    def evaluate(
        params: Any, graph: AtomsGraph, conditions: dict[str, Array], noise: Array, t: Array
    ) -> tuple[Evaluation, Bool[Array, ""]]:
        graph = search(graph)
        found = outputs(params, graph, levels(noise, t), conditions)
        free = free_atoms(graph)[:, None]
        noise_hat = jnp.zeros_like(graph.pos) if found.noise is None else jnp.where(free, found.noise, 0.0)
        if noiser is not None:
            # The noise of a molecule does not move its centre of mass; that of the other spaces passes unchanged.
            noise_hat = jnp.where(free, noiser.space.tangent(graph, noise_hat), 0.0)
        log_probs = None if found.logits is None else jax.nn.log_softmax(found.logits, axis=-1)
        return Evaluation(noise_hat, log_probs), graph.edges.overflow

    def forces(params: Any, graph: AtomsGraph) -> tuple[Float[Array, "n 3"], Bool[Array, ""]]:
        assert force_field is not None  # checked when the sampler was made
        graph = search(graph)
        return force_field(params, graph)[1], graph.edges.overflow

    return Process(evaluate, forces, noiser, settings, diffuses_types(config), np.asarray(config.species, np.int32))


def start_state(
    problem: Problem, key: PRNGKeyArray, plan: Step, remaining: Int[Array, " k"] | None, inpaint: InpaintConfig | None
) -> State:
    """The state at the first time: a draw from the prior, or the noised reference."""
    graph, noiser = problem.graph, problem.process.noiser
    position_key, type_key = jax.random.split(key)
    y, x = jnp.zeros_like(graph.pos), graph.x
    noised = inpaint is not None and inpaint.t_start < 1
    if noiser is not None:
        origin, noise = noiser.space.origin(graph)[None], plan.noise[0]
        if noised:
            y = noiser.space.perturb(position_key, graph, graph.pos - origin, jnp.asarray(noise))
        else:
            prior = noiser.space.prior(position_key, graph)
            y = (prior - origin) / noiser.sde.mean_of_noise(jnp.asarray(noise))
        y = noiser.space.project(graph, y)
    if problem.process.with_types:
        x = absorb(type_key, graph.x, jnp.asarray(plan.t[0])) if noised else jnp.zeros_like(graph.x)
    return State(y, x, remaining, jnp.array(False))


# Each takes (problem, state, step, key) to the new state and the frames on the way.


def em_step(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> tuple[State, Frames]:
    """Euler-Maruyama: y - (nu^2 - nu'^2) noise / nu + sqrt(nu^2 - nu'^2) z."""
    state = _em(problem, state, step, key)
    return state, _frames(problem, [state], step)


def _em(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> State:
    noise_key, type_key = jax.random.split(key)
    state, found = problem.evaluate(state, step.noise, step.t)
    variance = step.noise**2 - step.noise_next**2
    y = state.y - variance / _positive(step.noise) * found.noise
    # The last step, to 0, is the expectation.
    spread = jnp.where(step.noise_next > 0, jnp.sqrt(variance), 0.0)
    state = problem.moved(state, y + spread * problem.normal(noise_key))
    return problem.revealed(state, found, step, type_key)


def ddim_step(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> tuple[State, Frames]:
    """Song et al. (2021), DDIM: exact for constant noise, in y simply y + (nu' - nu) noise."""
    state, found = problem.evaluate(state, step.noise, step.t)
    state = problem.moved(state, state.y + (step.noise_next - step.noise) * found.noise)
    state = problem.revealed(state, found, step, key)
    return state, _frames(problem, [state], step)


def heun_step(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> tuple[State, Frames]:
    """Heun's method on the probability flow, for `heun` after some of the noise has been renewed."""
    noise_key, type_key = jax.random.split(key)
    settings, noise = problem.process.settings, step.noise
    if settings.sampler == "heun":
        renewed = noise * (1 + min(settings.churn / settings.steps, 2**0.5 - 1))
        spread = jnp.sqrt(renewed**2 - noise**2)
        state, noise = problem.moved(state, state.y + spread * problem.normal(noise_key)), renewed
    state, first = problem.evaluate(state, noise, step.t)
    guess = problem.moved(state, state.y + (step.noise_next - noise) * first.noise)
    guess = problem.revealed(guess, first, step, type_key)
    # At the end there is no noise to evaluate at; the result of that evaluation is not used.
    at_end = step.noise_next <= 0
    guess, second = problem.evaluate(guess, jnp.where(at_end, noise, step.noise_next), step.t_next)
    mean = jnp.where(at_end, first.noise, (first.noise + second.noise) / 2)
    state = problem.moved(guess, state.y + (step.noise_next - noise) * mean)
    return state, _frames(problem, [state], step)


def corrected_step(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> tuple[State, Frames]:
    """Euler-Maruyama, then Langevin corrections at the new noise level."""
    settings = problem.process.settings
    keys = jax.random.split(key, settings.corrector_steps + 1)
    states = [_em(problem, state, step, keys[0])]
    for number in range(settings.corrector_steps):
        states.append(langevin_correction(problem, states[-1], step, keys[number + 1]))
    return states[-1], _frames(problem, states if settings.save_corrector_frames else states[-1:], step)


def langevin_correction(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> State:
    """y + eta s + sqrt(2 eta) z with eta = 2 (snr nu)^2: Song et al. (2021), with the norms at their expected values.

    For `ffpc` the score s is mixed with forces / (k_B T) on the predicted clean structure.
    """
    settings, noise = problem.process.settings, step.noise_next
    state, found = problem.evaluate(state, _positive(noise), step.t_next)
    unit = found.noise
    if settings.sampler == "ffpc":
        forces, crowded = problem.forces_on_clean(state, found, noise)
        share = (1 - step.t_next) ** settings.mixing_zeta
        unit = (1 - share) * unit - share * noise * forces / settings.temperature
        state = state._replace(overflow=state.overflow | crowded)
    step_size = settings.corrector_snr * noise  # 0 at the end, where there is nothing left to correct
    return problem.moved(
        state, state.y - 2 * settings.corrector_snr * step_size * unit + 2 * step_size * problem.normal(key)
    )


def renoised(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> tuple[State, Frames]:
    """A step of the forward process, from a smaller to a larger time."""
    noise_key, type_key = jax.random.split(key)
    spread = jnp.sqrt(jnp.maximum(step.noise_next**2 - step.noise**2, 0.0))
    state = problem.moved(state, state.y + spread * problem.normal(noise_key))
    if problem.process.with_types:
        share = (step.t_next - step.t) / jnp.maximum(1 - step.t, 1e-6)
        state = state._replace(x=absorb(type_key, state.x, share))
    frames = _frames(problem, [state], step)
    settings = problem.process.settings
    repeats = settings.corrector_steps if settings.save_corrector_frames and settings.sampler in ("pc", "ffpc") else 0
    return state, jax.tree.map(lambda leaf: jnp.repeat(leaf, repeats + 1, axis=0), frames)


def impose_known(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> State:
    """Puts the atoms that are not selected where the forward process of the reference has them."""
    graph, noiser = problem.graph, problem.process.noiser
    position_key, type_key = jax.random.split(key)
    assert problem.selected is not None
    known = free_atoms(graph) & ~problem.selected
    if noiser is not None:
        origin = noiser.space.origin(graph)[None]
        drawn = noiser.space.perturb(position_key, graph, graph.pos - origin, step.noise)
        state = problem.moved(state, jnp.where(known[:, None], drawn, state.y))
    if problem.process.with_types:
        state = state._replace(x=jnp.where(known, absorb(type_key, graph.x, step.t), state.x))
    return state


def frame(problem: Problem, state: State, noise: Array) -> Frames:
    """The structure of a state as one frame, without frame axis."""
    graph = problem.at(state, noise)
    return Frames(graph.pos, graph.x)


def _frames(problem: Problem, states: list[State], step: Step) -> Frames:
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(frame(problem, state, step.noise_next) for state in states)
    )


def _positive(noise: Array) -> Array:
    """The noise level, kept away from 0 where it divides or is taken the logarithm of."""
    return jnp.maximum(noise, 1e-9)
