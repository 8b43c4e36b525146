"""What solvers ask of a problem: structures of states, predicted clean structures, guidance, revealed species."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_scores import graph_of, no_search

from agedi.config import DiffusionConfig
from agedi.network.score import Outputs, ScoreModel
from agedi.noise.noisers import make_position_noiser
from agedi.sampling.config import ForcefieldGuidanceConfig, ReverseConfig
from agedi.sampling.plan import Step
from agedi.sampling.problem import Evaluation, Problem, State, make_model_functions, positive

pytestmark = pytest.mark.usefixtures("quick")

CONFIG = DiffusionConfig(noisers=("CellPositions", "Types"), sigma_max=2.0, species=(6, 8))
NOISE = jnp.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [9.0, 9.0, 9.0]])
LOGITS = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]))
FORCES = jnp.array([[0.0, 0.0, 3.0], [4.0, 0.0, 0.0], [7.0, 7.0, 7.0]])


def problem_of(search=no_search, **guidance):
    """Two free atoms and a fixed one; the network's outputs are NOISE and LOGITS, the forces FORCES."""
    graph = graph_of(10 * np.eye(3), [True] * 3, count=2, held=True)
    graph = jax.tree.map(jnp.asarray, graph._replace(pos=np.full((3, 3), 5.0, np.float32)))
    model = ScoreModel({}, lambda *_: Outputs(NOISE, LOGITS), lambda *_: (jnp.zeros(()), FORCES))
    settings = ReverseConfig(guidance=ForcefieldGuidanceConfig(**guidance))
    functions = make_model_functions(CONFIG, model, settings, search, make_position_noiser(CONFIG))
    return Problem(functions, {}, graph, {}, None)


def state_of(y, x):
    return State(jnp.asarray(y, jnp.float32), jnp.asarray(x), None, jnp.array(False))


def test_structures_of_states_keep_fixed_atoms():
    problem = problem_of()
    graph = problem.at(state_of(np.arange(9.0).reshape(3, 3), [0, 8, 8]), jnp.float32(0.5))
    np.testing.assert_array_equal(graph.pos, [[0, 1, 2], [3, 4, 5], [5, 5, 5]])
    assert graph.x.tolist() == [0, 8, 6]


def test_the_clean_structure_is_tweedies_with_the_likeliest_species():
    """y - nu noise, wrapped into the cell of 10 Å."""
    problem = problem_of()
    found = Evaluation(NOISE, jax.nn.log_softmax(LOGITS))
    clean = problem.clean(state_of(np.ones((3, 3)), [0, 0, 6]), found, jnp.float32(2.0))
    np.testing.assert_allclose(clean.pos, [[9, 1, 1], [1, 7, 1], [5, 5, 5]], atol=1e-5)
    assert clean.x.tolist() == [6, 8, 6]


@pytest.mark.parametrize("weight", [0.0, 0.01])
def test_guidance_adds_forces_to_the_score(weight):
    """Eq. 33: noise - nu guidance (1 - t)^zeta F; the noise and the forces of fixed atoms count 0."""
    problem = problem_of(guidance=weight, zeta=2.0)
    state, found = problem.evaluate(state_of(np.ones((3, 3)), [6, 8, 6]), jnp.float32(0.5), jnp.float32(0.5))
    expected = np.array(NOISE - 0.5 * weight * 0.25 * FORCES)
    expected[2] = 0
    np.testing.assert_allclose(found.noise, expected, rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(found.log_probs), jnp.exp(LOGITS), rtol=1e-6)
    assert not state.overflow


def test_an_overflow_of_the_search_is_kept():
    def truncated(graph):
        graph = no_search(graph)
        return graph._replace(edges=graph.edges._replace(overflow=jnp.array(True)))

    state, _ = problem_of(truncated).evaluate(state_of(np.ones((3, 3)), [6, 8, 6]), jnp.float32(0.5), jnp.float32(0.5))
    assert state.overflow


def test_all_hidden_species_are_revealed_in_the_last_step():
    problem = problem_of()
    found = Evaluation(NOISE, jnp.log(jnp.array([[1.0, 1e-9], [1e-9, 1.0], [1.0, 1e-9]])))
    last = Step(*map(jnp.float32, (0.3, 0.0, 0.1, 0.0)), jnp.array(False))
    revealed = problem.revealed(state_of(np.ones((3, 3)), [0, 0, 0]), found, last, jax.random.key(0))
    assert revealed.x.tolist() == [6, 8, 0]  # the fixed atom has its species elsewhere
    kept = problem.revealed(state_of(np.ones((3, 3)), [8, 6, 0]), found, last, jax.random.key(0))
    assert kept.x.tolist() == [8, 6, 0]


def test_noise_levels_are_clipped_before_division():
    np.testing.assert_array_equal(positive(jnp.array([0.0, 0.5])), np.array([1e-9, 0.5], np.float32))
