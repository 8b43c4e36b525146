"""Published checkpoints: pickles of {"params": tree, "opt_state": optax state}, read without executing code."""

import dataclasses
import functools
import pathlib
import pickle
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from crystalformer.checkpoint.safe_pickle import read_pickle
from crystalformer.config import TransformerConfig
from crystalformer.network.parameters import (
    TOKENS,
    Params,
    Shapes,
    final_names,
    layer_names,
    parameter_shapes,
    token_names,
)
from matterform.config import from_dict, to_dict
from matterform.io.files import write_atomically

# Hyper-parameters that change the outputs but no array shape; a config saved in the file takes precedence.
TRAINED_WITH = ("num_heads", "key_size", "Kx", "Kl", "Nf", "sigmamin")
EPOCH_PATTERN = re.compile(r"epoch_(\d+)")
PUBLISHED = "published"  # folder of published files inside a run folder
BEST = "best.pkl"  # published file with the lowest validation loss of a run


class Checkpoint(NamedTuple):
    """Contents of a published file; `opt_state` is None where the file has none."""

    params: Params
    config: TransformerConfig
    opt_state: Any
    epoch: int | None


def load_checkpoint(path: str | pathlib.Path, **hyperparameters: Any) -> Checkpoint:
    """Reads a published `.pkl` of any rotary or absolute generation.

    Sizes and generation are inferred from the array shapes. Hyper-parameters that no shape determines (num_heads,
    dropout, ...) are taken from `hyperparameters`, by default the published values; all others in `hyperparameters`
    are checked against the shapes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, is not a checkpoint, holds a forbidden global, or its tree has missing,
            unknown or misshapen leaves or contradicts `hyperparameters`; the message names which.
    """
    path = pathlib.Path(path)
    content = read_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("params"), dict):
        raise ValueError(f'{path}: expected a pickled dict with a "params" tree, as CrystalFormer writes it')
    params = _as_arrays(content["params"], path)
    stored = _stored_config(content, path)
    for name in TRAINED_WITH:
        if name in stored and hyperparameters.get(name, stored[name]) != stored[name]:
            raise ValueError(
                f"{path}: {name}={hyperparameters[name]} was given, but it was trained with {stored[name]}"
            )
    config = infer_config(params, path, **(stored | hyperparameters))
    epoch = EPOCH_PATTERN.search(path.stem)
    return Checkpoint(params, config, content.get("opt_state"), int(epoch[1]) if epoch else None)


def _stored_config(content: dict, path: pathlib.Path) -> dict[str, Any]:
    """The hyper-parameters that `save_checkpoint` saved with the tree; empty for a published file."""
    stored = content.get("config")
    if stored is None:
        return {}
    if not isinstance(stored, dict):
        raise ValueError(f"{path}: its config should be a dict of hyper-parameters, found {stored!r:.60}")
    try:
        return to_dict(from_dict(TransformerConfig, stored))
    except ValueError as error:
        raise ValueError(f"{path}: its config does not fit this version: {error}") from error


def _as_arrays(tree: dict, path: pathlib.Path) -> Params:
    """Checks that the tree has two levels of named arrays; floats become float32, as the network computes."""
    params: dict[str, dict[str, Any]] = {}
    for module, leaves in tree.items():
        if not isinstance(leaves, dict):
            raise ValueError(f"{path}: params/{module} should be a dict of arrays, found {type(leaves).__name__}")
        for leaf, array in leaves.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                raise ValueError(f"{path}: params/{module}/{leaf} should be an array of floats, found {array!r:.60}")
        params[str(module)] = {str(leaf): np.asarray(array, np.float32) for leaf, array in leaves.items()}
    return params


def infer_config(params: Params, source: str | pathlib.Path = "params", **hyperparameters: Any) -> TransformerConfig:
    """The config of a published tree; `hyperparameters` supply what the shapes do not determine.

    Raises:
        ValueError: if the tree is not a complete one of the rotary or absolute generation, or contradicts
            `hyperparameters`; the message begins with `source`.
    """
    try:
        config = from_dict(TransformerConfig, _merge_sizes(params, hyperparameters))
        _check_tree(params, parameter_shapes(config))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return config


