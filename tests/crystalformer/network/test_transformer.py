"""The network against the original's numbers, against the same network in Haiku's modules, and its laws."""

import dataclasses
import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import crystalformer
from crystalformer.data.crystals import Crystals, iterate_crystals
from crystalformer.network.parameters import as_network, parameter_shapes
from crystalformer.network.transformer import (
    FORBIDDEN,
    _dropout,
    element_log_probs,
    first_letter_log_probs,
    make_apply,
    next_letter_log_probs,
    output_layer,
    run_layers,
)
from crystalformer.symmetry.wyckoff import symmetry_tables


def inputs(crystals: Crystals) -> tuple:
    """The arguments of a transformer from G to M."""
    M = symmetry_tables().multiplicity[np.asarray(crystals.G)[..., None] - 1, crystals.W]
    return crystals.G, crystals.XYZ, crystals.A, crystals.W, M


def one(crystals: Crystals, index: int = 0) -> Crystals:
    return jax.tree.map(lambda field: field[index], crystals)


@pytest.fixture(scope="module", params=[{}, {"generation": "absolute"}, {"h0_size": 0}], ids=str)
def config(request, tiny_config):
    return dataclasses.replace(tiny_config, **request.param)


@pytest.fixture(scope="module")
def outputs(config, lively):
    """`h` of eight crystals of five slots, without dropout."""
    batched = jax.jit(jax.vmap(make_apply(config), in_axes=(None, None, 0, 0, 0, 0, 0, None)), static_argnums=7)

    def compute(crystals):
        assert crystals.W.shape == (8, 5)  # one compilation serves all tests
        return np.asarray(batched(lively(config), None, *inputs(crystals), False))

    return compute


def test_the_model_cards_call_works_as_it_stands(random_crystals):
    # fmt: off
    params, transformer = crystalformer.make_transformer(key=jax.random.PRNGKey(42),
        Nf=5, Kx=16, Kl=4, n_max=21, h0_size=256,
        num_layers=16, num_heads=16, key_size=64, model_size=64, embed_size=32, atom_types=119, wyck_types=28,
        dropout_rate=0.1, attn_rate=0.1, widening_factor=4, sigmamin=1e-3)
    # fmt: on
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4_833_575
    key, crystal = jax.random.PRNGKey(0), one(random_crystals(1, 3))
    h = jax.jit(transformer, static_argnums=7)(params, key, *inputs(crystal), False)
    assert h.shape == (16, 119 + 13 * 4)
    assert np.isfinite(h).all()


def test_a_static_is_train_passes_through_jit_and_vmap(tiny_config, lively, random_crystals):
    crystals, key = random_crystals(2, 3), jax.random.PRNGKey(1)
    transformer, params = make_apply(tiny_config), lively(tiny_config)
    batched = jax.vmap(transformer, in_axes=(None, None, 0, 0, 0, 0, 0, None))
    h = jax.jit(batched, static_argnums=7)(params, key, *inputs(crystals), True)
    single = jax.jit(transformer, static_argnums=7)(params, key, *inputs(one(crystals, 1)), True)
    np.testing.assert_allclose(h[1], single, rtol=1e-4, atol=1e-5)


def assert_same_outputs(found, expected, rtol, atol):
    """Equal where a class is allowed, and the same classes forbidden (the original shifts them by -1e10)."""
    forbidden = expected <= -1e9
    np.testing.assert_array_equal(found == FORBIDDEN, forbidden)
    np.testing.assert_allclose(found[~forbidden], expected[~forbidden], rtol=rtol, atol=atol)


def golden_outputs(golden, dtype):
    rows = jax.tree.map(lambda field: field[golden.values["h_rows"]], golden.crystals)
    G, XYZ, A, W, M = inputs(rows)
    params = jax.tree.map(lambda x: x.astype(dtype), golden.params)
    batched = jax.vmap(make_apply(golden.config), in_axes=(None, None, 0, 0, 0, 0, 0, None))
    return jax.jit(batched, static_argnums=7)(params, None, G, XYZ.astype(dtype), A, W, M, False)


def test_outputs_are_the_golden_ones(golden):
    assert_same_outputs(golden_outputs(golden, np.float32), golden.values["h"], rtol=1e-4, atol=2e-5)


