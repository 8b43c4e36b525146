"""The compiled kernel that samples a batch of crystals (docs/formulas/crystalformer.md, section 4).

Each crystal is a lane, a row of the batch; all lanes sample the same token at the same time, five tokens per site.
Lanes of finished crystals are skipped, and the kernel stops when all crystals are finished. Random numbers depend only
on the key of the crystal, so the result does not depend on batches or devices.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from crystalformer.config import TransformerConfig
from crystalformer.data.crystals import Crystals
from crystalformer.network.parameters import TOKENS, Network
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
from crystalformer.sampling.constraints import Constraints
from crystalformer.sampling.decoding import (
    Cache,
    copy_lane,
    decode_token,
    empty_cache,
    fold_attention,
    grow_cache,
    map_groups,
)
from crystalformer.sampling.draws import (
    Temperature,
    draw_class,
    draw_coordinate,
    draw_lattice,
    project_coordinate,
)
from crystalformer.symmetry.wyckoff import symmetry_tables

# Numbers of sites at which the attention cache grows; the kernel has one loop per size.
STRETCHES = (2, 4, 6, 9, 13)


class PartialCrystals(NamedTuple):
    """Unfinished and finished crystals, one per lane, unfinished ones first; without the axis b, one crystal."""

    key: Key[Array, "*b"]
    index: Int[Array, "*b"]  # the crystal's index in the chunk
    crystal: Crystals
    row: Float[Array, "*b columns"]  # raw output of the network after the last token
    finished: Bool[Array, "*b"]


Sampler = Callable[..., Crystals]


def make_sampler(config: TransformerConfig, group_size: int) -> Sampler:
    """Returns the pure function `sampler(network, keys, G, requested, temperature, constraints) -> Crystals`.

    It samples a crystal in every requested lane and returns padding in the others. The number of lanes is a multiple
    of `group_size`.
    """

    def sampler(
        network: Network,
        keys: Key[Array, " b"],
        G: Int[Array, " b"],
        requested: Bool[Array, " b"],
        temperature: Temperature,
        constraints: Constraints,
    ) -> Crystals:
        network = fold_attention(network, config)
        add_token = make_add_token(network, temperature, constraints, config, group_size)
        lanes = _first_lanes(network, keys, G, requested, config)
        position, cache = jnp.zeros((), jnp.int32), empty_cache(len(G), 0, config)
        for sites in (*(sites for sites in STRETCHES if sites < config.n_max), config.n_max):
            stop = len(TOKENS) * sites
            state = position, lanes, grow_cache(cache, stop)
            position, lanes, cache = jax.lax.while_loop(_unfinished_before(stop), add_token, state)
        return jax.tree.map(lambda x: jnp.zeros_like(x).at[lanes.index].set(x), lanes.crystal)

    return sampler


def _first_lanes(network: Network, keys, G, requested, config: TransformerConfig) -> PartialCrystals:
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
    return PartialCrystals(keys, jnp.arange(num_lanes), crystal, row, ~requested)


State = tuple[Int[Array, ""], PartialCrystals, Cache]


def _unfinished_before(stop: int) -> Callable[[State], Bool[Array, ""]]:
    return lambda state: (state[0] < stop) & ~jnp.all(state[1].finished)


def make_add_token(
    network: Network, temperature: Temperature, constraints: Constraints, config: TransformerConfig, group_size: int
) -> Callable[[State], State]:
    """A function that samples the next token of every unfinished lane and evaluates the network on it."""
    settings = temperature, constraints, config
    draws = [functools.partial(draw, settings) for draw in (_draw_letter, _end_or_draw_element, _draw_coordinate)]
    embeddings = [functools.partial(_embed, network, token, config) for token in TOKENS]

    def add_token(state: State) -> State:
        position, lanes, cache = state
        site, token = position // len(TOKENS), position % len(TOKENS)

        def draw(lane: PartialCrystals) -> PartialCrystals:
            return jax.lax.switch(jnp.minimum(token, 2), draws, lane, site, token)

        # All lanes take the same branch, so the switch is not vmapped, and only one branch is computed.
        lanes = jax.vmap(draw)(lanes)
        lanes, cache = unfinished_first(lanes, cache)
        embed = jax.vmap(lambda crystal: jax.lax.switch(token, embeddings, crystal, site))
        x = map_groups(embed, lanes.crystal, group_size)
        num_groups = -(-jnp.sum(~lanes.finished) // group_size)
        row, cache = decode_token(network, cache, x, position, num_groups, group_size, config)
        return position + 1, lanes._replace(row=row), cache

    return add_token


def unfinished_first(lanes: PartialCrystals, cache: Cache) -> tuple[PartialCrystals, Cache]:
    """Moves unfinished lanes to the front, by swaps with finished lanes, whose cache is not kept."""
    lane = jnp.arange(lanes.finished.shape[0])
    in_front = lane < jnp.sum(~lanes.finished)
    holes, count = _positions(lanes.finished & in_front)
    movers, _ = _positions(~lanes.finished & ~in_front)
    order = lane.at[holes].set(movers, mode="drop").at[movers].set(holes, mode="drop")
    lanes = jax.tree.map(lambda x: x[order], lanes)
    return lanes, jax.lax.fori_loop(0, count, lambda i, cache: copy_lane(cache, movers[i], holes[i]), cache)


def _positions(mask: Bool[Array, " b"]) -> tuple[Int[Array, " b"], Int[Array, ""]]:
    """Indices where `mask` is True in increasing order, filled up with indices out of range, and their number."""
    (where,) = jnp.nonzero(mask, size=mask.shape[0], fill_value=mask.shape[0])
    return where, jnp.sum(mask)


def _embed(network: Network, token: str, config: TransformerConfig, crystal: Crystals, site) -> Float[Array, " d"]:
    """Embedding of one token of the site number `site` of a crystal."""
    G, W = crystal.G, crystal.W[site]
    if token == "W":
        return embed_letter(network, G, W, jnp.asarray(symmetry_tables().multiplicity)[G - 1, W])
    if token == "A":
        return embed_element(network, G, crystal.A[site])
    return embed_coordinate(network, token, G, crystal.XYZ[site, "XYZ".index(token)], config)


Settings = tuple[Temperature, Constraints, TransformerConfig]


def _draw_letter(
    settings: Settings, lane: PartialCrystals, site: Int[Array, ""], token: Int[Array, ""]
) -> PartialCrystals:
    """Samples the letter of a site, subject to the constraints; the last slot is always padding."""
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


def _end_or_draw_element(
    settings: Settings, lane: PartialCrystals, site: Int[Array, ""], token: Int[Array, ""]
) -> PartialCrystals:
    """Samples the element (an allowed one, or that of a tied site); after the padding letter, samples the lattice."""
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


def _draw_coordinate(
    settings: Settings, lane: PartialCrystals, site: Int[Array, ""], token: Int[Array, ""]
) -> PartialCrystals:
    """Samples a coordinate and projects it onto the Wyckoff position, which determines it if it is not free."""
    temperature, _, config = settings
    axis = token - TOKENS.index("X")
    G, W, XYZ = lane.crystal.G, lane.crystal.W[site], lane.crystal.XYZ
    mixture = read_coordinate(coordinate_columns(lane.row, config), config)
    point = XYZ[site].at[axis].set(draw_coordinate(_key(lane, site, token), mixture, temperature))
    value = jnp.where(W > 0, project_coordinate(G, W, point, axis), 0.0)
    return lane._replace(crystal=lane.crystal._replace(XYZ=XYZ.at[site, axis].set(value)))


def _key(lane: PartialCrystals, site: Int[Array, ""], token: Int[Array, ""]) -> PRNGKeyArray:
    return jax.random.fold_in(lane.key, len(TOKENS) * site + token)
