"""A plain implementation of CrystalFormer, the baseline for our network, training step and sampler.

Haiku modules, a Python loop over the layers, every crystal at its full n_max slots, and a sampler that runs the whole
network five times per site. It reads the published parameter tree, and the heads, draws and keys are those of
`crystalformer`. Tests check that numbers and crystals are equal; only the way of computing differs.
"""

from collections.abc import Callable

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from crystalformer.config import TransformerConfig
from crystalformer.data.crystals import Crystals
from crystalformer.loss import lattice_log_prob
from crystalformer.network import distributions, transformer
from crystalformer.sampling.draws import Temperature, draw_lattice, project_coordinate
from crystalformer.symmetry.wyckoff import symmetry_tables


class MultiHeadAttention(hk.Module):
    """Causal self-attention; rotary positions unless the config has absolute ones."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config

    def __call__(self, x, is_train: bool):
        c, t = self.config, x.shape[0]
        query, key, value = (
            hk.Linear(c.num_heads * c.key_size, name=name)(x).reshape(t, c.num_heads, c.key_size)
            for name in ("query", "key", "value")
        )
        if c.generation == "rotary":
            query, key = rotate(query), rotate(key)
        logits = jnp.einsum("thk,Thk->htT", query, key) / np.sqrt(c.key_size)
        causal = jnp.broadcast_to(np.tri(t, dtype=bool), logits.shape)
        weights = dropout(jax.nn.softmax(jnp.where(causal, logits, -1e30)), c.attn_rate, is_train)
        mixed = jnp.einsum("htT,Thk->thk", weights, value).reshape(t, -1)
        return hk.Linear(c.model_size)(mixed)


def rotate(x):
    """Rotary embedding: rotates pairs of channels of each head by angles that grow with the position."""
    t, h, k = x.shape
    angle = np.arange(t)[:, None] / 10_000 ** (2 * np.arange(k // 2) / k)
    angle = np.broadcast_to(np.concatenate([angle, angle], -1)[:, None], (t, h, k)).astype(np.float32)
    first, second = jnp.split(x, 2, axis=-1)
    return x * np.cos(angle) + jnp.concatenate([-second, first], -1) * np.sin(angle)


def dropout(x, rate: float, is_train: bool):
    """Haiku's dropout, in training."""
    return hk.dropout(hk.next_rng_key(), rate, x) if is_train else x


def layer_norm(x):
    """Normalises the last axis."""
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(x)


def make_plain_network(config: TransformerConfig) -> Callable:
    """`network(params, key, crystal, is_train) -> h` for one crystal, over all its slots."""
    c = config

    def table(name: str, *shape: int):
        return hk.get_parameter(name, shape, init=jnp.zeros)

    def body(crystal: Crystals, is_train: bool):
        G, _, XYZ, A, W = crystal
        n = W.shape[0]
        M = jnp.asarray(symmetry_tables().multiplicity)[G - 1, W].astype(jnp.float32)
        g = table("g_embeddings", 230, c.embed_size)[G - 1]
        if c.h0_size:
            hidden = jax.nn.gelu(hk.Linear(c.h0_size)(g))
            first = hk.Linear(c.wyck_types)(hidden)
        else:
            first = table("w_params", 230, c.wyck_types)[G - 1]
        letters = table("w_embeddings", c.wyck_types, c.embed_size)[W]
        elements = table("a_embeddings", c.atom_types, c.embed_size)[A]
        angles = jnp.einsum("nc,f->cnf", 2 * np.pi * XYZ, np.arange(1.0, c.Nf + 1))
        waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(3, n, 2 * c.Nf)
        features = [jnp.concatenate([letters, M[:, None]], -1), elements, *waves]
        group = jnp.broadcast_to(g, (n, c.embed_size))
        tokens = [hk.Linear(c.model_size)(jnp.concatenate([group, x], -1)) for x in features]
        x = jnp.stack(tokens, 1).reshape(5 * n, c.model_size)
        if c.generation == "absolute":
            x = x + table("positional_embeddings", 5 * c.n_max, c.model_size)[: 5 * n]
        for _ in range(c.num_layers):
            x = x + dropout(MultiHeadAttention(c)(layer_norm(x), is_train), c.dropout_rate, is_train)
            hidden = jax.nn.gelu(hk.Linear(c.widening_factor * c.model_size)(layer_norm(x)))
            x = x + dropout(hk.Linear(c.model_size)(hidden), c.dropout_rate, is_train)
        raw = hk.Linear(c.output_size)(layer_norm(x)).reshape(n, 5, c.output_size)
        return heads(first, raw, G, W)

    def heads(first, raw, G, W):
        letter = jnp.arange(c.wyck_types)
        known = (letter > 0) & (letter <= jnp.asarray(symmetry_tables().num_letters)[G - 1])
        elements, lattice = transformer.element_log_probs(raw[:, 0], W, c), transformer.lattice_columns(raw[:, 0], c)
        rows = [
            jnp.concatenate([elements, lattice], -1),
            *(transformer.coordinate_columns(raw[:, axis], c) for axis in (1, 2, 3)),
            transformer.next_letter_log_probs(raw[:, 4], G, W, c),
        ]
        rows = [jnp.pad(row, [(0, 0), (0, c.output_size - row.shape[1])]) for row in rows]
        first = jnp.pad(transformer.masked_log_softmax(first, known), (0, c.output_size - c.wyck_types))
        return jnp.concatenate([first[None], jnp.stack(rows, 1).reshape(-1, c.output_size)])

    return hk.transform(body).apply


