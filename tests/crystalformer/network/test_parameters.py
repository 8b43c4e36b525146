"""The published tree and the first values of its leaves."""

import dataclasses

import jax
import numpy as np
import pytest

from crystalformer.config import TransformerConfig
from crystalformer.network.parameters import as_network, init_params, parameter_shapes


def test_published_sizes_have_4833575_parameters():
    shapes = parameter_shapes(TransformerConfig())
    assert sum(np.prod(shape, dtype=int) for leaves in shapes.values() for shape in leaves.values()) == 4_833_575


def test_shapes_are_those_of_the_published_files(golden):
    found = {module: {leaf: x.shape for leaf, x in leaves.items()} for module, leaves in golden.params.items()}
    assert found == parameter_shapes(golden.config)


@pytest.mark.parametrize("change", [{}, {"generation": "absolute"}, {"h0_size": 0}])
def test_first_values_are_small_cut_normals(tiny_config, change):
    config = dataclasses.replace(tiny_config, **change)
    params = init_params(jax.random.key(3), config)
    shapes = parameter_shapes(config)
    assert {module: {leaf: x.shape for leaf, x in leaves.items()} for module, leaves in params.items()} == shapes
    constants = {"b": 0, "offset": 0, "scale": 1}
    drawn = []
    for leaves in params.values():
        for leaf, array in leaves.items():
            assert array.dtype == np.float32
            if leaf in constants:
                np.testing.assert_array_equal(array, constants[leaf])
            else:
                drawn.append(np.ravel(array) / 0.01)
    drawn = np.concatenate(drawn)
    assert np.abs(drawn).max() <= 2
    # A normal cut at two widths has variance 0.7737; bounds at 4.5 standard errors.
    error = 1 / len(drawn) ** 0.5
    assert abs(drawn.mean()) < 4.5 * 0.88 * error
    assert abs(drawn.var() - 0.7737) < 4.5 * error
    assert len(np.unique(drawn)) > 0.95 * len(drawn)


def test_seed_decides_the_first_values(tiny_config):
    first, again, other = (jax.tree.leaves(init_params(jax.random.key(seed), tiny_config)) for seed in (0, 0, 1))
    assert all((x == y).all() for x, y in zip(first, again, strict=True))
    assert any((x != y).any() for x, y in zip(first, other, strict=True))


def test_a_raw_key_is_accepted(tiny_config):
    raw, typed = init_params(jax.random.PRNGKey(5), tiny_config), init_params(jax.random.key(5), tiny_config)
    jax.tree.map(np.testing.assert_array_equal, raw, typed)


def test_network_stacks_the_layers_in_order(tiny_config, lively):
    params = lively(dataclasses.replace(tiny_config, num_layers=3))
    network = as_network(params, dataclasses.replace(tiny_config, num_layers=3))
    np.testing.assert_array_equal(
        network.layers["query"]["w"],
        np.stack([params[f"multi_head_attention{suffix}/query"]["w"] for suffix in ("", "_1", "_2")]),
    )
    np.testing.assert_array_equal(
        network.layers["mlp_out"]["b"], np.stack([params[f"linear_{i}"]["b"] for i in (8, 10, 12)])
    )
    np.testing.assert_array_equal(network.final_norm["scale"], params["layer_norm_6"]["scale"])
    np.testing.assert_array_equal(network.output["w"], params["linear_13"]["w"])
