"""Sizes as published, and configs that are refused."""

import jax
import pytest

from atomformer.config import HEADS, AtomformerConfig, EnergyScale, model_config
from atomformer.network.parameters import init_params


def count_floats(config: AtomformerConfig) -> int:
    """The number of trained parameters."""
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    return sum(leaf.size for leaf in jax.tree.leaves(params)) - params["encoder"]["metadata"].size


def count_by_hand(d: int, heads: int, depth: int, k: int) -> int:
    """Parameters of the published architecture with its S2EF heads, layer by layer (docs/formulas/atomformer.md)."""
    block = 2 * d + 4 * d // heads + d * 7 * d + 5 * d * 2 * d + 2 * k + k + 1
    embeddings = 123 * d + 4 * d + 17 * d + d + 2 * 124**2 + 2 * k
    return depth * block + embeddings + (2 * d + d) + (2 * d + 3 * d + 3)


@pytest.mark.parametrize(
    ("size", "dim", "heads", "depth", "k"),
    [
        ("tiny", 128, 4, 4, 128),
        ("mini", 256, 8, 8, 256),
        ("small", 512, 16, 8, 128),
        ("base", 768, 32, 12, 128),
        ("large", 1024, 32, 24, 128),
    ],
)
def test_published_sizes_have_their_parameters(size, dim, heads, depth, k):
    assert count_floats(model_config(size)) == count_by_hand(dim, heads, depth, k)


def test_base_is_the_default_and_has_120_million_parameters():
    assert AtomformerConfig() == model_config("base")
    assert count_floats(AtomformerConfig()) == pytest.approx(120.5e6, rel=1e-3)


def test_sizes_can_be_changed():
    assert model_config("tiny", depth=1) == AtomformerConfig(dim=128, num_heads=4, depth=1, k=128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"k": -1}, "k must be at least 1; got -1"),
        ({"num_labels": 0}, "num_labels must be at least 1; got 0"),
        ({"dim": 30, "num_heads": 4}, "dim must be a multiple of num_heads; got dim=30, num_heads=4"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),
        ({"dropout": -0.1}, "dropout must lie in"),
        ({"cutoff": 0.0}, "cutoff must be positive; got 0.0"),
        ({"cutoff": float("nan")}, "cutoff must be positive; got nan"),
        ({"heads": ("energy",)}, r"heads must be among formation_energy, .*; got \['energy'\]"),
        ({"heads": ("forces", "forces")}, "heads must differ"),
        ({"heads": ("forces",), "conservative": True}, "conservative forces need one of the heads formation_energy"),
        ({"num_labels": 2, "label_names": ("a",)}, "label_names must have num_labels = 2 entries, or none"),
        ({"num_labels": 2, "label_scale": (1.0,)}, "label_scale must have num_labels = 2 entries, or none"),
        ({"label_scale": (-1.0,)}, "label_scale must be positive"),
    ],
)
def test_impossible_configs_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        AtomformerConfig(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 0.0}, "scale must be positive; got 0.0"),
        ({"references": ((1, -13.6), (1, -13.7))}, r"each atomic number \(1 to 118\) once; got \[1, 1\]"),
        ({"references": ((0, -13.6),)}, "references must name each atomic number"),
        ({"references": ((119, -13.6),)}, "references must name each atomic number"),
    ],
)
def test_impossible_energy_scales_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EnergyScale(**changes)


def test_unknown_sizes_are_refused():
    with pytest.raises(ValueError, match=r"size must be one of tiny, mini, small, base, large; got 'huge'"):
        model_config("huge")


def test_the_total_energy_is_differentiated_where_both_are_there():
    assert AtomformerConfig(heads=HEADS).energy_head == "total_energy"
    assert AtomformerConfig(heads=("forces", "formation_energy")).energy_head == "formation_energy"
    assert AtomformerConfig(heads=("forces",)).energy_head is None
