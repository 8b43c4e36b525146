"""The network of CrystalFormer: a causal transformer over the tokens W, A, X, Y, Z of each site (arXiv 2403.15734).

Everything is written for one crystal of n sites; callers vmap. The pieces (token embeddings, block parts, heads) are
separate functions because the sampler runs them one token at a time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from crystalformer.config import TransformerConfig
from crystalformer.network.parameters import TOKENS, Leaves, Network, Params, as_network, init_params
from crystalformer.symmetry.wyckoff import symmetry_tables

# Log-probability of a forbidden class; finite, so that 0 * log p is 0 and gradients are finite.
FORBIDDEN = -1e10
ROTARY_BASE = 10_000.0

Apply = Callable[..., Float[Array, "rows columns"]]


class Transformer(NamedTuple):
    """A published parameter tree, and the network as a function of parameters and one crystal."""

    params: Params
    transformer: Apply


def make_transformer(key: PRNGKeyArray, **sizes: Any) -> Transformer:
    """Initial parameters and the network, with the call of the model cards; `sizes` are fields of `TransformerConfig`.

    `transformer(params, key, G, XYZ, A, W, M, is_train)` maps one crystal to the raw outputs `h` (5n+1, output_size).

    Raises:
        ValueError: a size is unknown or out of range.
    """
    config = TransformerConfig(**sizes)
    return Transformer(init_params(key, config), make_apply(config))


def make_apply(config: TransformerConfig) -> Apply:
    """The network as a function of its parameters; `is_train` turns dropout on."""

    def transformer(params, key, G, XYZ, A, W, M, is_train):
        return forward(as_network(params, config), key if is_train else None, G, XYZ, A, W, M, config)

    return transformer


def forward(
    network: Network,
    key: PRNGKeyArray | None,
    G: Int[Array, ""],
    XYZ: Float[Array, "n 3"],
    A: Int[Array, " n"],
    W: Int[Array, " n"],
    M: Int[Array, " n"],
    config: TransformerConfig,
) -> Float[Array, "rows columns"]:
    """Network output: row 5i is the letter, 5i+1 the element and lattice, 5i+2, 3, 4 the coordinates of site i.

    The layout is given in docs/formulas/crystalformer.md, section 2. Categorical outputs are normalised
    log-probabilities, widths and concentrations are positive, unused columns are 0.
    `key=None` means no dropout.
    """
    x = embed_tokens(network, G, XYZ, A, W, M, config)
    x = run_layers(network, x, key, config)
    raw = output_layer(network, x).reshape(-1, len(TOKENS), config.output_size)
    letters = next_letter_log_probs(raw[:, 4], G, W, config)
    rows = jnp.stack(
        [
            jnp.concatenate([element_log_probs(raw[:, 0], W, config), lattice_columns(raw[:, 0], config)], axis=-1),
            *(_widen(coordinate_columns(raw[:, axis], config), config.output_size) for axis in (1, 2, 3)),
            _widen(letters, config.output_size),
        ],
        axis=1,
    )
    first = _widen(first_letter_log_probs(network, G, config), config.output_size)
    return jnp.concatenate([first[None], rows.reshape(-1, config.output_size)])


def _widen(columns: Float[Array, "*rows c"], width: int) -> Float[Array, "*rows width"]:
    padding = [(0, 0)] * (columns.ndim - 1) + [(0, width - columns.shape[-1])]
    return jnp.pad(columns, padding)


def embed_tokens(network: Network, G, XYZ, A, W, M, config: TransformerConfig) -> Float[Array, "t d"]:
    """Embeddings of the five tokens W, A, X, Y, Z of every site, in this order."""
    tokens = [
        embed_letter(network, G, W, M),
        embed_element(network, G, A),
        *(embed_coordinate(network, axis, G, XYZ[:, i], config) for i, axis in enumerate("XYZ")),
    ]
    x = jnp.stack(tokens, axis=1).reshape(-1, config.model_size)
    if config.generation == "absolute":
        x = x + network.tables["positional_embeddings"][: x.shape[0]]
    return x


def embed_letter(network: Network, G, W: Int[Array, "*n"], M: Int[Array, "*n"]) -> Float[Array, "*n d"]:
    """Embedding of token W, from space group, letter and multiplicity (as a number)."""
    letter = network.tables["w_embeddings"][W]
    return _project(network, "W", G, jnp.concatenate([letter, M[..., None].astype(letter.dtype)], axis=-1))


def embed_element(network: Network, G, A: Int[Array, "*n"]) -> Float[Array, "*n d"]:
    """Embedding of token A, from space group and element."""
    return _project(network, "A", G, network.tables["a_embeddings"][A])


def embed_coordinate(network: Network, axis: str, G, x: Float[Array, "*n"], config) -> Float[Array, "*n d"]:
    """Embedding of X, Y or Z, from space group and Fourier features sin 2 pi k x, cos 2 pi k x (k = 1..Nf)."""
    angles = jnp.multiply.outer(2 * np.pi * x, np.arange(1, config.Nf + 1, dtype=x.dtype))
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return _project(network, axis, G, waves.reshape(*x.shape, 2 * config.Nf))


def _project(network: Network, token: str, G, features: Float[Array, "*n f"]) -> Float[Array, "*n d"]:
    group = network.tables["g_embeddings"][G - 1]
    group = jnp.broadcast_to(group, (*features.shape[:-1], group.shape[-1]))
    return linear(network.tokens[token], jnp.concatenate([group, features], axis=-1))


def linear(p: Leaves, x: Float[Array, "*s d"]) -> Float[Array, "*s e"]:
    """x w + b, without implicit rank promotion, which the tests forbid."""
    y = x @ p["w"]
    return y + jnp.broadcast_to(p["b"], y.shape)


def layer_norm(p: Leaves, x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """Normalises the last axis (eps 1e-5), with statistics in float32 or float64."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    scale, offset = (jnp.broadcast_to(p[name], x.shape) for name in ("scale", "offset"))
    return normed.astype(x.dtype) * scale + offset