def test_outputs_are_the_golden_ones_in_float64(golden):
    # The original makes its rotary table in float32 even here.
    tolerance = 1e-4 if golden.config.generation == "rotary" else 1e-9
    with jax.enable_x64(True):
        found = np.asarray(golden_outputs(golden, np.float64))
    assert found.dtype == np.float64
    assert_same_outputs(found, golden.values["h"], rtol=tolerance, atol=tolerance)


class RotaryAttention(hk.MultiHeadAttention):
    """Haiku's own attention, whose queries and keys are turned in the complex plane."""

    @hk.transparent
    def _linear_projection(self, x, head_size, name=None):
        y = super()._linear_projection(x, head_size, name)
        if name == "value":
            return y
        half = head_size // 2
        z = y[..., :half] + 1j * y[..., half:]
        angle = np.arange(len(y))[:, None, None] / 10000 ** (2 * np.arange(half) / head_size)
        z = z * jnp.broadcast_to(np.exp(1j * angle), z.shape)
        return jnp.concatenate([z.real, z.imag], axis=-1)


def haiku_forward(config, G, XYZ, A, W, M):
    """Section 2 of the specification with one Haiku module a layer's part, in the order that numbers their names."""
    n, e = len(W), config.embed_size

    def table(name, *shape):
        return hk.get_parameter(name, shape, init=hk.initializers.TruncatedNormal(0.01))

    g = table("g_embeddings", 230, e)[G - 1]
    w, a = table("w_embeddings", config.wyck_types, e)[W], table("a_embeddings", config.atom_types, e)[A]
    if config.h0_size:
        hidden = jax.nn.gelu(hk.Linear(config.h0_size)(g))
        first = hk.Linear(config.wyck_types)(hidden)
    else:
        first = table("w_params", 230, config.wyck_types)[G - 1]
    waves = [f(2 * np.pi * k * XYZ) for k in range(1, config.Nf + 1) for f in (jnp.sin, jnp.cos)]
    coordinates = jnp.moveaxis(jnp.stack(waves), 0, -1)  # (n, 3, 2 Nf)
    g_column = jnp.tile(g[None], (n, 1))
    features = [[w, M[:, None].astype(float)], [a], *([coordinates[:, i]] for i in range(3))]
    tokens = [hk.Linear(config.model_size)(jnp.concatenate([g_column, *feature], -1)) for feature in features]
    x = jnp.stack(tokens, 1).reshape(5 * n, -1)
    if config.generation == "absolute":
        x = x + table("positional_embeddings", 5 * config.n_max, config.model_size)[: 5 * n]
    attention = RotaryAttention if config.generation == "rotary" else hk.MultiHeadAttention
    norm = functools.partial(hk.LayerNorm, axis=-1, create_scale=True, create_offset=True)
    for _ in range(config.num_layers):
        y = norm()(x)
        sizes = {"num_heads": config.num_heads, "key_size": config.key_size, "model_size": config.model_size}
        heads = attention(**sizes, w_init=hk.initializers.TruncatedNormal(0.01), name="multi_head_attention")
        x = x + heads(y, y, y, mask=np.tri(5 * n, dtype=bool)[None])
        y = norm()(x)
        hidden = jax.nn.gelu(hk.Linear(config.widening_factor * config.model_size)(y))
        x = x + hk.Linear(config.model_size)(hidden)
    x = norm()(x)
    return first, hk.Linear(config.output_size)(x).reshape(n, 5, -1)


def plain_rows(config, first, raw, G, W):
    """The rows of h from raw outputs, class by class and row by row."""
    tables, h = symmetry_tables(), np.zeros((5 * len(W) + 1, config.output_size))
    num_letters = tables.num_letters[G - 1]

    def categorical(row, logits, allowed):
        logits = np.asarray(logits, np.float64)
        total = np.log(sum(np.exp(logits[c]) for c in allowed))
        for c in range(len(logits)):
            h[row, c] = logits[c] - total if c in allowed else -1e10

    def softmax(x):
        x = np.asarray(x, np.float64)
        return x - np.log(np.exp(x).sum())

    def softplus(x):
        return np.log1p(np.exp(np.asarray(x, np.float64)))

    categorical(0, first, range(1, num_letters + 1))
    for i, letter in enumerate(W):
        after_w, *after_axy, after_z = raw[i]
        categorical(5 * i + 1, after_w[: config.atom_types], range(1, config.atom_types) if letter else [0])
        k, rest = config.Kl, after_w[config.atom_types :]
        widths = softplus(rest[7 * k : 13 * k]) + config.sigmamin
        h[5 * i + 1, config.atom_types : config.atom_types + 13 * k] = [*softmax(rest[:k]), *rest[k : 7 * k], *widths]
        for axis, row in enumerate(after_axy):
            weight, location, kappa = np.split(np.asarray(row[: 3 * config.Kx]), 3)
            h[5 * i + 2 + axis, : 3 * config.Kx] = [*softmax(weight), *location, *softplus(kappa)]
        lowest = letter + tables.has_no_freedom[G - 1, letter]
        following = [0, *range(lowest, num_letters + 1)] if letter else [0]
        categorical(5 * i + 5, after_z[: config.wyck_types], following)
    return h


