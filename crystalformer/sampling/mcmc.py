"""Refinement of sampled crystals by Markov chain Monte Carlo (docs/formulas/crystalformer.md, section 5).

Space group and letters are fixed. A move proposes an allowed element and shifted coordinates for one site and the sites
tied to it; it is accepted by the Metropolis rule for logp_w + logp_xyz + logp_a. Lattices are sampled anew at the end.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from crystalformer.config import TransformerConfig
from crystalformer.data.batches import bucket_lengths
from crystalformer.data.crystals import Crystals, check_crystals, num_slots, truncate
from crystalformer.loss import crystal_log_prob
from crystalformer.network import distributions
from crystalformer.network.parameters import Network, Params, as_network
from crystalformer.network.transformer import forward, read_lattice
from crystalformer.sampling.config import McmcConfig, SamplingConfig, check_temperature
from crystalformer.sampling.constraints import Constraints, make_constraints
from crystalformer.sampling.draws import Temperature, draw_lattice, project_coordinate
from crystalformer.symmetry.wyckoff import symmetry_tables
from matterform.config import named


class Refined(NamedTuple):
    """Crystals after the last sweep, and the numbers of accepted and proposed moves of real sites."""

    crystals: Crystals
    accepted: int
    proposed: int

    @property
    def acceptance(self) -> float:
        """Fraction of moves that were accepted."""
        return self.accepted / self.proposed


def refine(
    params: Params,
    config: TransformerConfig,
    key: PRNGKeyArray,
    crystals: Crystals,
    *,
    constraints: Constraints | None = None,
    temperature: float = SamplingConfig.temperature,
    batch_size: int = 64,
    first_index: int = 0,
    mcmc: McmcConfig | None = None,
    **options: Any,
) -> Refined:
    """Refines crystals in model units by `mcmc_sweeps` moves of every site.

    Crystal i depends only on `fold_in(key, first_index + i)`, so a long list may be refined in parts. Elements satisfy
    the constraints after the first sweep, even if those of the input do not.

    Args:
        constraints: returned by `make_constraints`.
        temperature: temperature of the Metropolis rule (eq. 19) and of the new lattice (eq. 17).
        batch_size: number of crystals refined at a time.
        first_index: index of the first crystal, if several calls refine parts of one set.
        mcmc: number of sweeps, and width of the shifts.
        options: fields of `McmcConfig`, which replace those of `mcmc`; `sweeps` and `width` for short.

    Raises:
        ValueError: the network cannot represent the crystals, or a count, width or temperature is out of range.
    """
    mcmc = dataclasses.replace(mcmc or McmcConfig(), **named(McmcConfig, options))
    crystals = Crystals(*(np.asarray(field) for field in crystals))
    _check_templates(crystals, config)
    check_temperature("temperature", temperature)
    if mcmc.mcmc_sweeps < 1:
        raise ValueError(f"mcmc_sweeps must be at least 1; got {mcmc.mcmc_sweeps}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    constraints = make_constraints(config) if constraints is None else constraints
    longest = num_slots(crystals).max()
    templates = truncate(crystals, min(n for n in bucket_lengths(config.n_max) if n >= longest))
    settings = constraints, np.int32(mcmc.mcmc_sweeps), np.float32(mcmc.mcmc_width), np.float32(temperature)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first_index + np.arange(len(crystals.G)))
    refine_batch = functools.partial(_compiled(config), params)
    refined, moves = _refine_batches(refine_batch, keys, templates, settings, batch_size)
    return Refined(_with_first_slots(crystals, refined), *map(int, moves))


def _refine_batches(
    refine_batch: Callable[..., tuple[Crystals, Any]],
    keys: Key[Array, " b"],
    templates: Crystals,
    settings: tuple[Any, ...],
    batch_size: int,
) -> tuple[Crystals, Float[np.ndarray, "2"]]:
    """Refines crystals in batches of equal size; returns them with the numbers of accepted and proposed moves."""
    batches, moves = [], np.zeros(2)
    for start in range(0, len(templates.G), batch_size):
        rows = np.arange(start, min(start + batch_size, len(templates.G)))
        filled = np.resize(rows, batch_size)
        refined, counts = refine_batch(
            keys[filled], jax.tree.map(lambda x, filled=filled: x[filled], templates), *settings
        )
        batches.append(jax.tree.map(lambda x, rows=rows: np.asarray(x)[: len(rows)], refined))
        moves += np.asarray(counts)[: len(rows)].sum(0)
    return Crystals(*(np.concatenate(fields) for fields in zip(*batches, strict=True))), moves


def _check_templates(crystals: Crystals, config: TransformerConfig) -> None:
    check_crystals(crystals, config)
    longest = int(num_slots(crystals).max(initial=0))
    if longest < 2:
        raise ValueError("crystals: expected sites to move; found none")
    if longest > config.n_max:
        raise ValueError(f"crystals: n_max is {config.n_max} in this network; the longest needs {longest} slots")


def _with_first_slots(crystals: Crystals, refined: Crystals) -> Crystals:
    """`crystals` with their first slots replaced by the refined ones; all later slots are padding."""
    n = refined.W.shape[1]
    XYZ, A = np.array(crystals.XYZ), np.array(crystals.A)
    XYZ[:, :n], A[:, :n] = refined.XYZ, refined.A
    return crystals._replace(L=refined.L, XYZ=XYZ, A=A)


@functools.cache
def _compiled(config: TransformerConfig):
    def refine_batch(params, keys, crystals, constraints, sweeps, width, temperature):
        network = as_network(params, config)
        return jax.vmap(
            lambda key, crystal: refine_crystal(network, key, crystal, constraints, sweeps, width, temperature, config)
        )(keys, crystals)

    return jax.jit(refine_batch)


def refine_crystal(
    network: Network,
    key: PRNGKeyArray,
    crystal: Crystals,
    constraints: Constraints,
    sweeps: Int[Array, ""],
    width: Float[Array, ""],
    temperature: Float[Array, ""],
    config: TransformerConfig,
) -> tuple[Crystals, Float[Array, "2"]]:
    """Refines one crystal by `sweeps` moves of each slot; counts accepted and proposed moves of real sites."""
    move_key, lattice_key = jax.random.split(key)
    slots = crystal.W.shape[0] - 1  # the last one is padding

    def energy(crystal: Crystals) -> Float[Array, ""]:
        log_prob = crystal_log_prob(network, None, crystal, config)
        return -(log_prob.w + log_prob.xyz + log_prob.a)

    def move(number: Int[Array, ""], state):
        crystal, current, counts = state
        sweep, site = number // slots, number % slots
        # Keys by sweep and site, not by move number: the amount of padding must not change the chain of a crystal.
        propose_key, accept_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(move_key, sweep), site))
        proposed = propose(propose_key, crystal, site, constraints, width, config)
        new = energy(proposed)
        real = crystal.W[site] > 0
        likely = jnp.log(jax.random.uniform(accept_key)) * temperature < current - new
        accepted = real & (likely | ~_keeps_constraints(crystal, site, constraints))
        crystal, current = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), (proposed, new), (crystal, current))
        return crystal, current, counts + jnp.stack([accepted, real]).astype(counts.dtype)

    start = crystal, energy(crystal), jnp.zeros(2)
    crystal, _, counts = jax.lax.fori_loop(0, sweeps * slots, move, start)
    return redraw_lattice(network, lattice_key, crystal, temperature, config), counts


def propose(
    key: PRNGKeyArray,
    crystal: Crystals,
    site: Int[Array, ""],
    constraints: Constraints,
    width: Float[Array, ""],
    config: TransformerConfig,
) -> Crystals:
    """Moves `site` and the sites tied to it (eq. 18): one allowed element for all, drawn uniformly; a shift for each.

    The proposal is symmetric: a shift and its opposite are equally likely. This remains true after the projection onto
    the Wyckoff position, because it is an affine map that does not move points of that position.
    """
    element_key, *shift_keys = jax.random.split(key, 4)
    n = crystal.W.shape[0]
    moved = _tied_to(site, constraints, n) & (crystal.W > 0)
    allowed = jnp.where(constraints.elements[site], 0.0, -jnp.inf)
    element = jax.random.categorical(element_key, allowed).astype(crystal.A.dtype)
    xyz = crystal.XYZ
    for axis in range(3):
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(shift_keys[axis], jnp.arange(n))
        angle = jax.vmap(lambda key: distributions.sample_von_mises(key, jnp.zeros(()), width**-2))(keys)
        xyz = xyz.at[:, axis].add(angle / (2 * np.pi))
    xyz = jax.vmap(lambda W, point: _project(crystal.G, W, point))(crystal.W, xyz)
    return crystal._replace(
        A=jnp.where(moved, element, crystal.A),
        XYZ=jnp.where(jnp.broadcast_to(moved[:, None], xyz.shape), xyz, crystal.XYZ),
    )


def _tied_to(site: Int[Array, ""], constraints: Constraints, n: int) -> Bool[Array, " n"]:
    """Mask of the sites that share their element with `site`, including `site`."""
    sites = jnp.arange(n)
    root = jnp.where(constraints.ties[:n] >= 0, constraints.ties[:n], sites)
    return root == root[site]


def _keeps_constraints(crystal: Crystals, site: Int[Array, ""], constraints: Constraints) -> Bool[Array, ""]:
    """Whether the sites tied to `site` all have the same, allowed element."""
    A, n = crystal.A, crystal.W.shape[0]
    moved = _tied_to(site, constraints, n) & (crystal.W > 0)
    return jnp.all(~moved | ((A[site] == A) & constraints.elements[site][A]))


def _project(G: Int[Array, ""], W: Int[Array, ""], point: Float[Array, "3"]) -> Float[Array, "3"]:
    return jnp.stack([project_coordinate(G, W, point, axis) for axis in range(3)])


def redraw_lattice(
    network: Network, key: PRNGKeyArray, crystal: Crystals, temperature: Float[Array, ""], config: TransformerConfig
) -> Crystals:
    """Replaces the lattice by a sample from the network, given all sites of the crystal."""
    M = jnp.asarray(symmetry_tables().multiplicity)[crystal.G - 1, crystal.W]
    h = forward(network, None, crystal.G, crystal.XYZ, crystal.A, crystal.W, M, config)
    mixture = read_lattice(h[5 * jnp.sum(crystal.W > 0) + 1], config)
    heat = Temperature(temperature, temperature, jnp.ones(()))
    return crystal._replace(L=draw_lattice(key, crystal.G, mixture, heat))
