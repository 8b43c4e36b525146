"""Batches evaluated in groups that fit into a processor's cache.

On CPUs the network takes half as long in groups of 4 structures as on a whole batch of 64, and without recomputing a
group in the backward pass a gradient takes 1.5 times as long (benchmarks/cases/agedi_speed.py, benchmarks/README.md).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

GROUP = 4  # structures evaluated at a time on CPUs


def in_groups(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of one structure, which under `vmap` on CPUs is evaluated for `GROUP` structures at a time.

    Intermediate arrays of a whole batch do not fit into a cache, and writing them to memory and reading them back takes
    longer than computing them. For the same reason the backward pass recomputes a group instead of storing it
    (`jax.checkpoint`). On other devices the whole batch is evaluated at once.

    Reverse-mode derivatives are defined for the batch only: for those of one structure, differentiate `function`.
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
