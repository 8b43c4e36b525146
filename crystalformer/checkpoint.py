"""Published checkpoints, pickles of {"params": tree, "opt_state": optax state}, read without executing code.

A pickle is a program. Ours is run by an unpickler that knows the few constructors such files contain: arrays, and
optax's optimiser states, which become inert named tuples of the same fields. Anything else is refused by name.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import pickle
import re
from typing import Any, NamedTuple

import haiku as hk
import jax
import numpy as np
from numpy._core import multiarray, numeric

from crystalformer.config import TransformerConfig
from crystalformer.parameters import TOKENS, Shapes, final_names, layer_names, parameter_shapes, token_names
from matterform.files import write_atomically

NAME_PATTERN = re.compile(r"epoch_(\d+)")


class Checkpoint(NamedTuple):
    """What a published file holds; `opt_state` is None where the file has none."""

    params: hk.Params
    config: TransformerConfig
    opt_state: Any
    epoch: int | None


# --- reading --------------------------------------------------------------------------------------------------------


def load_checkpoint(path: str | pathlib.Path, **hyperparameters: Any) -> Checkpoint:
    """Reads a published `.pkl` of any rotary or absolute generation.

    Sizes and generation are read off the tree. What no shape tells (how 1024 splits into heads, dropout, ...) is taken
    from `hyperparameters`, by default the published value; the rest of `hyperparameters` is checked against the shapes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, is not a checkpoint, holds a forbidden global, or its tree has missing,
            unknown or misshapen leaves or contradicts `hyperparameters`; the message names which.
    """
    path = pathlib.Path(path)
    content = _read_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("params"), dict):
        raise ValueError(f'{path}: expected a pickled dict with a "params" tree, as CrystalFormer writes it')
    params = _as_arrays(content["params"], path)
    config = infer_config(params, path, **(content.get("config", {}) | hyperparameters))
    _check_tree(params, parameter_shapes(config), path)
    epoch = NAME_PATTERN.search(path.stem)
    return Checkpoint(params, config, content.get("opt_state"), int(epoch[1]) if epoch else None)


def _read_pickle(path: pathlib.Path) -> Any:
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file).load()
    except EOFError as error:
        raise ValueError(f"{path}: the file ends too early; copy it again ({error})") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: not a readable checkpoint: {error}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Admits arrays, plain containers and optax states; refuses every other global by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        state = _optax_state(module, name)
        if state is None:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, which no checkpoint needs and which could run code; nothing was loaded"
            )
        return state


def _optax_state(module: str, name: str) -> Any:
    """An optimiser state of optax: a named tuple, whose construction does nothing else. None if it is not one."""
    if module.split(".")[0] != "optax" or importlib.util.find_spec(module) is None:
        return None
    state = getattr(importlib.import_module(module), name, None)
    is_named_tuple = isinstance(state, type) and issubclass(state, tuple) and hasattr(state, "_fields")
    return state if is_named_tuple else None


def _jax_array(reconstruct: Any, arguments: tuple, state: tuple, *_aval: Any) -> np.ndarray:
    """jax pickles a device array as NumPy's own recipe and, in later versions, its weak type."""
    if reconstruct is not multiarray._reconstruct:
        raise pickle.UnpicklingError(f"a jax array is rebuilt by {reconstruct!r} instead of NumPy's own function")
    array = reconstruct(*arguments)
    array.__setstate__(state)
    return array


# Files written under NumPy 1 name numpy.core where NumPy 2 has numpy._core; jax has had two homes for its arrays.
_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): dict,
    ("jax._src.array", "_reconstruct_array"): _jax_array,
    ("jax._src.device_array", "reconstruct_device_array"): _jax_array,
    ("jaxlib.xla_extension", "reconstruct_device_array"): _jax_array,
} | {
    (f"numpy.{core}.{module}", function.__name__): function
    for core in ("core", "_core")
    for module, function in (
        ("multiarray", multiarray._reconstruct),
        ("multiarray", multiarray.scalar),
        ("numeric", numeric._frombuffer),
    )
}


def _as_arrays(tree: dict, path: pathlib.Path) -> hk.Params:
    """Checks that the tree has two levels of named arrays; floats become float32, as the network computes."""
    params: dict[str, dict[str, np.ndarray]] = {}
    for module, leaves in tree.items():
        if not isinstance(leaves, dict):
            raise ValueError(f"{path}: params/{module} should be a dict of arrays, found {type(leaves).__name__}")
        for leaf, array in leaves.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                raise ValueError(f"{path}: params/{module}/{leaf} should be an array of floats, found {array!r:.60}")
        params[module] = {leaf: np.asarray(array, np.float32) for leaf, array in leaves.items()}
    return params


# --- sizes ----------------------------------------------------------------------------------------------------------


