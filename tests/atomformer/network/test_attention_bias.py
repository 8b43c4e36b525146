"""Attention biases against loops over atoms and images; the folded projection of normalised Gaussians.

Of the projection: values, first and second derivatives, and what it keeps in memory.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from atomformer.data.examples import pad_edges
from atomformer.data.periodic import image_edges
from atomformer.data.structure import Structure
from atomformer.data.vocabulary import GRAPH
from atomformer.network import attention_bias
from atomformer.network.attention_bias import (
    MASKED,
    attention_biases,
    block_biases,
    normed_projection,
    pair_coordinates,
    system_distances,
    token_distances,
)
from matterform.reduction import minkowski_cell

pytestmark = pytest.mark.usefixtures("quick")

CELL = np.array([[3.1, 0.2, 0.0], [-0.4, 3.4, 0.3], [0.5, 0.1, 4.0]])
CUTOFF = 4.5


@pytest.fixture(scope="module")
def images_config(tiny_config):
    return dataclasses.replace(tiny_config, periodic="images", cutoff=CUTOFF)


def crystal(pbc=(True, True, True), padding=0, extra_edges=0, seed=0) -> Any:
    """Four atoms with the images of `CELL`, with padded atoms and edges."""
    rng, periodic = np.random.default_rng(seed), np.array(pbc)
    positions = (rng.uniform(0, 1, (4, 3)) @ CELL).astype(np.float32)
    cell = minkowski_cell(CELL, periodic)
    edges = image_edges(positions.astype(float), cell, periodic, CUTOFF)
    edges = jax.tree.map(lambda x: x[0], pad_edges([edges], len(edges.first) + extra_edges))
    structure = Structure(
        np.concatenate([rng.integers(1, 95, 4), np.full(padding, 119)]).astype(np.int32),
        np.concatenate([positions, np.full((padding, 3), 40, np.float32)]),
        np.arange(4 + padding) < 4,
        cell=cell.astype(np.float32),
        pbc=periodic,
        edges=edges,
    )
    return jax.tree.map(jnp.asarray, structure)


def biases(encoder, structure, config) -> np.ndarray:
    """The biases of all blocks."""

    def run(encoder, structure):
        tokens = jnp.concatenate([jnp.array([GRAPH]), structure.tokens])
        return attention_biases(encoder, tokens, structure, config)

    return np.asarray(jax.jit(run)(encoder, structure))


def plain_biases(encoder, first, second, distances, config) -> np.ndarray:
    """Biases (..., depth) of single pairs without any sum, in double precision, as written in the specification."""
    encoder = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), encoder)
    pair, norm, projection = encoder["pair"], encoder["blocks"]["pair_norm"], encoder["blocks"]["pair_proj"]
    types = np.asarray(first) * config.vocab_size + np.asarray(second)
    u = pair["mul"][types] * distances + pair["bias"][types]
    widths = np.abs(pair["stds"]) + 1e-5
    density = np.exp(-0.5 * ((u[..., None] - pair["means"]) / widths) ** 2) / (np.sqrt(2 * np.pi) * widths)
    variance = density.var(axis=-1, keepdims=True)
    normed = ((density - density.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-5))[..., None, :]
    return ((normed * norm["scale"] + norm["offset"]) * projection["w"]).sum(-1) + projection["b"]


def test_distances_are_those_between_atoms_and_from_their_mean(tiny_config, molecules):
    structure = jax.tree.map(lambda x: jnp.asarray(x[0]), molecules((5,), 7))
    positions = np.asarray(structure.positions[:5], np.float64)
    points = np.concatenate([positions.mean(0, keepdims=True), positions])
    expected = np.linalg.norm(points[:, None] - points[None], axis=-1)
    found = np.asarray(token_distances(structure, tiny_config))
    assert found.shape == (8, 8)
    np.testing.assert_allclose(found[:6, :6], expected, atol=1e-5)
    np.testing.assert_array_equal(found, found.T)


def test_distances_know_of_cells_only_if_asked(tiny_config):
    structure = crystal()
    nearest = dataclasses.replace(tiny_config, periodic="minimum_image")
    without = structure._replace(cell=None, pbc=None)
    plain = token_distances(without, tiny_config)
    np.testing.assert_array_equal(token_distances(structure, tiny_config), plain)
    np.testing.assert_array_equal(token_distances(without, nearest), plain)
    molecule = structure._replace(pbc=jnp.zeros(3, bool), cell=jnp.eye(3))
    np.testing.assert_array_equal(token_distances(molecule, nearest), plain)
    periodic = np.asarray(token_distances(structure, nearest))
    assert (periodic[1:, 1:] <= np.asarray(plain)[1:, 1:] + 1e-6).all()
    assert (periodic[1:, 1:] < np.asarray(plain)[1:, 1:] - 0.1).any()


@pytest.mark.parametrize("periodic", ["minimum_image", "images"])
def test_crystals_have_no_distance_to_the_system_token(tiny_config, periodic):
    config = dataclasses.replace(tiny_config, periodic=periodic)
    np.testing.assert_array_equal(system_distances(crystal(), config), np.zeros(4))
    assert (system_distances(crystal((False,) * 3), config) > 0).all()
    assert (system_distances(crystal(), tiny_config) > 0).all()


@pytest.mark.parametrize("pbc", [(True,) * 3, (True, False, True), (False, False, True), (False,) * 3], ids=str)
def test_weights_of_images_add_up(images_config, lively, pbc):
    """exp(bias) of an atom is the sum of f(d) exp(bias(d)) over its images, itself and the system token counting 1."""
    encoder, structure = lively(images_config)["encoder"], crystal(pbc, padding=2, extra_edges=5)
    found = biases(encoder, structure, images_config)
    tokens = np.asarray(structure.tokens)[:4]
    positions = np.asarray(structure.positions, np.float64)[:4]
    cell = np.asarray(structure.cell, np.float64)
    reach: list[Any] = [range(-3, 4) if repeats else [0] for repeats in pbc]
    shifts = np.array(list(itertools.product(*reach))) @ cell
    for i, j in itertools.product(range(4), repeat=2):
        distances = np.linalg.norm(positions[j] + shifts - positions[i], axis=-1)
        seen = np.where(distances < CUTOFF, 0.5 + 0.5 * np.cos(np.pi * distances / CUTOFF), 0)  # 1 at distance 0
        terms = np.exp(plain_biases(encoder, tokens[i], tokens[j], distances, images_config)) * seen[:, None]
        if (seen > 0).any():
            np.testing.assert_allclose(np.exp(found[:, 1 + i, 1 + j]), terms.sum(0), rtol=1e-4)
        else:
            assert (found[:, 1 + i, 1 + j] == MASKED).all()
    mean = positions.mean(0, keepdims=True)
    to_system = np.zeros(4) if any(pbc) else np.linalg.norm(positions - mean, axis=-1)
    expected = plain_biases(encoder, GRAPH, tokens, to_system, images_config)
    np.testing.assert_allclose(found[:, 0, 1:5], expected.T, rtol=1e-4, atol=1e-5)
    expected = plain_biases(encoder, tokens, GRAPH, to_system, images_config)
    np.testing.assert_allclose(found[:, 1:5, 0], expected.T, rtol=1e-4, atol=1e-5)


def test_padded_edges_change_nothing(images_config, lively):
    encoder = lively(images_config)["encoder"]
    found = biases(encoder, crystal(extra_edges=9), images_config)
    np.testing.assert_allclose(found, biases(encoder, crystal(), images_config), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("periodic", ["minimum_image", "images"])
def test_the_choice_of_images_and_of_cell_changes_nothing(tiny_config, lively, periodic):
    config = dataclasses.replace(tiny_config, periodic=periodic, cutoff=CUTOFF)
    encoder, structure = lively(config)["encoder"], crystal()
    cell = np.asarray(structure.cell, np.float64)
    moved = (
        np.asarray(structure.positions, np.float64) + np.array([[1, 0, -2], [0, 3, 0], [0, 0, 0], [-1, 1, 1]]) @ cell
    )
    for positions, basis in [
        (moved, cell),
        (
            np.asarray(structure.positions, np.float64),
            minkowski_cell(np.array([[1, 3, 0], [0, 1, 0], [2, 0, 1]]) @ cell, np.ones(3, bool)),
        ),
    ]:
        edges = image_edges(positions, basis, np.ones(3, bool), CUTOFF)
        other = structure._replace(
            positions=jnp.asarray(positions, jnp.float32),
            cell=jnp.asarray(basis, jnp.float32),
            edges=jax.tree.map(jnp.asarray, edges),
        )
        found = biases(encoder, other, config)
        np.testing.assert_allclose(found, biases(encoder, structure, config), rtol=1e-4, atol=1e-4)


def test_an_image_that_crosses_the_cutoff_changes_nothing_abruptly(images_config, lively):
    encoder = lively(images_config)["encoder"]
    found = []
    for distance in (CUTOFF - 2e-3, CUTOFF + 2e-3):
        positions = np.array([[0, 0, 0], [distance, 0, 0]])
        cell, pbc = np.diag([3 * CUTOFF] * 3), np.ones(3, bool)
        edges = jax.tree.map(jnp.asarray, image_edges(positions, cell, pbc, CUTOFF))
        tokens = jnp.array([6, 8])
        structure = Structure(
            tokens, jnp.asarray(positions), jnp.ones(2, bool), None, jnp.asarray(cell), jnp.asarray(pbc), edges
        )
        assert len(edges.first) == (2 if distance < CUTOFF else 0)
        found.append(np.exp(biases(encoder, structure, images_config)))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_steep_biases_leave_every_row_its_own_scale(images_config, lively):
    """An atom whose biases all lie far below those of others still sees what it sees."""
    encoder, structure = lively(images_config)["encoder"], crystal((False,) * 3)
    plain = dataclasses.replace(images_config, periodic="none")
    structure = structure._replace(positions=structure.positions.at[3].add(100.0), tokens=jnp.array([6, 7, 8, 30]))
    structure = structure._replace(edges=jax.tree.map(lambda x: x[:0], structure.edges))  # none within the cutoff
    # All Gaussians vanish where atom 3 looks from, so that its biases are 0; all others are large.
    shift = jnp.zeros_like(encoder["pair"]["bias"]).at[30 * 123 : 31 * 123].set(100.0)
    blocks = jax.tree.map(jnp.zeros_like, {name: encoder["blocks"][name] for name in ("pair_norm", "pair_proj")})
    blocks["pair_norm"]["scale"] += 1.0
    blocks["pair_proj"]["w"] += 30.0 * jnp.sign(1.5 - encoder["pair"]["means"])[None]
    encoder = {**encoder, "pair": {**encoder["pair"], "bias": shift}, "blocks": {**encoder["blocks"], **blocks}}
    found, expected = (biases(encoder, structure, config) for config in (images_config, plain))
    assert np.ptp(np.diagonal(expected, axis1=1, axis2=2), axis=-1).min() > 100
    seen = np.eye(5, dtype=bool)
    seen[0] = seen[:, 0] = True
    expected = jax.nn.softmax(np.where(seen, expected, -np.inf), axis=-1)
    np.testing.assert_allclose(jax.nn.softmax(found, axis=-1), expected, atol=1e-4)


def test_images_need_edges(images_config, lively):
    structure = crystal()._replace(edges=None)
    with pytest.raises(ValueError, match=r'"images" needs the edges of every structure; make them with periodic.image'):
        biases(lively(images_config)["encoder"], structure, images_config)


@pytest.mark.parametrize("periodic", ["none", "minimum_image", "images"])
def test_slopes_are_finite_with_padding_at_one_place(tiny_config, lively, periodic):
    config = dataclasses.replace(tiny_config, periodic=periodic, cutoff=CUTOFF)
    encoder, structure = lively(config)["encoder"], crystal(padding=3, extra_edges=4)

    def total(encoder, positions, cell):
        moved = structure._replace(positions=positions, cell=cell)
        tokens = jnp.concatenate([jnp.array([GRAPH]), structure.tokens])
        found = attention_biases(encoder, tokens, moved, config)
        return jnp.sum(jnp.where(found > MASKED / 2, found, 0.0))

    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(encoder, structure.positions, structure.cell)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert (np.abs(slopes[2]).max() > 0) == (periodic != "none")


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
        monkeypatch.setattr(attention_bias, name, most)


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
        gaussians = attention_bias._gaussians

        def recorded(u, *rest):
            sizes.append(len(u))
            return gaussians(u, *rest)

        monkeypatch.setattr(attention_bias, "_gaussians", recorded)
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