def test_haiku_modules_read_the_same_tree_and_agree(config, outputs, lively, random_crystals):
    params, crystals = lively(config), random_crystals(8, 5)
    reference = hk.transform(functools.partial(haiku_forward, config))
    initial = jax.eval_shape(reference.init, jax.random.key(0), *inputs(one(crystals)))
    shapes = {module: {leaf: x.shape for leaf, x in leaves.items()} for module, leaves in initial.items()}
    assert shapes == parameter_shapes(config)
    apply = jax.jit(reference.apply)
    for crystal, found in zip(iterate_crystals(crystals), outputs(crystals), strict=True):
        first, raw = apply(params, None, *inputs(crystal))
        expected = plain_rows(config, np.asarray(first), np.asarray(raw), crystal.G, crystal.W)
        assert_same_outputs(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("generation", ["rotary", "absolute"])
def test_a_token_does_not_depend_on_later_tokens(tiny_config, lively, generation):
    config = dataclasses.replace(tiny_config, generation=generation)
    network = as_network(lively(config), config)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((15, config.model_size)), jnp.float32)
    jacobian = jax.jit(jax.jacrev(lambda x: output_layer(network, run_layers(network, x, None, config)).sum(-1)))(x)
    size = np.abs(jacobian).max(-1)  # [token read out, token changed]
    later = ~np.tri(15, dtype=bool)
    assert (size[later] == 0).all()
    assert (size[~later] > 0).all()


def test_a_row_depends_only_on_what_stands_before_it(outputs):
    """A change of site 2 is first seen in the row after its own token: letter, element, x, y, z."""
    plain = Crystals(
        G=np.int32(1),
        L=np.ones(6, np.float32),
        XYZ=np.linspace(0.1, 0.9, 15, dtype=np.float32).reshape(5, 3),
        A=np.int32([3, 4, 5, 6, 0]),
        W=np.int32([1, 1, 1, 1, 0]),
    )
    changed = [plain] * 8
    for token, (name, index, value) in enumerate(
        [("W", 2, 0), ("A", 2, 50), ("XYZ", (2, 0), 0.15), ("XYZ", (2, 1), 0.15), ("XYZ", (2, 2), 0.15)]
    ):
        field = getattr(plain, name).copy()
        field[index] = value
        changed[token + 1] = plain._replace(**{name: field})
    h = outputs(jax.tree.map(lambda *fields: np.stack(fields), *changed))
    for token in range(5):
        differs = (h[token + 1] != h[0]).any(-1)
        assert differs.argmax() == 5 * 2 + token + 1


def test_categories_are_normalised_and_unused_columns_zero(config, outputs, random_crystals):
    h = outputs(random_crystals(8, 5, seed=1)).astype(np.float64)
    for rows, width in ((h[:, ::5], config.wyck_types), (h[:, 1::5], config.atom_types)):
        np.testing.assert_allclose(np.exp(rows[..., :width]).sum(-1), 1, rtol=1e-5)
    lattice = h[:, 1::5, config.atom_types :]
    np.testing.assert_allclose(np.exp(lattice[..., : config.Kl]).sum(-1), 1, rtol=1e-5)
    assert (lattice[..., 7 * config.Kl : 13 * config.Kl] >= config.sigmamin).all()
    for row in (2, 3, 4):
        coordinate = h[:, row::5]
        np.testing.assert_allclose(np.exp(coordinate[..., : config.Kx]).sum(-1), 1, rtol=1e-5)
        assert (coordinate[..., 2 * config.Kx : 3 * config.Kx] > 0).all()
        assert (coordinate[..., 3 * config.Kx :] == 0).all()
    assert (h[:, ::5, config.wyck_types :] == 0).all()


