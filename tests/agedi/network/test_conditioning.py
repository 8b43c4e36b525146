import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agedi.config import ConditionConfig
from agedi.network.conditioning import clean_conditioning, conditioning
from agedi.network.score import random_parameters

CONFIGS = (
    ConditionConfig(name="energy", mean=-3.0, std=0.5),
    ConditionConfig(name="group", kind="integer", num_classes=4),
    ConditionConfig(name="charge", kind="node"),
)
VALUES = {"energy": jnp.float32(-3.5), "group": jnp.int32(2), "charge": jnp.array([0.1, -0.4, 0.3])}
LEVELS = jnp.array([0.3, -0.2])


@pytest.fixture(scope="module")
def embed():
    """The conditioning of three atoms as a function of levels, values and whether they are known."""

    def network(levels, values, known):
        return conditioning(levels, values, known, CONFIGS, num_atoms=3, size=8)

    transformed = hk.without_apply_rng(hk.transform(network))
    params = random_parameters(jax.random.key(0), lambda: transformed.init(None, LEVELS, VALUES, jnp.array(True)))
    apply = jax.jit(transformed.apply)
    return lambda levels, values, known: apply(params, levels, values, jnp.array(known))


def test_every_input_changes_the_conditioning(embed):
    base = embed(LEVELS, VALUES, True)
    for name, value in {"energy": -3.4, "group": 3, "charge": [0.1, -0.4, 0.2]}.items():
        changed = embed(LEVELS, {**VALUES, name: jnp.asarray(value, VALUES[name].dtype)}, True)
        rows = np.abs(changed - base).max(axis=1) > 1e-3
        np.testing.assert_array_equal(rows, [name != "charge", name != "charge", True])
    assert np.abs(embed(LEVELS + 0.02, VALUES, True) - base).min(axis=0).max() > 1e-2


def test_unknown_properties_have_no_influence(embed):
    nothing = embed(LEVELS, {}, True)
    for value in (-3.5, 100.0, np.nan):
        np.testing.assert_array_equal(embed(LEVELS, {**VALUES, "energy": jnp.float32(value)}, False), nothing)
    assert np.abs(embed(LEVELS, VALUES, True) - nothing).max() > 1e-2


def test_distant_values_differ(embed):
    """A pair of sines would repeat itself: the original's values 2π apart were the same to it."""
    seen = [embed(LEVELS, {**VALUES, "energy": jnp.float32(-3.0 + 0.5 * v)}, True)[0] for v in range(-8, 9)]
    distances = np.linalg.norm(np.array(seen)[:, None] - np.array(seen)[None], axis=-1)
    assert distances[~np.eye(len(seen), dtype=bool)].min() > 0.05


def test_values_are_standardised():
    def network(values, config):
        return conditioning(LEVELS, values, jnp.array(True), (config,), num_atoms=1, size=8)

    wide, unit = ConditionConfig(name="energy", mean=-3.0, std=0.5), ConditionConfig(name="energy")
    transformed = hk.without_apply_rng(hk.transform(network))
    params = random_parameters(jax.random.key(0), lambda: transformed.init(None, {"energy": jnp.float32(0)}, unit))
    raw = transformed.apply(params, {"energy": jnp.float32(-2.25)}, wide)
    np.testing.assert_allclose(raw, transformed.apply(params, {"energy": jnp.float32(1.5)}, unit), rtol=1e-6)


def test_names_that_do_not_match_are_refused(embed):
    with pytest.raises(ValueError, match=r"conditioned on energy, group, charge; got values of volume"):
        embed(LEVELS, {"volume": jnp.float32(1.0)}, True)
    with pytest.raises(ValueError, match=r"got values of energy\b"):
        embed(LEVELS, {"energy": jnp.float32(1.0)}, True)


def test_clean_structures_have_a_vector_of_their_own():
    transformed = hk.without_apply_rng(hk.transform(lambda: clean_conditioning(3, 8)))
    rows = transformed.apply(random_parameters(jax.random.key(0), lambda: transformed.init(None)))
    assert rows.shape == (3, 8)
    np.testing.assert_array_equal(rows, rows[:1].repeat(3, axis=0))
    assert np.abs(rows).max() > 0.1
