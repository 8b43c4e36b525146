"""Our parameter tree <-> the tensors of the published layout, by name.

Published blocks are separate and numbered, ours are stacked; published linear layers are (out, in), ours (in, out).
docs/formulas/atomformer.md lists the published names. For heads without a published name ours follow the same scheme:
`masked_head.{weight,bias}`, `coords_head.{weight,bias}`, `total_energy_norm`, `total_energy_head.weight`,
`total_force_norm`, `total_force_head.weight`, and `coords_head.step` for denoising along conservative forces.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atomformer.config import HEADS, AtomformerConfig
from atomformer.network.parameters import NUM_FEATURES, NUM_TOKEN_TYPES, Params

# The modules that make up each head.
HEAD_MODULES = {
    "formation_energy": ("energy_norm", "formation_energy_head"),
    "forces": ("force_norm", "force_head"),
    "total_energy": ("total_energy_norm", "total_energy_head"),
    "total_forces": ("total_force_norm", "total_force_head"),
    "masked": ("masked_head",),
    "coords": ("coords_head",),
    "classification": ("cls_norm", "classification_head"),
}
BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")


class Leaf(NamedTuple):
    """One array of our tree and the published tensors that hold it."""

    path: str  # in our tree
    name: str  # published; "{i}" stands for the number of the block, in a leaf stacked over blocks
    shape: tuple[int, ...]  # published
    change: Literal["none", "transposed", "row", "column"] = "none"  # a row (1, k) or column (k, 1) is our (k,)


def from_published(tensors: Mapping[str, np.ndarray], config: AtomformerConfig) -> Params:
    """Our tree, of float32 NumPy arrays, from tensors under their published names.

    Raises:
        ValueError: the tensors do not fit `config`. The message names the fields that they contradict, or else every
            tensor that is missing, unexpected, of the wrong shape or not of floats.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if problems := _problems(shapes, config):
        raise ValueError(_disagreement(shapes, config) or "; ".join(problems))
    if wrong := [f"{name} ({x.dtype})" for name, x in tensors.items() if not jnp.issubdtype(x.dtype, jnp.floating)]:
        raise ValueError(f"expected tensors of floats, found {', '.join(wrong)}; convert them first")
    params: dict[str, Any] = {}
    for leaf in _leaves(config):
        parts = [_to_ours(np.asarray(tensors[name], np.float32), leaf) for name in _names(leaf, config.depth)]
        *parents, last = leaf.path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.stack(parts) if _is_stacked(leaf) else np.ascontiguousarray(parts[0])
    return params


def to_published(params: Params, config: AtomformerConfig) -> dict[str, np.ndarray]:
    """Tensors under their published names from our tree; the inverse of `from_published`.

    Raises:
        ValueError: the tree does not fit `config`; the message names every leaf that differs.
    """
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    leaves = _leaves(config)
    expected = {leaf.path: _our_shape(leaf, config.depth) for leaf in leaves}
    if problems := _differences({path: x.shape for path, x in found.items()}, expected):
        raise ValueError(f"parameters are not those of the config: {'; '.join(problems)}")
    tensors = {}
    for leaf in leaves:
        array = found[leaf.path]
        parts = array if _is_stacked(leaf) else array[None]
        for name, part in zip(_names(leaf, config.depth), parts, strict=True):
            tensors[name] = np.ascontiguousarray(part.T if leaf.change == "transposed" else part.reshape(leaf.shape))
    return tensors


def heads_among(names: Iterable[str]) -> tuple[str, ...]:
    """The heads that have at least one of the tensors `names`."""
    modules = {name.split(".")[0] for name in names}
    return tuple(head for head in HEADS if modules & set(HEAD_MODULES[head]))