@pytest.mark.parametrize("h0_size", [0, 16])
def test_letters_obey_the_rules_of_all_groups(tiny_config, lively, h0_size):
    config = dataclasses.replace(tiny_config, h0_size=h0_size)
    network, tables = as_network(lively(config), config), symmetry_tables()
    groups, letters = np.arange(1, 231), jnp.arange(28)
    raw = jnp.asarray(np.random.default_rng(1).normal(0, 20, (28, config.output_size)), jnp.float32)
    first = np.asarray(jax.vmap(lambda G: first_letter_log_probs(network, G, config))(groups), np.float64)
    following = np.asarray(jax.vmap(lambda G: next_letter_log_probs(raw, G, letters, config))(groups), np.float64)
    letters = np.asarray(letters)
    known = letters <= tables.num_letters[:, None]
    np.testing.assert_array_equal(first > FORBIDDEN, known & (letters > 0))
    previous, chosen = letters[:, None], letters
    again = (chosen == previous) & ~tables.has_no_freedom[:, :, None]
    expected = (chosen == 0) | ((previous > 0) & known[:, None] & ((chosen > previous) | again))
    np.testing.assert_array_equal(following > FORBIDDEN, expected)
    np.testing.assert_allclose(np.exp(first).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(following).sum(-1), 1, rtol=1e-5)
    assert (following[:, 0, 0] == 0).all()  # after padding, padding is certain


def test_an_element_is_padding_if_and_only_if_its_letter_is(tiny_config):
    raw = jnp.asarray(np.random.default_rng(1).normal(0, 20, (28, tiny_config.output_size)), jnp.float32)
    log_probs = np.asarray(element_log_probs(raw, jnp.arange(28), tiny_config), np.float64)
    is_padding = np.arange(119) == 0
    np.testing.assert_array_equal(log_probs > FORBIDDEN, is_padding == (np.arange(28) == 0)[:, None])
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def compiled(tiny_config, lively, random_crystals):
    """The tiny network as a function of (key, is_train) on one crystal, for variants of its config."""
    params, crystal = lively(tiny_config), one(random_crystals(1, 5))

    @functools.cache
    def transformer(changes):
        return jax.jit(make_apply(dataclasses.replace(tiny_config, **dict(changes))), static_argnums=7)

    def compute(key, is_train, **changes):
        return np.asarray(transformer(tuple(changes.items()))(params, key, *inputs(crystal), is_train))

    return compute


def test_dropout_needs_training_and_a_key(compiled):
    keys = jax.random.key(0), jax.random.key(1)
    plain = compiled(keys[1], False)
    np.testing.assert_array_equal(compiled(keys[0], False), plain)
    np.testing.assert_array_equal(compiled(keys[0], True, dropout_rate=0.0, attn_rate=0.0), plain)
    for rates in ({"attn_rate": 0.0}, {"dropout_rate": 0.0}):
        first, second, again = (compiled(key, True, **rates) for key in (*keys, keys[0]))
        np.testing.assert_array_equal(first, again)
        assert (first != plain).any()
        assert (first != second).any()


def test_dropout_keeps_the_mean_of_an_entry():
    rate, x = 0.3, jnp.full((30_001,), 2.0)
    y = np.asarray(_dropout(jax.random.key(0), rate, x))
    assert set(np.unique(y)) == {0.0, np.float32(2 / 0.7)}
    error = (rate * (1 - rate) / x.size) ** 0.5
    assert abs((y == 0).mean() - rate) < 4.5 * error
    both = ((y[:-1:2] == 0) & (y[1::2] == 0)).mean()  # the two halves of a random word
    assert abs(both - rate**2) < 4.5 * (rate**2 * (1 - rate**2) / (x.size // 2)) ** 0.5


def test_remat_gives_the_same_numbers(compiled):
    np.testing.assert_array_equal(compiled(None, False, remat=True), compiled(None, False))
    key = jax.random.key(0)
    np.testing.assert_array_equal(compiled(key, True, remat=True), compiled(key, True))


def test_bfloat16_blocks_stay_close_and_answer_in_float32(compiled):
    plain, half = compiled(None, False), compiled(None, False, compute_dtype="bfloat16")
    assert half.dtype == np.float32
    assert (half != plain).any()
    np.testing.assert_allclose(half, plain, rtol=0.02, atol=0.1)
    allowed = half[:, :28] > FORBIDDEN
    rows = np.exp(np.where(allowed, half[:, :28], -np.inf))[::5]
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)  # normalised in float32