def _merge_sizes(params: Params, given: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters `given`, checked against the sizes inferred from the shapes and completed by them."""
    if any(name.endswith("_embedding_table") for leaves in params.values() for name in leaves):
        raise ValueError(
            "these are formula-conditioned weights (tables named *_embedding_table), which this version cannot run; "
            "use a rotary (Alex-20) or absolute (MP-20) checkpoint"
        )
    sizes = _sizes_of(params)
    for name, value in sizes.items():
        if given.get(name, value) != value:
            raise ValueError(f"{name}={given[name]} was given, but the weights have {name}={value}")
    width = _shape(params, "multi_head_attention/query", "b", 1)[0]
    heads = _split_heads(width, given.get("num_heads"), given.get("key_size"))
    # The output is as wide as its widest head, which is that of elements and lattice unless Kx is large.
    columns = _shape(params, _skeleton_names(sizes)["output"], "b", 1)[0] - sizes["atom_types"]
    lattice = {"Kl": columns // 13} if columns > 0 and columns % 13 == 0 else {}
    if given.get("Kl", columns // 13) * 13 > columns:
        raise ValueError(f"Kl={given['Kl']} was given, but the output has only room for Kl={columns // 13}")
    return lattice | given | sizes | heads


def _shape(params: Params, module: str, leaf: str, ndim: int) -> tuple[int, ...]:
    if leaf not in params.get(module, {}):
        raise ValueError(f"params/{module}/{leaf} is missing; this is not a whole CrystalFormer tree")
    shape = np.shape(params[module][leaf])
    if len(shape) != ndim or 0 in shape:
        raise ValueError(f"params/{module}/{leaf} has shape {shape}, expected {ndim} axes that are not empty")
    return shape


def _sizes_of(params: Params) -> dict[str, Any]:
    """All sizes that the shapes determine."""
    shape = functools.partial(_shape, params)
    atom_types, embed_size = shape("~", "a_embeddings", 2)
    model_size = shape("layer_norm", "scale", 1)[0]
    sizes: dict[str, Any] = {
        "embed_size": embed_size,
        "atom_types": atom_types,
        "wyck_types": shape("~", "w_embeddings", 2)[0],
        "num_layers": sum(name.endswith("/query") for name in params),
        "model_size": model_size,
        "h0_size": 0 if "w_params" in params["~"] else shape("linear", "b", 1)[0],
        "generation": "absolute" if "positional_embeddings" in params["~"] else "rotary",
    }
    names = _skeleton_names(sizes)
    sizes["Nf"] = (shape(names["X"], "w", 2)[0] - embed_size) // 2
    sizes["widening_factor"] = shape(names["mlp_in"], "b", 1)[0] // model_size
    if sizes["generation"] == "absolute":
        sizes["n_max"] = shape("~", "positional_embeddings", 2)[0] // len(TOKENS)
    return sizes


def _skeleton_names(sizes: dict[str, Any]) -> dict[str, str]:
    """Role -> module where the numbering depends on the sizes."""
    config = TransformerConfig(**sizes)
    return {**token_names(config), **layer_names(config, 0), "output": final_names(config)[1]}


def _split_heads(width: int, num_heads: int | None, key_size: int | None) -> dict[str, int]:
    """num_heads and key_size of an attention of `width` channels, given one, both, or the published split of 1024."""
    if num_heads is None and key_size is None:
        published = TransformerConfig()
        num_heads, key_size = published.num_heads, published.key_size
    num_heads = width // (key_size or width) if num_heads is None else num_heads
    key_size = width // (num_heads or 1) if key_size is None else key_size
    if num_heads * key_size != width:
        raise ValueError(
            f"queries have {width} channels, which are not num_heads={num_heads} times key_size={key_size}; "
            "give both as the model was trained with"
        )
    return {"num_heads": num_heads, "key_size": key_size}


def _check_tree(params: Params, shapes: Shapes) -> None:
    for module, leaves in shapes.items():
        for leaf, shape in leaves.items():
            found = _shape(params, module, leaf, len(shape))
            if found != shape:
                raise ValueError(f"params/{module}/{leaf} has shape {found}, expected {shape}")
    unknown = [f"{module}/{leaf}" for module in params for leaf in params[module] if leaf not in shapes.get(module, {})]
    if unknown:
        raise ValueError(f"the tree has leaves that no such network has: {', '.join(sorted(unknown)[:5])}")


def save_checkpoint(
    path: str | pathlib.Path,
    params: Params,
    opt_state: Any = None,
    epoch: int | None = None,
    config: TransformerConfig | None = None,
) -> pathlib.Path:
    """Writes the published layout: plain NumPy arrays under the published names; the file is written atomically.

    `path` is a file, or a folder in which the file becomes epoch_NNNNNN.pkl. A `config` is saved next to the
    tree, where the original reader ignores it, so that `load_checkpoint` needs no hyper-parameters.

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
        temporary.write_bytes(pickle.dumps(content, protocol=4))  # readable by every Python 3
    return path
