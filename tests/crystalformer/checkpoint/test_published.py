"""Published checkpoints: read, written, and refused with the reason."""

import dataclasses
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crystalformer.checkpoint.published import infer_config, load_checkpoint, save_checkpoint
from crystalformer.config import TransformerConfig
from crystalformer.network.parameters import init_params, parameter_shapes

HEADS = {"num_heads": 2, "key_size": 8}


@pytest.fixture(scope="module")
def params(tiny_config):
    return jax.tree.map(np.asarray, init_params(jax.random.key(0), tiny_config))


@pytest.fixture
def write(tmp_path):
    """Writes any object as a pickle of the published layout would be."""

    def write_content(**content):
        path = tmp_path / "epoch_000003.pkl"
        path.write_bytes(pickle.dumps(content))
        return path

    return write_content


def replaced(params, module, leaf, value):
    """The tree with one leaf replaced, or left out if `value` is None."""
    leaves = {name: array for name, array in params[module].items() if name != leaf}
    return params | {module: leaves if value is None else leaves | {leaf: value}}


def assert_trees_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_golden_files_load_with_their_sizes(golden):
    sizes = {"num_heads": 4, "key_size": 16}
    checkpoint = load_checkpoint(golden.path, **sizes)
    assert checkpoint.epoch == 7
    assert checkpoint.config == golden.config
    assert checkpoint.config.generation == ("rotary" if "rope" in golden.path.name else "absolute")
    shapes = {module: {leaf: x.shape for leaf, x in leaves.items()} for module, leaves in checkpoint.params.items()}
    assert shapes == parameter_shapes(checkpoint.config)


def test_golden_optimiser_state_goes_on_training(golden):
    clip, adam, schedule, end = load_checkpoint(golden.path, num_heads=4, key_size=16).opt_state
    assert [type(state).__name__ for state in (clip, schedule, end)] == [
        "EmptyState",
        "ScaleByScheduleState",
        "EmptyState",
    ]
    assert isinstance(adam, optax.ScaleByAdamState)
    assert jax.tree.map(np.shape, adam.mu) == jax.tree.map(np.shape, adam.nu) == jax.tree.map(np.shape, golden.params)
    # One module is enough to see that Adam goes on from these moments.
    params, mu, nu = ({"linear": tree["linear"]} for tree in (golden.params, adam.mu, adam.nu))
    optimizer = optax.adam(optax.constant_schedule(1e-3))
    state = (adam._replace(mu=mu, nu=nu), schedule)
    assert jax.tree.structure(optimizer.init(params)) == jax.tree.structure(state)
    updates, after = optimizer.update(jax.tree.map(jnp.ones_like, params), state)
    count = int(adam.count) + 1
    assert int(after[0].count) == count > 1
    mean, square = 0.9 * mu["linear"]["b"] + 0.1, 0.999 * nu["linear"]["b"] + 0.001
    expected = -1e-3 * (mean / (1 - 0.9**count)) / np.sqrt(square / (1 - 0.999**count))
    np.testing.assert_allclose(updates["linear"]["b"], expected, rtol=1e-4)  # float32 cancels in 1 - 0.999^count


def test_round_trip_is_exact(tmp_path, params, tiny_config):
    opt_state = optax.adam(1e-3).init(params)
    path = save_checkpoint(tmp_path, params, opt_state, 12)
    assert path.name == "epoch_000012.pkl"
    checkpoint = load_checkpoint(path, **dataclasses.asdict(tiny_config))
    assert checkpoint.epoch == 12
    assert checkpoint.config == tiny_config
    assert_trees_equal(checkpoint.params, params)
    assert_trees_equal(checkpoint.opt_state, jax.tree.map(np.asarray, opt_state))


def test_golden_tree_survives_saving(tmp_path, golden):
    path = save_checkpoint(tmp_path / "a.pkl", golden.params)
    again = load_checkpoint(path, num_heads=4, key_size=16)
    assert_trees_equal(again.params, golden.params)
    assert again.opt_state is None
    assert again.epoch is None


def test_a_stored_config_makes_hyperparameters_needless(tmp_path, params, tiny_config):
    config = dataclasses.replace(tiny_config, dropout_rate=0.3, sigmamin=0.01, n_max=9)
    path = save_checkpoint(tmp_path / "best.pkl", params, config=config)
    assert load_checkpoint(path).config == config
    assert load_checkpoint(path, compute_dtype="bfloat16").config.compute_dtype == "bfloat16"


