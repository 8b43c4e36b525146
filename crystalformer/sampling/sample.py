"""Sampling of crystals (docs/formulas/crystalformer.md, section 4), in chunks over all local devices."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, Key, PRNGKeyArray

from crystalformer.config import TransformerConfig
from crystalformer.data.crystals import Crystals
from crystalformer.network.parameters import Params, as_network
from crystalformer.sampling.config import SamplingConfig
from crystalformer.sampling.constraints import Constraints, check_constraints, make_constraints
from crystalformer.sampling.decoding import cache_bytes
from crystalformer.sampling.draws import Temperature
from crystalformer.sampling.sampler import Sampler, make_sampler
from matterform.config import named
from matterform.training.mesh import DATA_AXIS, make_local_mesh

# Lanes computed together on CPUs; on other devices all lanes are one group, since smaller groups save no time there.
CPU_GROUP = 16
CHUNK_BYTES = 2**30  # size of the cache on each device, if no chunk size is given


def sample(
    params: Params,
    config: TransformerConfig,
    key: PRNGKeyArray,
    spacegroups: Int[np.ndarray, " b"],
    *,
    constraints: Constraints | None = None,
    first_index: int = 0,
    sampling: SamplingConfig | None = None,
    **options: Any,
) -> Crystals:
    """Samples one crystal for each entry of `spacegroups`, in model units, as NumPy arrays.

    Crystal i depends on `fold_in(key, first_index + i)` and on no other crystal.

    Args:
        spacegroups: space group numbers, 1 to 230.
        constraints: returned by `make_constraints`.
        first_index: index of the first crystal, if several calls or processes sample parts of one set.
        sampling: temperature, top_p and chunk size.
        options: fields of `SamplingConfig`, which replace those of `sampling`.

    Raises:
        ValueError: a space group or a setting is out of range, or a constraint cannot be met.
    """
    chunks = sample_chunks(
        params,
        config,
        key,
        spacegroups,
        constraints=constraints,
        first_index=first_index,
        sampling=sampling,
        **options,
    )
    return Crystals(*(np.concatenate(fields) for fields in zip(*chunks, strict=True)))


def sample_chunks(
    params: Params,
    config: TransformerConfig,
    key: PRNGKeyArray,
    spacegroups: Int[np.ndarray, " b"],
    *,
    constraints: Constraints | None = None,
    first_index: int = 0,
    sampling: SamplingConfig | None = None,
    **options: Any,
) -> Iterator[Crystals]:
    """Yields the crystals of `sample` chunk by chunk; the arguments are the same.

    Raises:
        ValueError: a space group or a setting is out of range, or a constraint cannot be met.
    """
    sampling = dataclasses.replace(sampling or SamplingConfig(), **named(SamplingConfig, options))
    spacegroups = np.asarray(spacegroups)
    check_spacegroups(spacegroups)
    constraints = make_constraints(config) if constraints is None else constraints
    check_constraints(constraints, spacegroups, config)
    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first_index + np.arange(len(spacegroups)))
    return _iterate_chunks(params, config, keys, spacegroups, constraints, sampling)


def _iterate_chunks(
    params: Params,
    config: TransformerConfig,
    keys: Key[Array, " b"],
    spacegroups: Int[np.ndarray, " b"],
    constraints: Constraints,
    sampling: SamplingConfig,
) -> Iterator[Crystals]:
    mesh = make_local_mesh()
    chunk_size = sampling.batch_size or max(1, CHUNK_BYTES // cache_bytes(config)) * mesh.size
    chunk_size = min(chunk_size, len(spacegroups))
    per_device = -(-chunk_size // mesh.size)
    group_size = CPU_GROUP if jax.default_backend() == "cpu" else per_device
    num_lanes = -(-per_device // group_size) * group_size * mesh.size
    kernel = _compiled(config, group_size, mesh)
    T1 = sampling.temperature if sampling.T1 is None else sampling.T1
    temperature = Temperature(*(jnp.float32(value) for value in (sampling.temperature, T1, sampling.top_p)))
    for start in range(0, len(spacegroups), chunk_size):
        rows = np.arange(start, start + num_lanes)
        used = rows < min(start + chunk_size, len(spacegroups))
        rows = np.where(used, rows, 0)
        crystals = kernel(params, keys[rows], spacegroups[rows].astype(np.int32), used, temperature, constraints)
        yield jax.tree.map(lambda x, used=used: np.asarray(x)[used], crystals)


@functools.cache
def _compiled(config: TransformerConfig, group_size: int, mesh: Mesh) -> Sampler:
    """The compiled sampler for all local devices, as a function of the published parameters."""
    sampler = make_sampler(config, group_size)
    by_lanes, everywhere = PartitionSpec(DATA_AXIS), PartitionSpec()
    return jax.jit(
        jax.shard_map(
            lambda params, *rest: sampler(as_network(params, config), *rest),
            mesh=mesh,
            in_specs=(everywhere, by_lanes, by_lanes, by_lanes, everywhere, everywhere),
            out_specs=by_lanes,
            check_vma=False,
        )
    )


def check_spacegroups(spacegroups: np.ndarray) -> None:
    """Checks that `spacegroups` is a list of space group numbers.

    Raises:
        ValueError: the list is empty or not of integers, or a number is not in 1..230.
    """
    if spacegroups.ndim != 1 or not len(spacegroups) or spacegroups.dtype.kind not in "iu":
        raise ValueError(
            f"spacegroups must be a list of one or more integers; got shape {spacegroups.shape}, {spacegroups.dtype}"
        )
    wrong = spacegroups[(spacegroups < 1) | (spacegroups > 230)]
    if len(wrong):
        raise ValueError(f"spacegroups must lie in 1..230; got {wrong[0]}")
