"""Guidance: extrapolation between two networks' outputs, and the bounded shift along forces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_scores import graph_of

from agedi.network.score import Outputs
from agedi.sampling.config import ForcefieldGuidanceConfig
from agedi.sampling.guidance import LARGEST_GUIDED_SHIFT, guided_shift, make_guided_score


@pytest.mark.parametrize(
    ("weight", "conditions", "expected", "evaluations"),
    [
        (1.0, {"energy": jnp.zeros(())}, 5.0, 1),
        (0.0, {"energy": jnp.zeros(())}, 2.0, 1),
        (3.0, {"energy": jnp.zeros(())}, 2.0 + 3.0 * (5.0 - 2.0), 2),
        (3.0, {}, 2.0, 1),
    ],
)
def test_outputs_are_extrapolated(weight, conditions, expected, evaluations):
    """Eq. 31 of docs/formulas/agedi.md, with an unconditional output of 2 and a conditional one of 5."""
    calls = []

    def score(params, graph, levels, conditions, known):
        calls.append(1)
        return Outputs(jnp.where(known, 5.0, 2.0) * jnp.ones((1, 3)), None)

    graph = jax.tree.map(jnp.asarray, graph_of(jnp.eye(3), [False] * 3, count=1))
    outputs = make_guided_score(score, weight)({}, graph, jnp.zeros(1), conditions)
    np.testing.assert_allclose(outputs.noise, expected)
    assert outputs.logits is None
    assert len(calls) == evaluations


def test_shifts_follow_forces_and_are_bounded_as_a_whole():
    """Eq. 32: nu^2 guidance (1 - t)^zeta F = 0.2^2 * 0.5 * 0.5^2 * F = 0.005 F."""
    settings = ForcefieldGuidanceConfig(guidance=0.5, zeta=2.0)
    forces = jnp.array([[1.0, 0.0, 0.0], [0.0, -3.0, 4.0]])
    shift = guided_shift(forces, jnp.float32(0.2), jnp.float32(0.5), settings)
    np.testing.assert_allclose(shift, 0.005 * forces, rtol=1e-6)
    large = guided_shift(1e3 * forces, jnp.float32(0.2), jnp.float32(0.5), settings)
    np.testing.assert_allclose(large, LARGEST_GUIDED_SHIFT / 5.0 * forces, rtol=1e-5)
    np.testing.assert_array_equal(guided_shift(0 * forces, jnp.float32(0.2), jnp.float32(0.5), settings), 0.0)
