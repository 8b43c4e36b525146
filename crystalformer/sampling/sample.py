"""Sampling crystals site by site (spec section 5).

One compiled kernel draws a chunk of crystals in lanes that move in step, five tokens a site. A lane whose crystal has
ended makes room, and the kernel stops when all have ended. Every draw depends on the crystal's own key alone, so the
result does not depend on chunks or devices.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from crystalformer.config import TransformerConfig
from crystalformer.data.crystals import Crystals
from crystalformer.network.parameters import TOKENS, Network, Params, as_network
from crystalformer.network.transformer import (
    FORBIDDEN,
    coordinate_columns,
    element_log_probs,
    embed_coordinate,
    embed_element,
    embed_letter,
    first_letter_log_probs,
    lattice_columns,
    next_letter_log_probs,
    read_coordinate,
    read_lattice,
)
from crystalformer.sampling.constraints import Constraints, check_constraints, make_constraints
from crystalformer.sampling.decoding import (
    Cache,
    cache_bytes,
    copy_lane,
    decode_token,
    empty_cache,
    fold_attention,
    grow_cache,
    map_groups,
)
from crystalformer.sampling.draws import (
    Temperature,
    check_temperature,
    draw_class,
    draw_coordinate,
    draw_lattice,
    project_coordinate,
)
from crystalformer.symmetry.wyckoff import symmetry_tables
from matterform.training.mesh import DATA_AXIS, make_local_mesh

# Sites after which the cache that attention reads grows; each stretch is compiled once.
STRETCHES = (2, 4, 6, 9, 13)
# Lanes computed together on CPUs, where less work is less time; elsewhere all lanes of a device are one group.
CPU_GROUP = 16
CHUNK_BYTES = 2**30  # of cache on each device, unless a chunk size is given


class Lanes(NamedTuple):
    """The crystals being drawn, one a lane, unfinished ones in front; without the axis b, one of them."""

    key: Key[Array, "*b"]
    index: Int[Array, "*b"]  # the crystal's place in the chunk
    crystal: Crystals
    row: Float[Array, "*b columns"]  # raw output of the network after the last token
    finished: Bool[Array, "*b"]


Sampler = Callable[..., Crystals]


def sample(
    params: Params,
    config: TransformerConfig,
    key: PRNGKeyArray,
    spacegroups: Int[np.ndarray, " b"],
    *,
    temperature: float = 1.0,
    T1: float | None = None,
    top_p: float = 1.0,
    constraints: Constraints | None = None,
    chunk_size: int | None = None,
    first_index: int = 0,
) -> Crystals:
    """Draws one crystal for each entry of `spacegroups`, in model units, as NumPy arrays.

    Crystal i depends on `fold_in(key, first_index + i)` and on nothing else that is drawn.

    Args:
        temperature: divides logits and concentrations, and its root multiplies the widths of the lattice.
        T1: temperature of the first site's element; default as the rest.
        top_p: probability above which less likely letters, elements and mixture components are left out.
        constraints: what `make_constraints` returned.
        chunk_size: crystals drawn at a time; the default fits 1 GiB of cache on each device.
        first_index: of the first crystal, where several calls or processes draw parts of one set.

    Raises:
        ValueError: for a space group, temperature or constraint that cannot be met.
    """
    chunks = sample_chunks(
        params,
        config,
        key,
        spacegroups,
        temperature=temperature,
        T1=T1,
        top_p=top_p,
        constraints=constraints,
        chunk_size=chunk_size,
        first_index=first_index,
    )
    return Crystals(*(np.concatenate(fields) for fields in zip(*chunks, strict=True)))


def sample_chunks(
    params: Params,
    config: TransformerConfig,
    key: PRNGKeyArray,
    spacegroups: Int[np.ndarray, " b"],
    *,
    temperature: float = 1.0,
    T1: float | None = None,
    top_p: float = 1.0,
    constraints: Constraints | None = None,
    chunk_size: int | None = None,
    first_index: int = 0,
) -> Iterator[Crystals]:
    """`sample`, chunk after chunk as they are drawn."""
    spacegroups = np.asarray(spacegroups)
    constraints = make_constraints(config) if constraints is None else constraints
    T1 = temperature if T1 is None else T1
    _check_request(spacegroups, temperature, T1, top_p, chunk_size)
    check_constraints(constraints, spacegroups, config)
    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    return _draw_chunks(
        params,
        config,
        key,
        spacegroups,
        Temperature(*(jnp.float32(value) for value in (temperature, T1, top_p))),
        constraints,
        chunk_size,
        first_index,
    )


def _draw_chunks(
    params, config, key, spacegroups, temperature, constraints, chunk_size, first_index
) -> Iterator[Crystals]:
    mesh = make_local_mesh()
    wanted = chunk_size or max(1, CHUNK_BYTES // cache_bytes(config)) * mesh.size
    wanted = min(wanted, len(spacegroups))
    on_cpu = jax.default_backend() == "cpu"
    per_device = -(-wanted // mesh.size)
    group_size = CPU_GROUP if on_cpu else per_device
    num_lanes = -(-per_device // group_size) * group_size * mesh.size
    kernel = _compiled(config, group_size, mesh)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first_index + np.arange(len(spacegroups)))
    for start in range(0, len(spacegroups), wanted):
        rows = np.arange(start, start + num_lanes)
        used = rows < min(start + wanted, len(spacegroups))
        rows = np.where(used, rows, 0)
        crystals = kernel(params, keys[rows], spacegroups[rows].astype(np.int32), used, temperature, constraints)
        yield jax.tree.map(lambda x, used=used: np.asarray(x)[used], crystals)


@functools.cache
def _compiled(config: TransformerConfig, group_size: int, mesh: Mesh) -> Sampler:
    """The kernel over all local devices; parameters are in the published tree."""
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


def _check_request(spacegroups, temperature: float, T1: float, top_p: float, chunk_size: int | None) -> None:
    if spacegroups.ndim != 1 or not len(spacegroups) or spacegroups.dtype.kind not in "iu":
        raise ValueError(
            f"spacegroups must be a list of one or more integers; got shape {spacegroups.shape}, {spacegroups.dtype}"
        )
    wrong = spacegroups[(spacegroups < 1) | (spacegroups > 230)]
    if len(wrong):
        raise ValueError(f"spacegroups must lie in 1..230; got {wrong[0]}")
    check_temperature("temperature", temperature)
    check_temperature("T1", T1)
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p must lie in [0, 1]; got {top_p}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1; got {chunk_size}")


def make_sampler(config: TransformerConfig, group_size: int) -> Sampler:
    """The pure function `sampler(network, keys, G, wanted, temperature, constraints) -> Crystals`, to be compiled.

    It draws a crystal in every wanted lane; others come out as padding. The number of lanes is a multiple of
    `group_size`.
    """

    def sampler(
        network: Network,
        keys: Key[Array, " b"],
        G: Int[Array, " b"],
        wanted: Bool[Array, " b"],
        temperature: Temperature,
        constraints: Constraints,
    ) -> Crystals:
        network = fold_attention(network, config)
        add_token = make_add_token(network, temperature, constraints, config, group_size)
        lanes = _first_lanes(network, keys, G, wanted, config)
        position, cache = jnp.zeros((), jnp.int32), empty_cache(len(G), 0, config)
        for sites in (*(sites for sites in STRETCHES if sites < config.n_max), config.n_max):
            stop = len(TOKENS) * sites
            state = position, lanes, grow_cache(cache, stop)
            position, lanes, cache = jax.lax.while_loop(_unfinished_before(stop), add_token, state)
        return jax.tree.map(lambda x: jnp.zeros_like(x).at[lanes.index].set(x), lanes.crystal)

    return sampler


def _first_lanes(network: Network, keys, G, wanted, config: TransformerConfig) -> Lanes:
    num_lanes, n = G.shape[0], config.n_max
    crystal = Crystals(
        G=G,
        L=jnp.zeros((num_lanes, 6)),
        XYZ=jnp.zeros((num_lanes, n, 3)),
        A=jnp.zeros((num_lanes, n), jnp.int32),
        W=jnp.zeros((num_lanes, n), jnp.int32),
    )
    letters = jax.vmap(lambda G: first_letter_log_probs(network, G, config))(G)
    row = jnp.pad(letters, [(0, 0), (0, config.output_size - config.wyck_types)])
    return Lanes(keys, jnp.arange(num_lanes), crystal, row, ~wanted)


State = tuple[Int[Array, ""], Lanes, Cache]


def _unfinished_before(stop: int) -> Callable[[State], Bool[Array, ""]]:
    return lambda state: (state[0] < stop) & ~jnp.all(state[1].finished)


def make_add_token(
    network: Network, temperature: Temperature, constraints: Constraints, config: TransformerConfig, group_size: int
) -> Callable[[State], State]:
    """The function that draws the next token of every unfinished lane and feeds it to the network."""
    settings = temperature, constraints, config
    draws = [functools.partial(draw, settings) for draw in (_draw_letter, _end_or_draw_element, _draw_coordinate)]
    embeddings = [functools.partial(_embed, network, token, config) for token in TOKENS]

    def add_token(state: State) -> State:
        position, lanes, cache = state
        site, token = position // len(TOKENS), position % len(TOKENS)

        def draw(lane: Lanes) -> Lanes:
            return jax.lax.switch(jnp.minimum(token, 2), draws, lane, site, token)

        # All lanes take the same branch, so the choice is not mapped: one branch is computed, not all of them.
        lanes = jax.vmap(draw)(lanes)
        lanes, cache = unfinished_first(lanes, cache)
        embed = jax.vmap(lambda crystal: jax.lax.switch(token, embeddings, crystal, site))
        x = map_groups(embed, lanes.crystal, group_size)
        num_groups = -(-jnp.sum(~lanes.finished) // group_size)
        row, cache = decode_token(network, cache, x, position, num_groups, group_size, config)
        return position + 1, lanes._replace(row=row), cache

    return add_token


def unfinished_first(lanes: Lanes, cache: Cache) -> tuple[Lanes, Cache]:
    """Swaps finished lanes in front with unfinished ones behind them; only the latter take their cache along."""
    lane = jnp.arange(lanes.finished.shape[0])
    in_front = lane < jnp.sum(~lanes.finished)
    holes, count = _positions(lanes.finished & in_front)
    movers, _ = _positions(~lanes.finished & ~in_front)
    order = lane.at[holes].set(movers, mode="drop").at[movers].set(holes, mode="drop")
    lanes = jax.tree.map(lambda x: x[order], lanes)
    return lanes, jax.lax.fori_loop(0, count, lambda i, cache: copy_lane(cache, movers[i], holes[i]), cache)


def _positions(mask: Bool[Array, " b"]) -> tuple[Int[Array, " b"], Int[Array, ""]]:
    """Where `mask` is True, in increasing order, then entries beyond the end; and how many there are."""
    (where,) = jnp.nonzero(mask, size=mask.shape[0], fill_value=mask.shape[0])
    return where, jnp.sum(mask)


def _embed(network: Network, token: str, config: TransformerConfig, crystal: Crystals, site) -> Float[Array, " d"]:
    """The token of one crystal's site `site`."""
    G, W = crystal.G, crystal.W[site]
    if token == "W":
        return embed_letter(network, G, W, jnp.asarray(symmetry_tables().multiplicity)[G - 1, W])
    if token == "A":
        return embed_element(network, G, crystal.A[site])
    return embed_coordinate(network, token, G, crystal.XYZ[site, "XYZ".index(token)], config)