@pytest.mark.parametrize("with_state", [False, True])
def test_plain_pickle_reads_what_is_saved(tmp_path, params, tiny_config, with_state):
    """NumPy alone suffices (and optax for an optimiser state), as in the original reader."""
    state = optax.adam(1e-3).init(params) if with_state else None
    path = save_checkpoint(tmp_path / "epoch_000001.pkl", init_params(jax.random.key(0), tiny_config), state)
    allowed = "('numpy', 'optax')" if with_state else "('numpy',)"
    code = f"""
import pickle, sys
class Reader(pickle.Unpickler):
    def find_class(self, module, name):
        assert module.split('.')[0] in {allowed}, (module, name)
        return super().find_class(module, name)
content = Reader(open({str(path)!r}, 'rb')).load()
import numpy
assert type(content['params']) is dict and set(content) == {{'params', 'opt_state'}}
for module, leaves in sorted(content['params'].items()):
    for leaf, array in sorted(leaves.items()):
        assert type(array) is numpy.ndarray and array.dtype == 'float32'
        print(module, leaf, array.shape)
assert {with_state} or 'jax' not in sys.modules
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    shapes = parameter_shapes(tiny_config)
    assert out.splitlines() == [f"{m} {leaf} {shapes[m][leaf]}" for m in sorted(shapes) for leaf in sorted(shapes[m])]


def test_half_precision_weights_are_read_as_float32(write, params, tiny_config):
    half = jax.tree.map(lambda x: x.astype(np.float16), params)
    found = load_checkpoint(write(params=half), **HEADS).params
    assert_trees_equal(found, jax.tree.map(np.float32, half))
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "sizes",
    [
        {"h0_size": 0},
        {"generation": "absolute", "n_max": 5},
        {"atom_types": 30, "wyck_types": 11, "Kl": 3},
        {"Kx": 57, "Kl": 1},  # as wide as the default Kx with Kl = 4
        {"num_layers": 1, "widening_factor": 3, "Nf": 1, "key_size": 4},
    ],
)
def test_sizes_are_read_off_the_tree(tiny_config, sizes):
    config = dataclasses.replace(tiny_config, **sizes)
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    given = {name: getattr(config, name) for name in ("num_heads", "key_size", "Kx", "n_max")}
    if sizes.get("Kx"):
        given["Kl"] = config.Kl
    assert infer_config(params, **given) == config


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"num_layers": 8}, r"num_layers=8 was given, but the weights have num_layers=2"),
        ({"Nf": 5}, r"Nf=5 was given, but the weights have Nf=3"),
        ({"generation": "absolute"}, r"generation=absolute was given, but the weights have generation=rotary"),
        ({"Kl": 4}, r"Kl=4 was given, but the output has only room for Kl=2"),
        ({"Kl": 1}, r"linear_11/\w has shape .*, expected"),
        ({"Kx": 100}, r"linear_11/\w has shape .*, expected"),
        ({"num_heads": 3, "key_size": 8}, r"queries have 16 channels, which are not num_heads=3 times key_size=8"),
        ({"num_heads": 0, "key_size": 8}, r"queries have 16 channels, which are not num_heads=0"),
        ({"num_heads": None, "key_size": None}, r"queries have 16 channels, which are not num_heads=16"),
        ({"num_heads": 3, "key_size": None}, r"queries have 16 channels"),
        ({"nmax": 21}, r"unknown key 'nmax'; did you mean 'n_max'"),
        ({"dropout_rate": 2.0}, r"dropout_rate must be a probability"),
    ],
)
def test_contradictions_are_refused(write, params, hyperparameters, message):
    path = write(params=params)
    given = {name: value for name, value in (HEADS | hyperparameters).items() if value is not None}
    with pytest.raises(ValueError, match=rf"epoch_000003\.pkl: .*{message}"):
        load_checkpoint(path, **given)


def test_one_of_heads_and_key_size_tells_the_other(write, params):
    path = write(params=params)
    assert load_checkpoint(path, num_heads=4).config.key_size == 4
    assert load_checkpoint(path, key_size=2).config.num_heads == 8


@pytest.mark.parametrize(
    ("module", "leaf"),
    [("~", "a_embeddings"), ("layer_norm", "scale"), ("linear_11", "b"), ("multi_head_attention_1/value", "w")],
)
def test_a_missing_leaf_is_named(write, params, module, leaf):
    with pytest.raises(ValueError, match=rf"params/{module}/{leaf} is missing"):
        load_checkpoint(write(params=replaced(params, module, leaf, None)), **HEADS)


@pytest.mark.parametrize("shape", [(), (3,), (119, 9), (0, 16)])
@pytest.mark.parametrize(
    ("module", "leaf"), [("~", "a_embeddings"), ("linear_8", "w"), ("multi_head_attention/query", "w")]
)
def test_a_wrong_shape_is_named(write, params, module, leaf, shape):
    wrong = replaced(params, module, leaf, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"epoch_000003\.pkl: params/\S+ has shape .*, expected"):
        load_checkpoint(write(params=wrong), **HEADS)


def test_an_unknown_leaf_is_named(write, params):
    with pytest.raises(ValueError, match="no such network has: linear/extra"):
        load_checkpoint(write(params=replaced(params, "linear", "extra", np.zeros(3, np.float32))), **HEADS)
    with pytest.raises(ValueError, match="no such network has: stranger/w"):
        load_checkpoint(write(params=params | {"stranger": {"w": np.zeros(3, np.float32)}}), **HEADS)


def test_formula_conditioned_weights_are_refused_as_such(write, params):
    tables = {name.replace("embeddings", "embedding_table"): x for name, x in params["~"].items()}
    for tree in (params | {"~": tables}, {"crystalformer": {"a_embedding_table": params["~"]["a_embeddings"]}}):
        with pytest.raises(ValueError, match="formula-conditioned weights"):
            load_checkpoint(write(params=tree))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a pickled dict"),
        ({"params": [1]}, "expected a pickled dict"),
        ({"params": {}}, "~/a_embeddings is missing"),
        ({"params": {"~": 3}}, "params/~ should be a dict of arrays, found int"),
        ({"params": {"~": {"a_embeddings": [1.0]}}}, "params/~/a_embeddings should be an array of floats"),
        ({"params": {"~": {"a_embeddings": np.arange(3)}}}, "params/~/a_embeddings should be an array of floats"),
        ({"params": {1: {2: np.zeros(3)}}}, "~/a_embeddings is missing"),
    ],
)
def test_other_contents_are_refused(write, content, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(write(**content))


@pytest.mark.parametrize("config", [3, [], {"n_max": "many"}, {"a": 1}, {"n_max": 1}])
def test_a_stored_config_of_another_kind_is_refused(write, params, config):
    with pytest.raises(ValueError, match=r"its config (does not fit this version|should be a dict)"):
        load_checkpoint(write(params=params, config=config), **HEADS)


def test_truncated_files_are_refused(tmp_path, params, tiny_config):
    content = save_checkpoint(tmp_path / "whole.pkl", params, config=tiny_config).read_bytes()
    path = tmp_path / "cut.pkl"
    for length in {0, 1, 2, 10, 100, len(content) // 3, len(content) // 2, len(content) - 100, len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pkl: cut short, damaged"):
            load_checkpoint(path)


def test_damaged_files_give_value_errors_only(tmp_path, rng):
    """Whichever byte of a small file is changed, it loads or is refused with the file's name, nothing else."""
    config = TransformerConfig(
        Nf=1, Kx=1, Kl=1, h0_size=1, num_layers=1, num_heads=1, key_size=2, model_size=1, embed_size=1,
        atom_types=2, wyck_types=2, widening_factor=1,
    )  # fmt: skip
    params = jax.tree.map(np.asarray, init_params(jax.random.key(0), config))
    path = save_checkpoint(tmp_path / "small.pkl", params, optax.adam(1e-3).init(params), config=config)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    messages, count = [], 300
    for position in rng.choice(len(content), count, replace=False):
        damaged = content.copy()
        damaged[position] ^= rng.integers(1, 256, dtype=np.uint8)
        path.write_bytes(damaged.tobytes())
        try:
            load_checkpoint(path)
        except ValueError as error:
            messages.append(str(error))
    assert count / 4 < len(messages) < count
    assert all(str(path) in message for message in messages)


def test_a_failing_write_leaves_the_old_file(tmp_path, params):
    path = save_checkpoint(tmp_path / "epoch_000001.pkl", params)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(path, params, opt_state=(lambda: None,))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_needs_an_epoch(tmp_path, params):
    with pytest.raises(ValueError, match="is a folder; give the epoch"):
        save_checkpoint(tmp_path, params)
