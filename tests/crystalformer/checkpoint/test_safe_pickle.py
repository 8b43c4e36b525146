"""Pickles of other times are read; pickles that would do anything else are not."""

import collections
import os
import pathlib
import pickle
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crystalformer.checkpoint.safe_pickle import read_pickle

TREE = {
    "c": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(3, dtype=">f8"),
    "scalar": np.float64(2.5),
    "zero_d": np.array(7, np.int32),
    "flags": np.array([True, False]),
    "half": np.array([1.5], np.float16),
    "transposed": np.arange(24, dtype=np.int64).reshape(2, 3, 4).transpose(1, 2, 0),
}


def written(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(content)
    return path


def assert_same_tree(found: Any, expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert type(found[name]) is type(array), name
        assert found[name].dtype == array.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


class Call:
    """Pickles as a call of any function by name, whose result then gets a state."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments, state)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol_come_back(tmp_path, protocol):
    path = written(tmp_path / "a.pkl", pickle.dumps(TREE, protocol))
    assert_same_tree(read_pickle(path), TREE)


@pytest.mark.parametrize("protocol", [2, 3])
def test_arrays_written_under_numpy_1_come_back(tmp_path, protocol):
    content = pickle.dumps(TREE, protocol)
    assert b"cnumpy._core.multiarray\n" in content
    path = written(tmp_path / "a.pkl", content.replace(b"cnumpy._core.", b"cnumpy.core."))
    assert_same_tree(read_pickle(path), TREE)


def test_an_empty_array_comes_back(tmp_path):
    tree = {"empty": np.zeros((0, 4), np.float32)}
    assert_same_tree(read_pickle(written(tmp_path / "a.pkl", pickle.dumps(tree))), tree)


def test_read_arrays_can_be_changed_in_place(tmp_path):
    read_pickle(written(tmp_path / "a.pkl", pickle.dumps(TREE)))["c"][0, 0] = 5.0


@pytest.mark.parametrize(
    "home", [b"jax._src.array\n_reconstruct_array", b"jax._src.device_array\nreconstruct_device_array"]
)
def test_jax_arrays_become_numpy_arrays(tmp_path, home):
    content = pickle.dumps({"x": jnp.arange(3.0)}, protocol=3)
    assert b"cjax._src.array\n_reconstruct_array\n" in content
    path = written(tmp_path / "a.pkl", content.replace(b"jax._src.array\n_reconstruct_array", home))
    assert_same_tree(read_pickle(path), {"x": np.arange(3, dtype=np.float32)})


def test_optax_states_keep_their_types_and_can_be_used(tmp_path):
    params = {"linear": {"w": jnp.ones((2, 2))}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.constant_schedule(0.1)))
    state = optimizer.init(params)
    read = read_pickle(written(tmp_path / "a.pkl", pickle.dumps(state)))
    gradient = {"linear": {"w": jnp.full((2, 2), 0.3)}}
    expected, _ = optimizer.update(gradient, state)
    found, _ = optimizer.update(gradient, read)
    np.testing.assert_array_equal(found["linear"]["w"], expected["linear"]["w"])


def test_an_optax_state_that_has_moved_is_found_by_its_public_name(tmp_path):
    content = pickle.dumps(optax.ScaleByAdamState(jnp.zeros((), jnp.int32), {}, {}), protocol=3)
    moved = content.replace(b"coptax._src.transform\n", b"coptax._src.formerly\n")
    assert moved != content
    assert type(read_pickle(written(tmp_path / "a.pkl", moved))) is optax.ScaleByAdamState


def test_ordered_dicts_are_read_as_dicts(tmp_path):
    content = pickle.dumps(collections.OrderedDict(b=1, a=2))
    assert read_pickle(written(tmp_path / "a.pkl", content)) == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), r"posix\.system"),
        (eval, ("open({!r}, 'w')",), r"(builtins|__builtin__)\.eval"),
        (exec, ("open({!r}, 'w')",), r"(builtins|__builtin__)\.exec"),
        (getattr, ("{}", "upper"), r"(builtins|__builtin__)\.getattr"),
        (np.load, ("{}",), r"numpy\.load"),
        (optax.adam, (0.1,), r"optax\.\S*\.adam"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 4])
def test_a_forbidden_global_is_named_and_not_executed(tmp_path, function, arguments, name, protocol):
    proof = tmp_path / "executed"
    arguments = [part.format(str(proof)) if isinstance(part, str) else part for part in arguments]
    content = pickle.dumps({"params": {"~": {"a": Call(function, *arguments)}}}, protocol)
    with pytest.raises(ValueError, match=rf"refers to {name}, which no checkpoint needs"):
        read_pickle(written(tmp_path / "a.pkl", content))
    assert not proof.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("optax", "adam.__globals__"),
        ("optax._src.base.jax", "devices"),
        ("optax._src.transform", "ScaleByAdamState.__class__"),
        ("optax.no.such", "module"),
        ("optax.", ""),
        ("numpy", "ndarray.__class__"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("crystalformer.checkpoint.safe_pickle", "os.system"),
    ],
)
def test_dotted_names_lead_nowhere(tmp_path, module, name):
    strings = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    content = b"\x80\x04" + strings + b"\x93."  # STACK_GLOBAL
    with pytest.raises(ValueError, match="refers to"):
        read_pickle(written(tmp_path / "a.pkl", content))


@pytest.mark.parametrize("dtype", ["O", "V8", "U3", "S3", "M8[s]"])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, dtype):
    content = pickle.dumps({"a": np.zeros(2, dtype)})
    with pytest.raises(ValueError, match="where numbers were expected"):
        read_pickle(written(tmp_path / "a.pkl", content))


def test_the_state_of_a_dtype_cannot_make_it_another_type(tmp_path):
    objects = (3, "<", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 8, 0)
    dtype = Call(np.dtype, "f8", False, True, state=objects)
    content = np.arange(2.0).tobytes()
    array = Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (2,), dtype, False, content))
    found = read_pickle(written(tmp_path / "a.pkl", pickle.dumps({"a": array})))
    assert_same_tree(found, {"a": np.arange(2.0)})


@pytest.mark.parametrize("content", [b"", b"text\n", b"\x89PNG\r\n\x1a\n" + bytes(64), b"(((", b"\x80\xff.", b"."])
def test_other_files_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"a\.pkl: cut short, damaged or not a checkpoint"):
        read_pickle(written(tmp_path / "a.pkl", content))


def test_lengths_and_memo_indices_beyond_reason_are_refused(tmp_path):
    most = b"\xff" * 7 + b"\x7f"
    for content in (b"\x80\x04\x8e" + most, b"\x80\x05\x96" + most, b"\x80\x04Nr\xff\xff\xff\x7f0j\xff\xff\xff\x6f."):
        with pytest.raises(ValueError, match="damaged"):
            read_pickle(written(tmp_path / "a.pkl", content))


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "a.pkl")
