import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agedi.network.groups import GROUP, in_groups


def function(scale, x, shift):
    return {"y": jnp.sin(scale * x) + shift, "norm": jnp.sum(x**2)}


@pytest.mark.parametrize("batch", [1, GROUP, 2 * GROUP + 1])
def test_groups_do_not_change_results(batch, rng):
    scale, shift = jnp.float32(1.5), jnp.arange(3.0)
    x = jnp.asarray(rng.standard_normal((batch, 3), np.float32))
    for axes in [(None, 0, None), (0, 0, None), (None, 0, 0)]:
        inputs = [
            jnp.broadcast_to(v, (batch, *v.shape)) if a == 0 else v for v, a in ((scale, axes[0]), (shift, axes[2]))
        ]
        arguments = inputs[0], x, inputs[1]
        expected = jax.vmap(function, axes)(*arguments)
        for name, value in jax.jit(jax.vmap(in_groups(function), axes))(*arguments).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-6)


def test_gradients_pass_through_groups(rng):
    x = jnp.asarray(rng.standard_normal((GROUP + 2, 3), np.float32))

    def loss(f):
        def total(scale, x, shift):
            out = jax.vmap(f, (None, 0, None))(scale, x, shift)
            return jnp.sum(out["y"] ** 2) + jnp.sum(out["norm"])

        return jax.jit(jax.grad(total, (0, 1, 2)))(jnp.float32(1.5), x, jnp.arange(3.0))

    for ours, expected in zip(loss(in_groups(function)), loss(function), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_only_a_group_is_held_at_a_time():
    def wide(x):
        return jnp.sum(jnp.sin(x[:, None] * jnp.arange(1000.0)[None]) @ jnp.ones((1000, 1000)))

    def temporary(f, batch):
        compiled = jax.jit(jax.vmap(f)).lower(jnp.ones((batch, 100))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    if jax.default_backend() != "cpu":
        pytest.skip("groups are for processors' caches")
    assert temporary(in_groups(wide), 16 * GROUP) < 1.5 * temporary(in_groups(wide), 2 * GROUP)
    assert temporary(wide, 16 * GROUP) > 6 * temporary(wide, 2 * GROUP)
