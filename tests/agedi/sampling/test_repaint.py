"""Inpainting steps: known atoms follow the forward process, steps back add noise, and the reference is restored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_scores import graph_of, no_search

from agedi.config import DiffusionConfig
from agedi.network.score import Outputs, ScoreModel
from agedi.noise.noisers import make_position_noiser
from agedi.noise.sdes import make_sde, noise_level
from agedi.sampling.config import InpaintConfig, ReverseConfig, SamplerConfig
from agedi.sampling.plan import Step
from agedi.sampling.problem import Problem, State, make_model_functions, start_state
from agedi.sampling.repaint import impose_known, known_atoms, renoised, restore_known

pytestmark = pytest.mark.usefixtures("quick")

COUNT = 3000
CONFIG = DiffusionConfig(noisers=("CellPositions", "Types"), sigma_max=2.0, species=(6, 8))
CELL = 200 * np.eye(3)  # so large that nothing is wrapped


def problem_of(sampler="em", inpaint=None, **settings):
    """Carbon atoms in the middle of the cell: one fixed, every second one of the others selected."""
    graph = graph_of(CELL, [True] * 3, count=COUNT, held=True)
    graph = jax.tree.map(jnp.asarray, graph._replace(pos=np.full_like(graph.pos, 100.0)))
    model = ScoreModel({}, lambda *_: Outputs(None, None), None)
    config = ReverseConfig(sampler=SamplerConfig(sampler=sampler, **settings), inpaint=inpaint)
    functions = make_model_functions(CONFIG, model, config, no_search, make_position_noiser(CONFIG))
    return Problem(functions, {}, graph, {}, jnp.arange(COUNT + 1) % 2 == 0)


def step_of(t, t_next):
    sde = make_sde(CONFIG)
    noises = [noise_level(sde, jnp.float32(time)) for time in (t, t_next)]
    return Step(jnp.float32(t), jnp.float32(t_next), *noises, jnp.array(t_next > t))


def state_of(problem):
    return State(problem.graph.pos, problem.graph.x, None, jnp.array(False))


def test_known_atoms_are_noised_and_the_others_stay():
    problem, step = problem_of(), step_of(0.6, 0.5)
    known = np.asarray(known_atoms(problem))
    assert known.tolist() == [False, True] * (COUNT // 2) + [False]
    state = impose_known(problem, state_of(problem), step, jax.random.key(0))
    moved = np.asarray(state.y - problem.graph.pos)
    assert not moved[~known].any()
    assert moved[known].std() == pytest.approx(float(step.noise), rel=4.5 / np.sqrt(2 * 3 * known.sum()))
    hidden = np.asarray(state.x == 0)
    assert not hidden[~known].any()
    assert hidden[known].mean() == pytest.approx(0.6, abs=4.5 * np.sqrt(0.24 / known.sum()))


@pytest.mark.parametrize(("sampler", "settings", "frames"), [("em", {}, 1), ("pc", {"save_corrector_frames": True}, 2)])
def test_a_step_back_adds_the_noise_between_two_times(sampler, settings, frames):
    problem, step = problem_of(sampler, **settings), step_of(0.4, 0.5)
    state, trajectory = renoised(problem, state_of(problem), step, jax.random.key(1))
    spread = float(jnp.sqrt(step.noise_next**2 - step.noise**2))
    moved = np.asarray(state.y - problem.graph.pos)
    assert moved.std() == pytest.approx(spread, rel=4.5 / np.sqrt(2 * moved.size))
    share = (0.5 - 0.4) / (1 - 0.4)
    assert float(jnp.mean(state.x == 0)) == pytest.approx(share, abs=4.5 * np.sqrt(share / COUNT))
    assert trajectory.pos.shape == (frames, COUNT + 1, 3)
    np.testing.assert_array_equal(trajectory.pos[0], trajectory.pos[-1])


def test_known_atoms_are_restored():
    problem = problem_of()
    moved = problem.graph._replace(pos=problem.graph.pos + 1.0, x=problem.graph.x + 2)
    restored = restore_known(problem, moved)
    known = np.asarray(known_atoms(problem))
    np.testing.assert_array_equal(restored.pos[known], problem.graph.pos[known])
    np.testing.assert_array_equal(restored.x[known], 6)
    np.testing.assert_array_equal(restored.pos[~known], moved.pos[~known])


def test_inpainting_below_t_1_starts_at_the_noised_reference():
    step = step_of(0.3, 0.2)
    near = start_state(problem_of(inpaint=InpaintConfig(t_start=0.3)), jax.random.key(2), step, None)
    spread = np.asarray(near.y - 100.0)[:COUNT].std()
    assert spread == pytest.approx(float(step.noise), rel=4.5 / np.sqrt(2 * 3 * COUNT))
    assert set(np.unique(near.x).tolist()) == {0, 6}
    far = start_state(problem_of(inpaint=InpaintConfig()), jax.random.key(2), step_of(1.0, 0.9), None)
    assert not far.x.any()
    assert np.asarray(far.y)[:COUNT].std() == pytest.approx(200 / 12**0.5, rel=0.05)  # uniform in the cell