def mlp(p: dict[str, Leaves], x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
    """Two linear layers with a tanh-approximated GELU between them."""
    return linear(p["mlp_out"], jax.nn.gelu(linear(p["mlp_in"], x), approximate=True))


def rotate(x: Float[Array, "*s d"], position: Int[Array, "*s"]) -> Float[Array, "*s d"]:
    """Rotary position encoding (Su et al., arXiv:2104.09864); channel i is paired with channel i + d/2."""
    half = x.shape[-1] // 2
    frequency = ROTARY_BASE ** (-np.arange(half) / half)
    angle = jnp.multiply.outer(position, frequency).astype(jnp.promote_types(x.dtype, jnp.float32))
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def split_heads(x: Float[Array, "*s w"], config: TransformerConfig) -> Float[Array, "*s h k"]:
    """(…, heads * key_size) -> (…, heads, key_size)."""
    return x.reshape(*x.shape[:-1], config.num_heads, config.key_size)


def attention(
    p: dict[str, Leaves], x: Float[Array, "t d"], key: PRNGKeyArray | None, config: TransformerConfig
) -> Float[Array, "t d"]:
    """Causal multi-head self-attention with float32 softmax and dropout on its weights."""
    query, keys, value = (split_heads(linear(p[role], x), config) for role in ("query", "key", "value"))
    if config.generation == "rotary":
        position = jnp.broadcast_to(jnp.arange(x.shape[0])[:, None], query.shape[:-1])
        query, keys = rotate(query, position), rotate(keys, position)
    logits = jnp.einsum("qhk,shk->hqs", query * config.key_size**-0.5, keys)
    logits = logits.astype(jnp.promote_types(x.dtype, jnp.float32))
    causal = jnp.broadcast_to(np.tri(x.shape[0], dtype=bool), logits.shape)
    weights = jax.nn.softmax(jnp.where(causal, logits, FORBIDDEN), axis=-1).astype(x.dtype)
    weights = _dropout(key, config.attn_rate, weights)
    mixed = jnp.einsum("hqs,shk->qhk", weights, value)
    return linear(p["attention_out"], mixed.reshape(x.shape[0], -1))


def _dropout(key: PRNGKeyArray | None, rate: float, x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Zeroes entries with probability `rate` and rescales the others; the identity if `key` is None.

    Two entries share one 32-bit random word, which halves the cost of random numbers: a sixth of a step on CPUs.
    """
    if key is None or rate == 0:
        return x
    words = jax.random.bits(key, ((x.size + 1) // 2,), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).ravel()[: x.size]
    return jnp.where(halves.reshape(x.shape) >= round(rate * 2**16), x / (1 - rate), 0)


def block(p, x: Float[Array, "t d"], key: PRNGKeyArray | None, config: TransformerConfig) -> Float[Array, "t d"]:
    """One pre-norm layer: attention, then MLP, each added to its input."""
    weights_key, attention_key, mlp_key = (None,) * 3 if key is None else jax.random.split(key, 3)
    mixed = attention(p, layer_norm(p["attention_norm"], x), weights_key, config)
    x = x + _dropout(attention_key, config.dropout_rate, mixed)
    return x + _dropout(mlp_key, config.dropout_rate, mlp(p, layer_norm(p["mlp_norm"], x)))


def run_layers(network: Network, x: Float[Array, "t d"], key: PRNGKeyArray | None, config) -> Float[Array, "t d"]:
    """Applies all blocks (a scan) in the compute dtype; the result has the dtype of `x`."""
    layers, dtype = network.layers, x.dtype
    if config.compute_dtype == "bfloat16":
        layers, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (layers, x))
    keys = None if key is None else jax.random.split(key, config.num_layers)
    apply = functools.partial(block, config=config)
    if config.remat:
        apply = jax.checkpoint(apply)
    x, _ = jax.lax.scan(lambda x, layer: (apply(layer[0], x, layer[1]), None), x, (layers, keys))
    return x.astype(dtype)


def output_layer(network: Network, x: Float[Array, "*s d"]) -> Float[Array, "*s columns"]:
    """Final normalisation and projection."""
    return linear(network.output, layer_norm(network.final_norm, x))


def masked_log_softmax(logits: Float[Array, "*s c"], allowed: Bool[Array, "*s c"]) -> Float[Array, "*s c"]:
    """Log-probabilities over the allowed classes; FORBIDDEN elsewhere."""
    log_probs = jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf), axis=-1)
    return jnp.where(allowed, log_probs, FORBIDDEN)


def first_letter_log_probs(network: Network, G: Int[Array, ""], config) -> Float[Array, " letters"]:
    """Log-probabilities of the first letter, one of the letters of G (docs/formulas/crystalformer.md, eq. 5)."""
    if config.h0_size:
        first, second = network.first_letter
        hidden = jax.nn.gelu(linear(first, network.tables["g_embeddings"][G - 1]), approximate=True)
        logits = linear(second, hidden)
    else:
        logits = network.tables["w_params"][G - 1]
    letter = np.arange(config.wyck_types)
    return masked_log_softmax(logits, (letter > 0) & (letter <= jnp.asarray(symmetry_tables().num_letters)[G - 1]))


def next_letter_log_probs(raw: Float[Array, "*n c"], G, W: Int[Array, "*n"], config) -> Float[Array, "*n letters"]:
    """Log-probabilities of the letter after `W` (docs/formulas/crystalformer.md, eq. 6)."""
    tables = symmetry_tables()
    logits = raw[..., : config.wyck_types]
    letter = jnp.broadcast_to(np.arange(config.wyck_types), logits.shape)
    previous = W[..., None]
    strict = jnp.asarray(tables.has_no_freedom)[G - 1, W][..., None]
    upwards = (letter > previous) | ((letter == previous) & ~strict)
    known = letter <= jnp.asarray(tables.num_letters)[G - 1]
    return masked_log_softmax(logits, (letter == 0) | ((previous > 0) & upwards & known))


def element_log_probs(raw: Float[Array, "*n c"], W: Int[Array, "*n"], config) -> Float[Array, "*n elements"]:
    """Log-probabilities of the element of a site with letter `W`; padding if and only if the letter is (eq. 7)."""
    logits = raw[..., : config.atom_types]
    is_padding = jnp.broadcast_to(np.arange(config.atom_types) == 0, logits.shape)
    return masked_log_softmax(logits, is_padding == (W == 0)[..., None])


class Lattice(NamedTuple):
    """Mixture of the six scaled lattice parameters: log-weights, means and widths of each component."""

    log_weight: Float[Array, "*n k"]
    mean: Float[Array, "*n k 6"]
    width: Float[Array, "*n k 6"]


def lattice_columns(raw: Float[Array, "*n c"], config: TransformerConfig) -> Float[Array, "*n columns"]:
    """Lattice columns of an element row: normalised log-weights, means, positive widths, zeros."""
    start, k = config.atom_types, config.Kl
    log_weight = jax.nn.log_softmax(raw[..., start : start + k], axis=-1)
    mean = raw[..., start + k : start + 7 * k]
    width = jax.nn.softplus(raw[..., start + 7 * k : start + 13 * k]) + config.sigmamin
    return _widen(jnp.concatenate([log_weight, mean, width], axis=-1), config.output_size - start)


def read_lattice(row: Float[Array, "*n c"], config: TransformerConfig) -> Lattice:
    """The lattice mixture in an element row of `forward`."""
    start, k = config.atom_types, config.Kl
    shape = (*row.shape[:-1], k, 6)
    mean = row[..., start + k : start + 7 * k].reshape(shape)
    width = row[..., start + 7 * k : start + 13 * k].reshape(shape)
    return Lattice(row[..., start : start + k], mean, width)


class Coordinate(NamedTuple):
    """Mixture of von Mises densities of one coordinate's angle 2 pi (x - 1/2)."""

    log_weight: Float[Array, "*n k"]
    location: Float[Array, "*n k"]
    concentration: Float[Array, "*n k"]


def coordinate_columns(raw: Float[Array, "*n c"], config: TransformerConfig) -> Float[Array, "*n columns"]:
    """Columns of a coordinate row: normalised log-weights, locations (rad), positive concentrations."""
    log_weight, location, concentration = jnp.split(raw[..., : 3 * config.Kx], 3, axis=-1)
    return jnp.concatenate([jax.nn.log_softmax(log_weight, axis=-1), location, jax.nn.softplus(concentration)], axis=-1)


def read_coordinate(row: Float[Array, "*n c"], config: TransformerConfig) -> Coordinate:
    """The von Mises mixture in a coordinate row of `forward`."""
    return Coordinate(*jnp.split(row[..., : 3 * config.Kx], 3, axis=-1))
