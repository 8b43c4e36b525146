"""The published parameter tree: names, shapes, initial values, and its form with stacked layers.

The tree is that of the original Haiku network: module name -> {leaf name -> array}, one module per part of a layer
(docs/formulas/crystalformer.md, section 6). Inside our functions the layers are stacked along a leading axis, so that
one compiled block is scanned over them.
"""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from crystalformer.config import TransformerConfig

NUM_SPACEGROUPS = 230
TOKENS = ("W", "A", "X", "Y", "Z")
INITIAL_WIDTH = 0.01  # standard deviation of the initial weights and tables
CONSTANT_LEAVES = {"b": 0.0, "offset": 0.0, "scale": 1.0}

Leaves = Mapping[str, np.ndarray | Array]  # leaves of one module, on the host or on a device
Params = Mapping[str, Leaves]  # the published tree: leaves by module name
Shapes = dict[str, dict[str, tuple[int, ...]]]


class Network(NamedTuple):
    """A parameter tree by role; the leaves of `layers` have a leading axis of num_layers."""

    tables: Leaves
    first_letter: list[Leaves]
    tokens: dict[str, Leaves]
    layers: dict[str, Leaves]
    final_norm: Leaves
    output: Leaves


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name


def first_letter_names(config: TransformerConfig) -> tuple[str, ...]:
    """Module names of the first letter's MLP; empty if a table is used instead."""
    return ("linear", "linear_1") if config.h0_size else ()


def token_names(config: TransformerConfig) -> dict[str, str]:
    """Module name of each token's projection."""
    start = len(first_letter_names(config))
    return {token: _numbered("linear", start + i) for i, token in enumerate(TOKENS)}


def layer_names(config: TransformerConfig, layer: int) -> dict[str, str]:
    """Module names of one layer, by role."""
    attention = _numbered("multi_head_attention", layer)
    first_linear = len(first_letter_names(config)) + len(TOKENS) + 2 * layer
    return {
        "attention_norm": _numbered("layer_norm", 2 * layer),
        "query": f"{attention}/query",
        "key": f"{attention}/key",
        "value": f"{attention}/value",
        "attention_out": f"{attention}/linear",
        "mlp_norm": _numbered("layer_norm", 2 * layer + 1),
        "mlp_in": _numbered("linear", first_linear),
        "mlp_out": _numbered("linear", first_linear + 1),
    }


def final_names(config: TransformerConfig) -> tuple[str, str]:
    """Module names of the final normalisation and of the output layer."""
    linear = len(first_letter_names(config)) + len(TOKENS) + 2 * config.num_layers
    return _numbered("layer_norm", 2 * config.num_layers), _numbered("linear", linear)


def parameter_shapes(config: TransformerConfig) -> Shapes:
    """Shape of every leaf of the published tree."""
    c = config
    d, e, width = c.model_size, c.embed_size, c.num_heads * c.key_size

    def linear(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {"w": (inputs, outputs), "b": (outputs,)}

    norm = {"scale": (d,), "offset": (d,)}
    tables = {
        "g_embeddings": (NUM_SPACEGROUPS, e),
        "w_embeddings": (c.wyck_types, e),
        "a_embeddings": (c.atom_types, e),
    }
    if c.generation == "absolute":
        tables["positional_embeddings"] = (5 * c.n_max, d)
    if not c.h0_size:
        tables["w_params"] = (NUM_SPACEGROUPS, c.wyck_types)
    shapes: Shapes = {"~": tables}
    if c.h0_size:
        first, second = first_letter_names(c)
        shapes |= {first: linear(e, c.h0_size), second: linear(c.h0_size, c.wyck_types)}
    inputs = {"W": 2 * e + 1, "A": 2 * e} | dict.fromkeys("XYZ", e + 2 * c.Nf)
    shapes |= {name: linear(inputs[token], d) for token, name in token_names(c).items()}
    block = {
        "attention_norm": norm,
        "query": linear(d, width),
        "key": linear(d, width),
        "value": linear(d, width),
        "attention_out": linear(width, d),
        "mlp_norm": norm,
        "mlp_in": linear(d, c.widening_factor * d),
        "mlp_out": linear(c.widening_factor * d, d),
    }
    for layer in range(c.num_layers):
        shapes |= {name: block[role] for role, name in layer_names(c, layer).items()}
    final_norm, output = final_names(c)
    return shapes | {final_norm: norm, output: linear(d, c.output_size)}


def init_params(key: PRNGKeyArray, config: TransformerConfig) -> Params:
    """Initial float32 parameters: weights and tables from N(0, 0.01^2) truncated at 2 sigma, biases 0, scales 1."""
    shapes = parameter_shapes(config)
    # Slices of one sample: sampling each shape separately takes ten times as long to compile.
    drawn = [shape for leaves in shapes.values() for leaf, shape in leaves.items() if leaf not in CONSTANT_LEAVES]
    sizes = [math.prod(shape) for shape in drawn]
    values = INITIAL_WIDTH * jax.random.truncated_normal(key, -2, 2, (sum(sizes),))
    starts = itertools.accumulate(sizes, initial=0)
    pieces = iter([values[start : start + size] for start, size in zip(starts, sizes, strict=False)])

    def initial(leaf: str, shape: tuple[int, ...]) -> Array:
        constant = CONSTANT_LEAVES.get(leaf)
        return next(pieces).reshape(shape) if constant is None else jnp.full(shape, constant)

    return {module: {leaf: initial(leaf, shape) for leaf, shape in leaves.items()} for module, leaves in shapes.items()}


def as_network(params: Params, config: TransformerConfig) -> Network:
    """Converts the published tree to a `Network`; differentiable, so that gradients have the published names."""
    per_layer = [layer_names(config, layer) for layer in range(config.num_layers)]
    layers = {
        role: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[names[role]] for names in per_layer))
        for role in per_layer[0]
    }
    final_norm, output = final_names(config)
    return Network(
        # A NumPy table, as checkpoints have, cannot be indexed by a traced letter.
        tables=jax.tree.map(jnp.asarray, params["~"]),
        first_letter=[params[name] for name in first_letter_names(config)],
        tokens={token: params[name] for token, name in token_names(config).items()},
        layers=layers,
        final_norm=params[final_norm],
        output=params[output],
    )