Settings = tuple[Temperature, Constraints, TransformerConfig]


def _draw_letter(settings: Settings, lane: Lanes, site: Int[Array, ""], token: Int[Array, ""]) -> Lanes:
    """The site's letter: by the network's rules, the constraints, and padding in the last slot."""
    temperature, constraints, config = settings
    G, W = lane.crystal.G, lane.crystal.W
    first = lane.row[: config.wyck_types]
    log_probs = jnp.where(site == 0, first, next_letter_log_probs(lane.row, G, W[site - 1], config))
    letter = jnp.arange(config.wyck_types)
    forced = jnp.where(site == config.n_max - 1, 0, constraints.letters[site])
    log_probs = jnp.where((forced < 0) | (letter == forced), log_probs, FORBIDDEN)
    drawn = draw_class(_key(lane, site, token), log_probs, temperature.every, temperature.top_p)
    drawn = jnp.where(lane.finished, 0, drawn)
    return lane._replace(crystal=lane.crystal._replace(W=W.at[site].set(drawn)))


def _end_or_draw_element(settings: Settings, lane: Lanes, site: Int[Array, ""], token: Int[Array, ""]) -> Lanes:
    """After a letter: the element, among those allowed there or that of a tied site. After padding: the lattice."""
    temperature, constraints, config = settings
    crystal, W = lane.crystal, lane.crystal.W[site]
    element_key, lattice_key = jax.random.split(_key(lane, site, token))
    element = jnp.arange(config.atom_types)
    tie = constraints.ties[site]
    allowed = jnp.where(tie >= 0, element == crystal.A[tie], constraints.elements[site])
    log_probs = jnp.where(allowed | (W == 0), element_log_probs(lane.row, W, config), FORBIDDEN)
    heat = jnp.where(site == 0, temperature.first_element, temperature.every)
    drawn = draw_class(element_key, log_probs, heat, temperature.top_p)
    ends = (W == 0) & ~lane.finished
    mixture = read_lattice(jnp.concatenate([log_probs, lattice_columns(lane.row, config)]), config)
    L = jnp.where(ends, draw_lattice(lattice_key, crystal.G, mixture, temperature), crystal.L)
    crystal = crystal._replace(A=crystal.A.at[site].set(drawn), L=L)
    return lane._replace(crystal=crystal, finished=lane.finished | ends)


def _draw_coordinate(settings: Settings, lane: Lanes, site: Int[Array, ""], token: Int[Array, ""]) -> Lanes:
    """A coordinate, drawn, then projected onto the Wyckoff position, which fixes it where it is not free."""
    temperature, _, config = settings
    axis = token - TOKENS.index("X")
    G, W, XYZ = lane.crystal.G, lane.crystal.W[site], lane.crystal.XYZ
    mixture = read_coordinate(coordinate_columns(lane.row, config), config)
    point = XYZ[site].at[axis].set(draw_coordinate(_key(lane, site, token), mixture, temperature))
    value = jnp.where(W > 0, project_coordinate(G, W, point, axis), 0.0)
    return lane._replace(crystal=lane.crystal._replace(XYZ=XYZ.at[site, axis].set(value)))


def _key(lane: Lanes, site: Int[Array, ""], token: Int[Array, ""]) -> PRNGKeyArray:
    return jax.random.fold_in(lane.key, len(TOKENS) * site + token)
