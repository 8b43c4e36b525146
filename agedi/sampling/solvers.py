"""Solvers of the reverse process: functions of (problem, state, step, key) to the new state and the step's frames.

Equation numbers are those of docs/formulas/agedi.md.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from agedi.sampling.plan import Step
from agedi.sampling.problem import Problem, State, Trajectory, positive

Solver = Callable[[Problem, State, Step, PRNGKeyArray], tuple[State, Trajectory]]


def em_step(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> tuple[State, Trajectory]:
    """Euler-Maruyama on the reverse SDE (Song et al. 2021, eq. 6); see `euler_maruyama`."""
    state = euler_maruyama(problem, state, step, key)
    return state, problem.frames([state], step)


def euler_maruyama(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> State:
    """Eq. 25: y - (nu^2 - nu'^2) noise / nu + sqrt(nu^2 - nu'^2) z; without z in the step to nu' = 0."""
    noise_key, type_key = jax.random.split(key)
    state, found = problem.evaluate(state, step.noise, step.t)
    variance = step.noise**2 - step.noise_next**2
    y = state.y - variance / positive(step.noise) * found.noise
    spread = jnp.where(step.noise_next > 0, jnp.sqrt(variance), 0.0)
    state = problem.moved(state, y + spread * problem.normal(noise_key))
    return problem.revealed(state, found, step, type_key)


def ddim_step(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> tuple[State, Trajectory]:
    """Eq. 26, DDIM (Song, Meng and Ermon 2021, eq. 13): y + (nu' - nu) noise, exact for constant noise."""
    state, found = problem.evaluate(state, step.noise, step.t)
    state = problem.moved(state, state.y + (step.noise_next - step.noise) * found.noise)
    state = problem.revealed(state, found, step, key)
    return state, problem.frames([state], step)


def heun_step(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> tuple[State, Trajectory]:
    """Eq. 27, Heun's method on the probability flow; for `heun` after eq. 29, which renews some of the noise.

    Karras et al. (2022), algorithm 2. Hidden species are revealed between the two evaluations.
    """
    noise_key, type_key = jax.random.split(key)
    settings, noise = problem.model.settings.sampler, step.noise
    if settings.sampler == "heun":
        renewed = noise * (1 + min(settings.churn / settings.steps, 2**0.5 - 1))
        spread = jnp.sqrt(renewed**2 - noise**2)
        state, noise = problem.moved(state, state.y + spread * problem.normal(noise_key)), renewed
    state, first = problem.evaluate(state, noise, step.t)
    guess = problem.moved(state, state.y + (step.noise_next - noise) * first.noise)
    guess = problem.revealed(guess, first, step, type_key)
    # The step to nu' = 0 has no noise to evaluate at; the result of that evaluation is not used.
    at_end = step.noise_next <= 0
    guess, second = problem.evaluate(guess, jnp.where(at_end, noise, step.noise_next), step.t_next)
    mean = jnp.where(at_end, first.noise, (first.noise + second.noise) / 2)
    state = problem.moved(guess, state.y + (step.noise_next - noise) * mean)
    return state, problem.frames([state], step)


def corrected_step(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> tuple[State, Trajectory]:
    """Euler-Maruyama, then Langevin corrections at the new noise level (Song et al. 2021, algorithm 2)."""
    settings = problem.model.settings.sampler
    keys = jax.random.split(key, settings.corrector_steps + 1)
    states = [euler_maruyama(problem, state, step, keys[0])]
    for number in range(settings.corrector_steps):
        states.append(langevin_correction(problem, states[-1], step, keys[number + 1]))
    return states[-1], problem.frames(states if settings.save_corrector_frames else states[-1:], step)


def langevin_correction(problem: Problem, state: State, step: Step, key: PRNGKeyArray) -> State:
    """Eq. 28: y + eta s + sqrt(2 eta) z with eta = 2 (snr nu)^2; for `ffpc` the score s is mixed with forces, eq. 30.

    Song et al. (2021), algorithm 4, with the norms at their expectations. Forces (eV/Å) are those on the predicted
    clean structure, over k_B T.
    """
    settings, noise = problem.model.settings.sampler, step.noise_next
    state, found = problem.evaluate(state, positive(noise), step.t_next)
    unit = found.noise
    if settings.sampler == "ffpc":
        forces, overflow = problem.forces_on_clean(state, found, noise)
        share = (1 - step.t_next) ** settings.mixing_zeta
        unit = (1 - share) * unit - share * noise * forces / settings.temperature
        state = state._replace(overflow=state.overflow | overflow)
    step_size = settings.corrector_snr * noise  # 0 at the end, where no noise is left to correct
    return problem.moved(
        state, state.y - 2 * settings.corrector_snr * step_size * unit + 2 * step_size * problem.normal(key)
    )


SOLVERS: dict[str, Solver] = {
    "em": em_step,
    "ddim": ddim_step,
    "heun": heun_step,
    "heun_ode": heun_step,
    "pc": corrected_step,
    "ffpc": corrected_step,
}