def sizes_among(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes in the config that follow from the shapes of the tensors."""
    sizes = {}
    if blocks := [int(match[1]) for name in shapes if (match := BLOCK.match(name))]:
        sizes["depth"] = max(blocks) + 1
    for name, fields in {
        "encoder.embed_tokens.weight": ("vocab_size", "dim"),
        "encoder.gaussian_embed.means.weight": (None, "k"),
        "classification_head.weight": ("num_labels", None),
    }.items():
        if len(shape := shapes.get(name, ())) == 2:
            sizes |= {field: size for field, size in zip(fields, shape, strict=True) if field}
    head_dim = shapes.get("encoder.blocks.0.q_norm.weight", ())
    if "dim" in sizes and len(head_dim) == 1:
        sizes["num_heads"] = sizes["dim"] // max(head_dim[0], 1)
    width = shapes.get("encoder.blocks.0.in_proj.weight", ())
    if "dim" in sizes and len(width) == 2:
        sizes["mlp_ratio"] = width[0] // sizes["dim"] - 3
    return sizes


def _leaves(config: AtomformerConfig) -> list[Leaf]:
    c, hidden, pairs = config, config.mlp_ratio * config.dim, (config.vocab_size + 1) ** 2
    blocks = "encoder.blocks.{i}"
    leaves = [
        Leaf("encoder/tokens", "encoder.embed_tokens.weight", (c.vocab_size, c.dim)),
        Leaf("encoder/token_types", "encoder.token_type_embedding.weight", (NUM_TOKEN_TYPES, c.dim)),
        Leaf("encoder/features/w", "encoder.embed_metadata.weight", (c.dim, NUM_FEATURES), "transposed"),
        Leaf("encoder/features/b", "encoder.embed_metadata.bias", (c.dim,)),
        Leaf("encoder/metadata", "encoder.metadata_vocab.weight", (c.vocab_size, NUM_FEATURES)),
        Leaf("encoder/pair/mul", "encoder.gaussian_embed.mul.weight", (pairs, 1), "column"),
        Leaf("encoder/pair/bias", "encoder.gaussian_embed.bias.weight", (pairs, 1), "column"),
        Leaf("encoder/pair/means", "encoder.gaussian_embed.means.weight", (1, c.k), "row"),
        Leaf("encoder/pair/stds", "encoder.gaussian_embed.stds.weight", (1, c.k), "row"),
        *_norm("encoder/blocks/in_norm", f"{blocks}.in_norm", c.dim),
        *_norm("encoder/blocks/q_norm", f"{blocks}.q_norm", c.head_dim),
        *_norm("encoder/blocks/k_norm", f"{blocks}.k_norm", c.head_dim),
        Leaf("encoder/blocks/in_proj", f"{blocks}.in_proj.weight", (hidden + 3 * c.dim, c.dim), "transposed"),
        Leaf("encoder/blocks/out_proj", f"{blocks}.out_proj.weight", (2 * c.dim, hidden + c.dim), "transposed"),
        *_norm("encoder/blocks/pair_norm", f"{blocks}.pos_embed_ff_norm", c.k),
        Leaf("encoder/blocks/pair_proj/w", f"{blocks}.gaussian_proj.weight", (1, c.k), "row"),
        Leaf("encoder/blocks/pair_proj/b", f"{blocks}.gaussian_proj.bias", (1,), "row"),
    ]
    return leaves + [leaf for head in c.heads for leaf in _head_leaves(head, c)]


def _head_leaves(head: str, config: AtomformerConfig) -> list[Leaf]:
    if config.conservative and head == "coords":
        return [Leaf("heads/coords/step", "coords_head.step", (1,))]
    if config.conservative and head in ("forces", "total_forces"):
        return []
    *norm, module = HEAD_MODULES[head]
    outputs = {"masked": config.vocab_size, "classification": config.num_labels}.get(head)
    outputs = outputs or (1 if head.endswith("energy") else 3)
    leaves = [Leaf(f"heads/{head}/w", f"{module}.weight", (outputs, config.dim), "transposed")]
    if head in ("forces", "masked", "coords"):
        leaves.append(Leaf(f"heads/{head}/b", f"{module}.bias", (outputs,)))
    return leaves + [leaf for name in norm for leaf in _norm(f"heads/{head}/norm", name, config.dim)]


def _norm(path: str, name: str, width: int) -> list[Leaf]:
    return [Leaf(f"{path}/scale", f"{name}.weight", (width,)), Leaf(f"{path}/offset", f"{name}.bias", (width,))]


def _is_stacked(leaf: Leaf) -> bool:
    return "{i}" in leaf.name


def _names(leaf: Leaf, depth: int) -> list[str]:
    return [leaf.name.format(i=i) for i in range(depth)] if _is_stacked(leaf) else [leaf.name]


def _to_ours(tensor: np.ndarray, leaf: Leaf) -> np.ndarray:
    match leaf.change:
        case "transposed":
            return tensor.T
        case "row":
            return tensor.squeeze(0)
        case "column":
            return tensor.squeeze(1)
        case "none":
            return tensor


def _our_shape(leaf: Leaf, depth: int) -> tuple[int, ...]:
    shape = _to_ours(np.broadcast_to(0.0, leaf.shape), leaf).shape
    return (depth, *shape) if _is_stacked(leaf) else shape


def _problems(shapes: Mapping[str, tuple[int, ...]], config: AtomformerConfig) -> list[str]:
    """Differences between the tensors and those that `config` needs."""
    expected = {name: leaf.shape for leaf in _leaves(config) for name in _names(leaf, config.depth)}
    return _differences(shapes, expected)


def _differences(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    lists = {"missing": missing, "unexpected": unexpected}
    return [f"{title}: {', '.join(names)}" for title, names in lists.items() if names] + misshapen


def _disagreement(shapes: Mapping[str, tuple[int, ...]], config: AtomformerConfig) -> str | None:
    """The fields of `config` that the tensors contradict, if other values of them explain every tensor."""
    wrong = {name: size for name, size in sizes_among(shapes).items() if size != getattr(config, name)}
    try:
        other = dataclasses.replace(config, **wrong)
    except ValueError:  # sizes from damaged tensors may be invalid
        return None
    if not wrong or _problems(shapes, other):
        return None
    fields = [f"{name} is {getattr(config, name)} but the weights have {size}" for name, size in wrong.items()]
    return f"the config disagrees with the weights: {', '.join(fields)}; correct it or take the weights it belongs to"