def make_plain_loss(config: TransformerConfig) -> Callable:
    """`example_loss(params, key, crystal) -> (loss, {})`, with dropout where there is a key."""
    network = make_plain_network(config)

    def example_loss(params, key, crystal: Crystals):
        G, L, XYZ, A, W = crystal
        h = network(params, key, crystal, key is not None)
        slots = np.arange(config.n_max)
        mixture = transformer.read_coordinate(h[5 * slots[:, None] + np.array([2, 3, 4])], config)
        angle = jnp.broadcast_to(2 * np.pi * (XYZ - 0.5)[..., None], mixture.location.shape)
        density = distributions.von_mises_log_prob(angle, mixture.location, mixture.concentration)
        density = distributions.mixture_log_prob(mixture.log_weight, density)
        free = (W > 0)[:, None] & jnp.asarray(symmetry_tables().free_coordinate)[G - 1, W]
        lattice = lattice_log_prob(h[5 * jnp.sum(W > 0) + 1], G, L, config)
        discrete = jnp.sum(h[5 * slots, W]) + jnp.sum(h[5 * slots + 1, A])
        return -(discrete + jnp.sum(jnp.where(free, density, 0)) + lattice), {}

    return example_loss


def make_plain_sampler(config: TransformerConfig) -> Callable:
    """The compiled `sampler(params, keys, G) -> Crystals`: five full passes for each of the n_max sites."""
    network = make_plain_network(config)
    temperature = Temperature(*jnp.ones(3))

    def draw_letter(key, row, crystal: Crystals, site, _):
        letter = jax.random.categorical(key, row[: config.wyck_types])
        return crystal._replace(W=crystal.W.at[site].set(jnp.where(site == config.n_max - 1, 0, letter)))

    def draw_element(key, row, crystal: Crystals, site, _):
        element_key, lattice_key = jax.random.split(key)
        element = jax.random.categorical(element_key, row[: config.atom_types])
        L = draw_lattice(lattice_key, crystal.G, transformer.read_lattice(row, config), temperature)
        ends = (crystal.W[site] == 0) & (crystal.W[site - 1] > 0)
        return crystal._replace(A=crystal.A.at[site].set(element), L=jnp.where(ends, L, crystal.L))

    def draw_coordinate(key, row, crystal: Crystals, site, token):
        component_key, angle_key = jax.random.split(key)
        mixture = transformer.read_coordinate(row, config)
        k = jax.random.categorical(component_key, mixture.log_weight)
        angle = distributions.sample_von_mises(angle_key, mixture.location[k], mixture.concentration[k])
        axis, W = jnp.asarray(token - 2), crystal.W[site]
        point = crystal.XYZ[site].at[axis].set(angle / (2 * np.pi) + 0.5)
        value = jnp.where(W > 0, project_coordinate(crystal.G, W, point, axis), 0)
        return crystal._replace(XYZ=crystal.XYZ.at[site, axis].set(value))

    draws = (draw_letter, draw_element, *[draw_coordinate] * 3)

    def sample_one(params, key, G) -> Crystals:
        def add_site(site, crystal: Crystals) -> Crystals:
            for token, draw in enumerate(draws):
                row = network(params, None, crystal, False)[5 * site + token]
                crystal = draw(jax.random.fold_in(key, 5 * site + token), row, crystal, site, token)
            return crystal

        n = config.n_max
        empty = Crystals(G, jnp.zeros(6), jnp.zeros((n, 3)), jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.int32))
        return jax.lax.fori_loop(0, n, add_site, empty)

    return jax.jit(jax.vmap(sample_one, in_axes=(None, 0, 0)))
