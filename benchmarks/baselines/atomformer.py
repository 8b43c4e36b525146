"""A plain implementation of AtomFormer in JAX, the baseline for our network and training step.

A straightforward port: a Python loop over the blocks, each of which normalises the whole (n, n, k) pair embedding again
and projects to both halves of its output. It reads our parameter tree, so tests check that its results are equal; only
the way of computing differs.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from atomformer.config import AtomformerConfig
from atomformer.data.structure import Structure
from atomformer.data.vocabulary import GRAPH

SYSTEM_TYPE = 3


class Predictions(NamedTuple):
    """Outputs of the heads for a batch; None where the model has no such head."""

    hidden: Float[Array, "b rows d"]  # row 0 is the system token
    formation_energy: Float[Array, " b"] | None  # eV
    forces: Float[Array, "b n 3"] | None  # eV/Å
    labels: Float[Array, "b labels"] | None


def forward(params: Mapping[str, Any], config: AtomformerConfig, batch: Structure) -> Predictions:
    """The network over a batch, without dropout, periodicity and compute dtypes."""
    hidden = jax.vmap(lambda structure: encode(params["encoder"], config, structure))(batch)
    system, atoms = hidden[:, 0], hidden[:, 1:]
    energy, forces, labels = (params["heads"].get(name) for name in ("formation_energy", "forces", "classification"))
    return Predictions(
        hidden,
        None if energy is None else (layer_norm(energy["norm"], system) @ energy["w"])[:, 0],
        None if forces is None else linear(forces, layer_norm(forces["norm"], atoms)),
        None if labels is None else layer_norm(labels["norm"], system) @ labels["w"],
    )


def s2ef_loss(
    params: Mapping[str, Any],
    config: AtomformerConfig,
    batch: Structure,
    formation_energy: Float[Array, " b"],
    has_formation_energy: Bool[Array, " b"],
    forces: Float[Array, "b n 3"],
) -> Float[Array, ""]:
    """L1 error of the known energies plus that of the force components of real atoms."""
    found = forward(params, config, batch)
    assert found.formation_energy is not None  # this loss needs a model with both heads
    assert found.forces is not None
    real = jnp.broadcast_to(batch.mask[..., None], forces.shape)
    energy_loss = jnp.mean(jnp.abs(found.formation_energy - formation_energy), where=has_formation_energy)
    return energy_loss + jnp.mean(jnp.abs(found.forces - forces), where=real)


def encode(encoder: Mapping[str, Any], config: AtomformerConfig, structure: Structure) -> Float[Array, "rows d"]:
    """One structure's states; the system token comes first, at the mean of the real atoms."""
    mean = jnp.mean(structure.positions, axis=0, keepdims=True, where=structure.mask[:, None])
    positions = jnp.concatenate([mean, structure.positions])
    tokens = jnp.concatenate([jnp.array([GRAPH]), structure.tokens])
    padding = jnp.where(jnp.concatenate([jnp.array([True]), structure.mask]), 0.0, -1e9)
    x = encoder["tokens"][tokens] + linear(encoder["features"], jax.lax.stop_gradient(encoder["metadata"])[tokens])
    if structure.token_types is not None:
        x = x + encoder["token_types"][jnp.concatenate([jnp.array([SYSTEM_TYPE]), structure.token_types])]
    embedding = pair_embedding(encoder["pair"], config, tokens, positions)
    for i in range(config.depth):
        leaves = jax.tree.map(lambda stacked, i=i: stacked[i], encoder["blocks"])
        x = block(leaves, config, x, embedding, padding)
    return x


def pair_embedding(pair, config: AtomformerConfig, tokens, positions) -> Float[Array, "rows rows k"]:
    """k normal densities at the distances (Å), which are first scaled and shifted by the pair of tokens."""
    square = jnp.sum((positions[:, None] - positions[None]) ** 2, axis=-1)
    apart = square > 0
    distances = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)  # finite slope at distance 0
    pairs = tokens[:, None] * config.vocab_size + tokens[None]
    u = pair["mul"][pairs] * distances + pair["bias"][pairs]
    mean, std = pair["means"][None, None], jnp.abs(pair["stds"])[None, None] + 1e-5
    return jnp.exp(-0.5 * ((u[..., None] - mean) / std) ** 2) / (np.sqrt(2 * np.pi) * std)


def block(leaves, config: AtomformerConfig, x, embedding, padding) -> Float[Array, "rows d"]:
    """Attention and MLP in parallel."""
    rows, d = x.shape
    hidden = config.mlp_ratio * d
    projected = layer_norm(leaves["in_norm"], x) @ leaves["in_proj"]
    mlp, qkv = projected[:, :hidden], projected[:, hidden:]
    query, key, value = (part.reshape(rows, config.num_heads, -1) for part in jnp.split(qkv, 3, axis=-1))
    query, key = layer_norm(leaves["q_norm"], query), layer_norm(leaves["k_norm"], key)
    bias = layer_norm(leaves["pair_norm"], embedding) @ leaves["pair_proj"]["w"] + leaves["pair_proj"]["b"]
    logits = jnp.einsum("qhc,khc->hqk", query, key) / config.head_dim**0.5 + (bias + padding[None])[None]
    attended = jnp.einsum("hqk,khc->qhc", jax.nn.softmax(logits), value).reshape(rows, d)
    update = jnp.concatenate([jax.nn.gelu(mlp, approximate=False), attended], axis=-1) @ leaves["out_proj"]
    return x + update[:, :d] + update[:, d:]


def layer_norm(leaves: Mapping[str, Array], x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """Normalises the last axis."""
    normed = jax.nn.standardize(x, axis=-1, epsilon=1e-5)
    scale, offset = (jnp.broadcast_to(leaves[name], x.shape) for name in ("scale", "offset"))
    return normed * scale + offset


def linear(leaves: Mapping[str, Array], x: Float[Array, "*s d"]) -> Float[Array, "*s e"]:
    """x w + b."""
    y = x @ leaves["w"]
    return y + jnp.broadcast_to(leaves["b"], y.shape)
