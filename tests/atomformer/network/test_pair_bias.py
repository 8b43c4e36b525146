"""The folded projection of normalised Gaussians: values, both derivatives, and what it keeps in memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from atomformer.network import pair_bias as pairs
from atomformer.network.pair_bias import block_biases, normed_projection, pair_coordinates

pytestmark = pytest.mark.usefixtures("quick")


def plain_projection(u, means, widths, matrix):
    """LayerNorm of the normal densities at u, then the matrix; everything as written in the specification."""
    z = (u[:, None] - means[None]) / widths[None]
    density = jnp.exp(-0.5 * z**2) / (np.sqrt(2 * np.pi) * widths[None])
    return jax.nn.standardize(density, axis=-1, epsilon=1e-5) @ matrix


def arguments(p=23, k=7, depth=3, dtype: Any = np.float64, seed=0) -> Any:
    """Points inside and outside of the Gaussians, one of them where all densities vanish."""
    rng = np.random.default_rng(seed)
    u = np.concatenate([rng.uniform(-1, 6, p - 1), [60.0]])
    values = (u, rng.uniform(0, 3, k), rng.uniform(0.3, 2, k), rng.normal(size=(k, depth)))
    return tuple(jnp.asarray(value, dtype) for value in values)


def probe(function, *args):
    """A scalar that depends on every output differently."""
    out = function(*args)
    return jnp.sum(jnp.sin(out) * jnp.cos(jnp.arange(out.size)).reshape(out.shape))


def assert_close(found, expected, tolerance):
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


def test_value_and_all_four_gradients_are_those_of_the_plain_form():
    both: list[Any] = [
        jax.jit(jax.value_and_grad(functools.partial(probe, f), argnums=range(4)))
        for f in (normed_projection, plain_projection)
    ]
    found, expected = (f(*arguments(dtype=np.float32)) for f in both)
    assert_close(found, expected, 2e-5)
    with jax.enable_x64(True):
        args = arguments()
        assert_close(normed_projection(*args), plain_projection(*args), 1e-12)
        assert_close(*(f(*args) for f in both), 1e-10)


def test_second_derivatives_are_those_of_the_plain_form():
    def slopes(function, directions, *args):
        """The derivative of a functional of all first derivatives: every block of the Hessian takes part."""
        first = jax.grad(functools.partial(probe, function), argnums=range(4))

        def functional(*args):
            return sum(jnp.sum(g * d) for g, d in zip(first(*args), directions, strict=True))

        return jax.grad(functional, argnums=range(4))(*args)

    with jax.enable_x64(True):
        args, directions = arguments(), arguments(seed=1)
        found, expected = (
            jax.jit(functools.partial(slopes, f, directions))(*args) for f in (normed_projection, plain_projection)
        )
        assert_close(found, expected, 1e-9)


def test_derivatives_are_those_of_finite_differences():
    with jax.enable_x64(True):
        check_grads(
            lambda *args: probe(normed_projection, *map(jnp.asarray, args)), arguments(p=5), 2, modes=["rev"], rtol=1e-4
        )


def test_a_vanishing_expansion_has_finite_slopes():
    u, means, widths, matrix = arguments(p=4, dtype=np.float32)
    far = jnp.full_like(u, 1e4)
    value, slopes = jax.value_and_grad(functools.partial(probe, normed_projection), argnums=range(4))(
        far, means, widths, matrix
    )
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in slopes)


def leaves(k=6, depth=3, vocab=4, seed=0):
    """Parameters of the pair embedding and of the blocks' norms and projections."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    pair = {"mul": draw((vocab + 1) ** 2), "bias": draw((vocab + 1) ** 2), "means": draw(k), "stds": draw(k)}
    blocks = {
        "pair_norm": {"scale": draw(depth, k), "offset": draw(depth, k)},
        "pair_proj": {"w": draw(depth, k), "b": draw(depth)},
    }
    return pair, blocks


def test_biases_are_each_blocks_own_norm_and_projection():
    pair, blocks = leaves()
    pair["stds"] = -jnp.abs(pair["stds"]) - 0.3  # their sign does not matter
    u = jnp.linspace(-2, 4, 50)
    found = block_biases(pair, blocks, u)
    widths = jnp.abs(pair["stds"]) + 1e-5
    normed = plain_projection(u, pair["means"], widths, jnp.eye(6))
    for i in range(3):
        norm, projection = (
            jax.tree.map(lambda leaf, i=i: leaf[i], blocks[name]) for name in ("pair_norm", "pair_proj")
        )
        own = normed * norm["scale"][None] + norm["offset"][None]
        np.testing.assert_allclose(found[:, i], own @ projection["w"] + projection["b"], rtol=1e-4, atol=1e-4)


def test_ordered_pairs_of_tokens_have_their_own_scalars():
    pair, _ = leaves(vocab=4)
    first, second = jnp.array([0, 1, 3, 2]), jnp.array([0, 3, 1, 2])
    found = pair_coordinates(pair, first, second, jnp.array([1.0, 2.0, 2.0, 0.0]), 4)
    types = [0, 1 * 4 + 3, 3 * 4 + 1, 2 * 4 + 2]
    expected = np.asarray(pair["mul"])[types] * [1, 2, 2, 0] + np.asarray(pair["bias"])[types]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def split(monkeypatch, most):
    for name in ("FORWARD_PAIRS", "BACKWARD_PAIRS"):
        monkeypatch.setattr(pairs, name, most)


@pytest.mark.parametrize(("most", "count"), [(10, 43), (7, 8), (1, 5)])
def test_working_in_parts_changes_nothing(monkeypatch, most, count):
    def run(*args):
        return jax.jit(jax.value_and_grad(lambda *args: probe(block_biases, *args), argnums=(0, 1, 2)))(*args)

    with jax.enable_x64(True):
        pair, blocks = jax.tree.map(lambda leaf: leaf.astype(np.float64), leaves())
        u = jnp.asarray(np.random.default_rng(1).uniform(-1, 4, count))
        expected = run(pair, blocks, u)
        sizes = []
        split(monkeypatch, most)
        gaussians = pairs._gaussians
        monkeypatch.setattr(pairs, "_gaussians", lambda u, *rest: (sizes.append(len(u)), gaussians(u, *rest))[1])
        assert_close(run(pair, blocks, u), expected, 1e-11)
    assert 0 < max(sizes) <= most


def residual_sizes(function, *args):
    """How many entries each array has that the backward pass keeps."""
    kept = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args)
    return [leaf.size for leaf in jax.tree.leaves(kept)]


@pytest.mark.parametrize("most", [100, 10_000])
def test_no_expansion_is_kept_for_the_backward_pass(monkeypatch, most):
    p, k = 1000, 64
    args = arguments(p, k, 2, np.float32)
    expansion = p * k
    split(monkeypatch, most)
    assert max(residual_sizes(normed_projection, *args)) <= expansion / 10
    assert max(residual_sizes(plain_projection, *args)) >= expansion
    # Conservative forces: the backward pass of a gradient.
    force = lambda f: jax.grad(functools.partial(probe, f))  # noqa: E731
    assert max(residual_sizes(force(normed_projection), *args)) <= expansion / 10
    assert max(residual_sizes(force(plain_projection), *args)) >= expansion
