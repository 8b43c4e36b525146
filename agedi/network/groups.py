"""Batches in groups that fit in a processor's cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

GROUP = 4


def in_groups(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of one structure, which under `vmap` on CPUs runs for a few structures at a time.

    What the network keeps of a whole batch does not fit in a cache, and to write it to memory and read it back takes
    longer than to compute it. For the same reason the backward pass computes a group anew instead of keeping it.
    Reverse derivatives exist only of the batch: for those of one structure, use `function` itself.
    """

    @jax.custom_batching.custom_vmap
    def grouped(*arguments: Any) -> Any:
        return function(*arguments)

    @grouped.def_vmap
    def rule(axis_size: int, in_batched: Any, *arguments: Any) -> tuple[Any, Any]:
        del axis_size
        leaves, tree = jax.tree.flatten(arguments)
        leaves = [jnp.asarray(leaf) for leaf in leaves]  # constants arrive as Python's numbers
        batched = jax.tree.leaves(in_batched)

        def single(rows: list[Any]) -> Any:
            row = iter(rows)
            return function(*tree.unflatten([next(row) if b else x for b, x in zip(batched, leaves, strict=True)]))

        rows = [x for b, x in zip(batched, leaves, strict=True) if b]
        if jax.default_backend() == "cpu":
            out = jax.lax.map(jax.checkpoint(single, prevent_cse=False), rows, batch_size=GROUP)
        else:
            out = jax.vmap(single)(rows)
        return out, jax.tree.map(lambda _: True, out)

    return grouped
