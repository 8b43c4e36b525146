"""Sizes that no network can have are refused; the defaults are the published ones."""

import dataclasses

import pytest

from crystalformer.config import TransformerConfig
from matterform.config import from_dict, to_dict


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("Nf", "Kx", "Kl", "num_layers", "num_heads", "key_size", "model_size", "embed_size")),
        ("widening_factor", -1),
        ("n_max", 1),
        ("h0_size", -1),
        ("atom_types", 1),
        ("atom_types", 120),
        ("wyck_types", 29),
        ("key_size", 7),
        ("dropout_rate", 1.0),
        ("attn_rate", -0.1),
        ("dropout_rate", float("nan")),
        ("sigmamin", 0.0),
        ("sigmamin", float("nan")),
    ],
)
def test_an_impossible_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name} must.*got {value!r}"):
        TransformerConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("generation", "sinusoidal"), ("compute_dtype", "float16")])
def test_an_unknown_choice_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"{name}: expected one of .*found {value!r}"):
        from_dict(TransformerConfig, {name: value})


def test_an_odd_key_size_needs_absolute_positions():
    assert TransformerConfig(generation="absolute", key_size=7).key_size == 7


def test_output_is_as_wide_as_the_widest_head():
    assert TransformerConfig().output_size == 119 + 13 * 4
    assert TransformerConfig(Kx=80).output_size == 240
    assert TransformerConfig(atom_types=2, Kl=1, Kx=1).output_size == 28


def test_config_survives_yaml_values(tiny_config):
    config = dataclasses.replace(tiny_config, generation="absolute", compute_dtype="bfloat16", remat=True)
    assert from_dict(TransformerConfig, to_dict(config)) == config
