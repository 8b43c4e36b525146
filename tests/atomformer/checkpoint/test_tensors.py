"""Names, shapes and layout of published tensors against our tree."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from atomformer.checkpoint.tensors import from_published, heads_among, sizes_among, to_published
from atomformer.config import HEADS, AtomformerConfig
from atomformer.network.parameters import fold_params, init_params

TINY = AtomformerConfig(dim=8, num_heads=2, depth=2, k=4, mlp_ratio=3, heads=HEADS, num_labels=5)


def tiny_tensors(config: AtomformerConfig = TINY) -> dict[str, np.ndarray]:
    """Tensors of which no two numbers are equal by design, so that nothing can be swapped unnoticed."""
    shapes = {
        name: tensor.shape for name, tensor in to_published(init_params(jax.random.key(0), config), config).items()
    }
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("conservative", [False, True])
def test_published_tensors_survive_the_round_trip_bit_for_bit(conservative):
    config = dataclasses.replace(TINY, conservative=conservative)
    tensors = tiny_tensors(config)
    again = to_published(from_published(tensors, config), config)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


@pytest.mark.parametrize("conservative", [False, True])
def test_our_tree_survives_the_round_trip_bit_for_bit(conservative):
    config = dataclasses.replace(TINY, conservative=conservative)
    params = init_params(jax.random.key(1), config)
    again = from_published(to_published(params, config), config)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_blocks_are_stacked_and_linears_transposed():
    tensors = tiny_tensors()
    params = from_published(tensors, TINY)
    blocks, prefix = params["encoder"]["blocks"], "encoder.blocks.1"
    np.testing.assert_array_equal(blocks["in_proj"][1], tensors[f"{prefix}.in_proj.weight"].T)
    np.testing.assert_array_equal(blocks["pair_norm"]["offset"][1], tensors[f"{prefix}.pos_embed_ff_norm.bias"])
    np.testing.assert_array_equal(blocks["pair_proj"]["w"][1], tensors[f"{prefix}.gaussian_proj.weight"][0])
    np.testing.assert_array_equal(params["heads"]["masked"]["w"], tensors["masked_head.weight"].T)


def test_half_precision_becomes_float32():
    tensors = tiny_tensors()
    for dtype in (np.float16, ml_dtypes.bfloat16):
        params = from_published({name: tensor.astype(dtype) for name, tensor in tensors.items()}, TINY)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
        want = tensors["encoder.embed_tokens.weight"].astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(params["encoder"]["tokens"], want)


def test_tensors_tell_sizes_and_heads():
    shapes = {name: tensor.shape for name, tensor in tiny_tensors().items()}
    assert sizes_among(shapes) == {
        name: getattr(TINY, name)
        for name in ("vocab_size", "dim", "num_heads", "depth", "mlp_ratio", "k", "num_labels")
    }
    assert heads_among(shapes) == HEADS
    assert heads_among(["encoder.embed_tokens.weight", "force_norm.bias"]) == ("forces",)


def test_every_missing_unexpected_and_misshapen_tensor_is_named():
    tensors = tiny_tensors()
    tensors["extra.weight"] = tensors.pop("force_head.bias")
    del tensors["encoder.blocks.0.k_norm.weight"]
    tensors["cls_norm.weight"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match="missing") as error:
        from_published(tensors, TINY)
    assert str(error.value) == (
        "missing: encoder.blocks.0.k_norm.weight, force_head.bias; unexpected: extra.weight; "
        "cls_norm.weight has shape (7,), expected (8,)"
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 1}, "depth is 1 but the weights have 2"),
        ({"depth": 3, "k": 8}, "depth is 3 but the weights have 2, k is 8 but the weights have 4"),
        ({"dim": 16}, "dim is 16 but the weights have 8"),
        ({"num_heads": 4}, "num_heads is 4 but the weights have 2"),
        ({"mlp_ratio": 4}, "mlp_ratio is 4 but the weights have 3"),
        ({"num_labels": 1}, "num_labels is 1 but the weights have 5"),
    ],
)
def test_a_config_that_disagrees_with_the_weights_is_named_by_field(changed, message):
    with pytest.raises(ValueError, match=f"config disagrees with the weights: .*{message}") as error:
        from_published(tiny_tensors(), dataclasses.replace(TINY, **changed))
    assert "\n" not in str(error.value)
    assert "encoder" not in str(error.value)


def test_integers_are_no_weights():
    tensors = {**tiny_tensors(), "force_head.bias": np.zeros(3, np.int32)}
    with pytest.raises(ValueError, match=r"expected tensors of floats, found force_head.bias \(int32\)"):
        from_published(tensors, TINY)


def test_folded_parameters_cannot_be_published():
    params = fold_params(init_params(jax.random.key(0), TINY), TINY)
    with pytest.raises(ValueError, match=r"encoder/blocks/out_proj has shape \(2, 32, 8\), expected \(2, 32, 16\)"):
        to_published(params, TINY)