def infer_config(params: hk.Params, source: str | pathlib.Path = "params", **hyperparameters: Any) -> TransformerConfig:
    """The config of a published tree; `hyperparameters` supply what shapes do not tell.

    Raises:
        ValueError: if the tree lacks the leaves that tell its sizes, or contradicts `hyperparameters`.
    """
    tables = params.get("~", {})
    if any(name.endswith("_embedding_table") for name in tables):
        raise ValueError(
            f"{source}: these are formula-conditioned weights (tables named *_embedding_table), which this version "
            "cannot run; use a rotary (Alex-20) or absolute (MP-20) checkpoint"
        )
    sizes = _sizes_of(params, source)
    for name, value in sizes.items():
        if hyperparameters.get(name, value) != value:
            raise ValueError(f"{source}: {name}={hyperparameters[name]} was given, but the weights have {name}={value}")
    sizes = hyperparameters | sizes
    width = _leaf(params, "multi_head_attention/query", "b", source).size
    heads, key_size = _split_heads(width, hyperparameters.get("num_heads"), hyperparameters.get("key_size"), source)
    return TransformerConfig(**(sizes | {"num_heads": heads, "key_size": key_size}))


def _leaf(params: hk.Params, module: str, leaf: str, source: str | pathlib.Path) -> np.ndarray:
    if leaf not in params.get(module, {}):
        raise ValueError(f"{source}: params/{module}/{leaf} is missing; this is not a whole CrystalFormer tree")
    return np.asarray(params[module][leaf])


def _sizes_of(params: hk.Params, source: str | pathlib.Path) -> dict[str, Any]:
    """Every size that the shapes determine."""
    leaf = functools.partial(_leaf, params, source=source)
    atom_types, embed_size = leaf("~", "a_embeddings").shape
    sizes: dict[str, Any] = {
        "embed_size": embed_size,
        "atom_types": atom_types,
        "wyck_types": leaf("~", "w_embeddings").shape[0],
        "num_layers": sum(name.endswith("/query") for name in params),
        "model_size": leaf("layer_norm", "scale").size,
        "h0_size": 0 if "w_params" in params["~"] else leaf("linear", "b").size,
        "generation": "absolute" if "positional_embeddings" in params["~"] else "rotary",
    }
    skeleton = TransformerConfig(**sizes)
    sizes["Nf"] = (leaf(token_names(skeleton)["X"], "w").shape[0] - embed_size) // 2
    sizes["widening_factor"] = leaf(layer_names(skeleton, 0)["mlp_in"], "b").size // sizes["model_size"]
    if sizes["generation"] == "absolute":
        sizes["n_max"] = leaf("~", "positional_embeddings").shape[0] // len(TOKENS)
    lattice_columns = leaf(final_names(skeleton)[1], "b").size - atom_types
    if lattice_columns > 0 and lattice_columns % 13 == 0:
        sizes["Kl"] = lattice_columns // 13
    return sizes


def _split_heads(
    width: int, num_heads: int | None, key_size: int | None, source: str | pathlib.Path
) -> tuple[int, int]:
    """num_heads and key_size of an attention of `width` channels, given one, both, or the published split of 1024."""
    if num_heads is None and key_size is None:
        published = TransformerConfig()
        num_heads, key_size = published.num_heads, published.key_size
    num_heads = num_heads or width // (key_size or width)
    key_size = key_size or width // num_heads
    if num_heads * key_size != width:
        raise ValueError(
            f"{source}: queries have {width} channels, which are not num_heads={num_heads} times key_size={key_size}; "
            "give both as the model was trained with"
        )
    return num_heads, key_size


def _check_tree(params: hk.Params, shapes: Shapes, path: pathlib.Path) -> None:
    for module, leaves in shapes.items():
        for leaf, shape in leaves.items():
            found = _leaf(params, module, leaf, path).shape
            if found != shape:
                raise ValueError(f"{path}: params/{module}/{leaf} has shape {found}, expected {shape}")
    unknown = [f"{module}/{leaf}" for module in params for leaf in params[module] if leaf not in shapes.get(module, {})]
    if unknown:
        raise ValueError(f"{path}: the tree has leaves that no such network has: {', '.join(sorted(unknown)[:5])}")


# --- writing --------------------------------------------------------------------------------------------------------


def save_checkpoint(
    path: str | pathlib.Path,
    params: hk.Params,
    opt_state: Any = None,
    epoch: int | None = None,
    config: TransformerConfig | None = None,
) -> pathlib.Path:
    """Writes the published layout: plain NumPy arrays under the published names, in a file that appears whole.

    `path` is a file, or a folder in which the file becomes epoch_NNNNNN.pkl. A `config` is kept beside the tree, where
    the original reader does not look, so that `load_checkpoint` needs no hyper-parameters.

    Raises:
        ValueError: if `path` is a folder and no `epoch` is given.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if epoch is None:
            raise ValueError(f"{path} is a folder; give the epoch that names the file, or a file name")
        path = path / f"epoch_{epoch:06d}.pkl"
    params, opt_state = jax.tree.map(np.asarray, (params, opt_state))
    content = {"params": params, "opt_state": opt_state}
    if config is not None:
        content["config"] = dataclasses.asdict(config)
    with write_atomically(path) as temporary:
        temporary.write_bytes(pickle.dumps(content))
    return path
