"""One token at a time through the network gives what the whole sequence gives."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crystalformer.config import TransformerConfig
from crystalformer.data.crystals import Crystals
from crystalformer.network.parameters import Network, as_network
from crystalformer.network.transformer import embed_tokens, output_layer, run_layers
from crystalformer.sampling.decoding import (
    cache_bytes,
    copy_lane,
    decode_token,
    empty_cache,
    fold_attention,
    grow_cache,
)
from crystalformer.symmetry.wyckoff import symmetry_tables


def tokens_of(network, crystals: Crystals, config):
    """Tokens of every crystal, before positions enter."""
    without_positions = dataclasses.replace(config, generation="rotary")

    def tokens(G, L, XYZ, A, W):
        M = jnp.asarray(symmetry_tables().multiplicity)[G - 1, W]
        return embed_tokens(network, G, XYZ, A, W, M, without_positions)

    return jax.vmap(tokens)(*crystals)


def raw_outputs(network, tokens, config):
    """What the output layer gives after each token, all tokens at once."""
    if config.generation == "absolute":
        positions = network.tables["positional_embeddings"][: tokens.shape[1]]
        tokens = tokens + jnp.broadcast_to(positions, tokens.shape)
    return jax.vmap(lambda x: output_layer(network, run_layers(network, x, None, config)))(tokens)


@functools.partial(jax.jit, static_argnames=("group_size", "config"))
def decode(network, tokens, cache, start, num_groups, *, group_size, config):
    """Outputs (b, t, columns) after each of `tokens`, the first of which stands at `start`; and the cache."""
    network = fold_attention(network, config)

    def step(cache, inputs):
        position, x = inputs
        row, cache = decode_token(network, cache, x, position, num_groups, group_size, config)
        return cache, row

    positions = start + jnp.arange(tokens.shape[1])
    cache, rows = jax.lax.scan(step, cache, (positions, jnp.swapaxes(tokens, 0, 1)))
    return jnp.swapaxes(rows, 0, 1), cache


class Case(NamedTuple):
    """A network, the tokens of six crystals, and the outputs of the whole sequences."""

    config: TransformerConfig
    network: Network
    tokens: np.ndarray
    expected: np.ndarray


def make_case(params, config, crystals) -> Case:
    @jax.jit
    def whole(params):
        network = as_network(params, config)
        tokens = tokens_of(network, crystals, config)
        return network, tokens, raw_outputs(network, tokens, config)

    return Case(config, *whole(params))


@pytest.fixture(scope="module", params=["rotary", "absolute"])
def config(request, tiny_config):
    return dataclasses.replace(tiny_config, generation=request.param)


@pytest.fixture(scope="module")
def case(config, lively, random_crystals):
    return make_case(lively(config), config, random_crystals(6, 5))


def decode_growing(case: Case, stretch: int, group_size: int, num_groups=None, rearrange=lambda cache: cache):
    """Outputs token by token, with a cache that grows after `stretch` tokens; `rearrange` then acts on it."""
    groups = jnp.asarray(num_groups or len(case.tokens) // group_size)
    run = functools.partial(decode, case.network, group_size=group_size, config=case.config)
    cache = empty_cache(len(case.tokens), stretch, case.config)
    first, cache = run(case.tokens[:, :stretch], cache, jnp.asarray(0), groups)
    cache = grow_cache(rearrange(cache), case.tokens.shape[1])
    rest, cache = run(case.tokens[:, stretch:], cache, jnp.asarray(stretch), groups)
    return jnp.concatenate([first, rest], axis=1), cache


def test_token_by_token_equals_the_whole_sequence(case):
    found, _ = decode_growing(case, stretch=10, group_size=2)
    assert np.ptp(case.expected, axis=1).min() > 1e-3  # every column changes along the sequence
    np.testing.assert_allclose(found, case.expected, rtol=1e-5, atol=1e-5)


def test_token_by_token_equals_the_whole_sequence_with_golden_weights(golden):
    case = make_case(golden.params, golden.config, jax.tree.map(lambda field: field[:8], golden.crystals))
    found, _ = decode_growing(case, stretch=45, group_size=4)
    assert found.shape[1] == 105
    np.testing.assert_allclose(found, case.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_half_precision_stays_close_to_the_whole_sequence(config, lively, random_crystals):
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    case = make_case(lively(config), half, random_crystals(6, 5))
    found, _ = decode_growing(case, stretch=10, group_size=2)
    assert found.dtype == np.float32
    # bfloat16 rounds to 0.4 % at most, 0.1 % on average; a few roundings a layer add up at random.
    assert 0 < np.sqrt(np.mean((found - case.expected) ** 2)) < 0.01 * np.std(case.expected)


def test_lanes_behind_the_groups_are_left_alone(case):
    found, cache = decode_growing(case, stretch=10, group_size=2, num_groups=2)
    np.testing.assert_allclose(found[:4], case.expected[:4], rtol=1e-5, atol=1e-5)
    for leaf in jax.tree.leaves(cache):
        np.testing.assert_array_equal(leaf[:, 4:], 0)
        assert (leaf[:, :4] != 0).any(axis=(0, *range(2, leaf.ndim))).all()


def test_a_copied_lane_continues_like_its_source(case):
    continued = case.tokens.at[1, 10:].set(case.tokens[3, 10:])
    copied = functools.partial(copy_lane, source=jnp.asarray(3), target=jnp.asarray(1))
    found, _ = decode_growing(case._replace(tokens=continued), stretch=10, group_size=2, rearrange=copied)
    np.testing.assert_allclose(found[:, 10:], case.expected[np.array([0, 3, 2, 3, 4, 5]), 10:], rtol=1e-5, atol=1e-5)


def test_absolute_positions_need_no_cached_keys(config):
    per_token = {"rotary": config.model_size + config.num_heads * config.key_size, "absolute": config.model_size}
    expected = 4 * config.num_layers * 5 * config.n_max * per_token[config.generation]
    assert cache_bytes(config) == expected
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(empty_cache(3, 5 * config.n_max, config))) == 3 * expected
