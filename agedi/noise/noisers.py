"""Forward processes of positions and species, and their priors.

Equation numbers are those of docs/formulas/agedi.md.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from agedi.config import DiffusionConfig, diffuses_types, position_noiser
from agedi.data.graph import AtomsGraph, free_atoms
from agedi.noise.kernels import (
    LatticeSums,
    atom_normal,
    atom_uniform,
    draw_truncated,
    dual_vectors,
    reflect,
    reflected_normal,
    wrapped_normal,
)
from agedi.noise.sdes import Sde, make_level, make_sde, noise_level
from matterform.cell import wrap

Positions = Float[Array, "n 3"]


class Space(NamedTuple):
    """The space of positions (Å), as functions. Rows of fixed atoms and padding are undefined in their results."""

    prior: Callable[[PRNGKeyArray, AtomsGraph], Positions]  # positions at t = 1
    normal: Callable[[PRNGKeyArray, AtomsGraph], Positions]  # one unit of noise
    tangent: Callable[[AtomsGraph, Positions], Positions]  # projection of vectors onto the tangent space
    perturb: Callable[[PRNGKeyArray, AtomsGraph, Positions, Array], Positions]  # (key, graph, mean, std) -> x_t
    noise: Callable[[AtomsGraph, Positions, Positions, Array], Positions]  # (graph, x_t, mean, std) -> expected noise
    project: Callable[[AtomsGraph, Positions], Positions]  # back into the cell, between the walls
    origin: Callable[[AtomsGraph], Float[Array, "3"]]  # the point towards which the mean of the process shrinks


class PositionNoiser(NamedTuple):
    """A forward process and the space it runs in."""

    sde: Sde
    space: Space
    level: Callable[[Array], Array]  # noise level -> input of the network, eq. 4


def make_position_noiser(config: DiffusionConfig, sums: LatticeSums | None = None) -> PositionNoiser | None:
    """The noiser of positions in a config, if any; training needs the lattice `sums` of its cells.

    Raises:
        ValueError: sigma_max is not set.
    """
    name = position_noiser(config)
    if name is None:
        return None
    sde = make_sde(config)
    level = make_level(sde)
    largest = noise_level(sde, jnp.float32(1.0)) if config.sde == "ve" else sde.std(jnp.float32(1.0))
    sums = sums or LatticeSums((0, 0, 0), (0, 0, 0))
    makers = {"Positions": make_open_space, "CellPositions": make_torus, "ConfinedCellPositions": make_slab}
    space = makers[name](largest, sums, config)
    return PositionNoiser(sde, space, level)


def make_open_space(largest: Array, sums: LatticeSums, config: DiffusionConfig) -> Space:
    """Molecules: noise that does not move the center of mass, unless there are fixed atoms (eq. 12)."""

    def centred(graph: AtomsGraph, vectors: Positions) -> Positions:
        held = jnp.any(graph.mask & graph.present)
        return vectors - jnp.where(held, 0.0, _mean(vectors, graph.present))[None]

    def normal(key: PRNGKeyArray, graph: AtomsGraph) -> Positions:
        return centred(graph, atom_normal(key, graph.x.shape[0]))

    return Space(
        prior=lambda key, graph: origin_of(graph)[None] + largest * normal(key, graph),
        normal=normal,
        tangent=centred,
        perturb=lambda key, graph, mean, std: mean + std * normal(key, graph),
        noise=lambda graph, pos, mean, std: centred(graph, pos - mean) / std,
        project=lambda graph, pos: pos,
        origin=origin_of,
    )


def make_torus(largest: Array, sums: LatticeSums, config: DiffusionConfig) -> Space:
    """Crystals: wrapped normal noise in periodic directions, normal in others (eq. 6); uniform in the cell at t = 1."""

    def prior(key: PRNGKeyArray, graph: AtomsGraph) -> Positions:
        uniform_key, normal_key = jax.random.split(key)
        count = graph.x.shape[0]
        within = atom_uniform(uniform_key, count) @ graph.cell
        held = jnp.any(graph.mask & graph.present)
        centre = jnp.where(held, origin_of(graph), _mean(within, graph.present))
        around = centre[None] + largest * atom_normal(normal_key, count)
        return wrap(jnp.where(jnp.all(graph.pbc), within, _open_part(graph, around, within)), graph.cell, graph.pbc)

    return Space(
        prior=prior,
        normal=_plain_normal,
        tangent=_unchanged,
        perturb=lambda key, graph, mean, std: mean + std * _plain_normal(key, graph),
        noise=lambda graph, pos, mean, std: wrapped_normal(pos - mean, std, graph.cell, graph.pbc, sums)[1],
        project=lambda graph, pos: wrap(pos, graph.cell, graph.pbc),
        origin=lambda graph: jnp.zeros(3),
    )


def make_slab(largest: Array, sums: LatticeSums, config: DiffusionConfig) -> Space:
    """Surfaces: a torus in the plane, reflecting walls at z_min and z_max (eq. 9); uniform between them at t = 1.

    Lattice vectors a and b must lie in the plane, which `agedi.checks.check_cell` checks. With walls "truncated" the
    forward noise is a truncated normal (eq. 11), whose reverse process is only approximate.
    """

    def in_plane(graph: AtomsGraph) -> Bool[Array, "3"]:
        return graph.pbc & np.array([True, True, False])

    def walls(graph: AtomsGraph) -> tuple[Array, Array]:
        return graph.confinement[0], graph.confinement[1]

    def prior(key: PRNGKeyArray, graph: AtomsGraph) -> Positions:
        low, high = walls(graph)
        uniform = atom_uniform(key, graph.x.shape[0])
        flat = uniform[:, :2] @ graph.cell[:2]
        return jnp.concatenate([flat[:, :2], low + (high - low) * uniform[:, 2:]], axis=-1)

    def perturb(key: PRNGKeyArray, graph: AtomsGraph, mean: Positions, std: Array) -> Positions:
        plane_key, height_key = jax.random.split(key)
        moved = mean + std * _plain_normal(plane_key, graph)
        low, high = walls(graph)
        if config.walls == "reflected":
            return moved.at[:, 2].set(reflect(moved[:, 2], low, high))
        uniform = atom_uniform(height_key, mean.shape[0], 1)[:, 0]
        return moved.at[:, 2].set(draw_truncated(uniform, jnp.clip(mean[:, 2], low, high), std, low, high))

    def noise(graph: AtomsGraph, pos: Positions, mean: Positions, std: Array) -> Positions:
        _, flat = wrapped_normal(pos - mean, std, graph.cell, in_plane(graph), sums)
        if config.walls == "truncated":
            return flat
        return flat.at[:, 2].set(reflected_normal(pos[:, 2], mean[:, 2], std, *walls(graph))[1])

    def project(graph: AtomsGraph, pos: Positions) -> Positions:
        pos = wrap(pos, graph.cell, in_plane(graph))
        return pos.at[:, 2].set(reflect(pos[:, 2], *walls(graph)))

    return Space(prior, _plain_normal, _unchanged, perturb, noise, project, origin=lambda graph: jnp.zeros(3))


def choose_sigma_max(
    cells: Float[np.ndarray, "b 3 3"], pbcs: Bool[np.ndarray, "b 3"], width: float | None = None
) -> float:
    """The noise (Å) that makes every structure uniform in its cell, to a total variation distance below 1 % (eq. 8).

    Along an axis of spacing h the wrapped normal differs from the uniform density by 2 exp(-2 pi^2 sigma^2 / h^2)
    cos(2 pi x / h) and much smaller terms, so the distance of one coordinate is (2 / pi) exp(-2 pi^2 (sigma / h)^2),
    and at sigma = h / 2 0.5 %; between mirrors at distance `width` the period h is twice the width.
    """
    spacings = [0.0 if width is None else 2 * width]
    for cell, pbc in zip(np.asarray(cells, float), np.asarray(pbcs, bool), strict=True):
        if pbc.any():
            spacings.append(float(np.max(1 / np.linalg.norm(np.linalg.pinv(cell[pbc]), axis=0))))
    return max(spacings) / 2


def absorb(key: PRNGKeyArray, x: Int[Array, " n"], share: Array) -> Int[Array, " n"]:
    """Each species becomes the absorbing state 0 with probability `share` (eq. 13)."""
    return jnp.where(atom_uniform(key, x.shape[0], 1)[:, 0] < share, 0, x)


def reveal(
    key: PRNGKeyArray,
    x: Int[Array, " n"],
    log_probs: Float[Array, "n k"],
    species: Int[np.ndarray, " k"],
    share: Array,
    remaining: Int[Array, " k"] | None = None,
) -> tuple[Int[Array, " n"], Int[Array, " k"] | None]:
    """Each absorbed atom becomes one of `species` with probability `share`, sampled from its `log_probs` (eq. 15).

    With `remaining`, the number of atoms left of each species, atoms are revealed one after another, each as one of the
    species left. Returns the new species and the numbers left.
    """
    when_key, what_key = jax.random.split(key)
    count = x.shape[0]
    revealed = (x == 0) & (atom_uniform(when_key, count, 1)[:, 0] < share)
    gumbel = -jnp.log(-jnp.log(jnp.clip(atom_uniform(what_key, count, len(species)), 1e-20, 1 - 1e-7)))
    scores = log_probs + gumbel
    if remaining is None:
        return jnp.where(revealed, jnp.asarray(species)[jnp.argmax(scores, axis=-1)], x), None

    def draw(left: Int[Array, " k"], atom: tuple[Array, Array]) -> tuple[Int[Array, " k"], Int[Array, ""]]:
        score, now = atom
        choice = jnp.argmax(jnp.where(left > 0, score, -jnp.inf))
        return left - now * jax.nn.one_hot(choice, len(species), dtype=left.dtype), choice

    left, choices = jax.lax.scan(draw, remaining, (scores, revealed))
    return jnp.where(revealed, jnp.asarray(species)[choices], x), left


class Noised(NamedTuple):
    """A structure at a diffusion time, and the targets of the network."""

    graph: AtomsGraph
    levels: Float[Array, " l"]
    noise: Positions | None  # of free atoms; 0 for the others
    absorbed: Bool[Array, " n"]  # free atoms whose species is hidden


Perturb = Callable[[PRNGKeyArray, AtomsGraph, Array], Noised]


def make_levels(config: DiffusionConfig, noiser: PositionNoiser | None) -> Callable[[Array, Array], Float[Array, " l"]]:
    """Returns `levels(noise_level, t)`: one input of the network per noiser, in the order of the config."""
    names = config.noisers

    def levels(noise: Array, t: Array) -> Float[Array, " l"]:
        return jnp.stack([2 * t - 1 if noiser is None or name == "Types" else noiser.level(noise) for name in names])

    return levels


def make_perturb(config: DiffusionConfig, sums: LatticeSums | None = None) -> Perturb:
    """Returns the joint forward process `perturb(key, graph, t)`; `sums` are needed if cells are periodic.

    Raises:
        ValueError: sigma_max is not set.
    """
    noiser = make_position_noiser(config, sums)
    levels = make_levels(config, noiser)
    with_types = diffuses_types(config)

    def perturb(key: PRNGKeyArray, graph: AtomsGraph, t: Array) -> Noised:
        position_key, type_key = jax.random.split(key)
        free = free_atoms(graph)
        noised, noise, level = graph, None, jnp.zeros(())
        if noiser is not None:
            sde, space = noiser.sde, noiser.space
            level = noise_level(sde, t)
            origin = space.origin(graph)[None]
            mean, std = origin + sde.mean(t) * (graph.pos - origin), sde.std(t)
            pos = space.perturb(position_key, graph, mean, std)
            noise = jnp.where(free[:, None], space.noise(graph, pos, mean, std), 0.0)
            noised = noised._replace(pos=jnp.where(free[:, None], space.project(graph, pos), graph.pos))
        if with_types:
            noised = noised._replace(x=jnp.where(free, absorb(type_key, graph.x, t), graph.x))
        return Noised(noised, levels(level, t), noise, free & (noised.x == 0))

    return perturb


def origin_of(graph: AtomsGraph) -> Float[Array, "3"]:
    """The mean position of the fixed atoms, or else of all."""
    held = graph.mask & graph.present
    return _mean(graph.pos, jnp.where(jnp.any(held), held, graph.present))


def _mean(vectors: Positions, which: Bool[Array, " n"]) -> Float[Array, "3"]:
    return jnp.sum(jnp.where(which[:, None], vectors, 0.0), axis=0) / jnp.maximum(jnp.sum(which), 1)


def _plain_normal(key: PRNGKeyArray, graph: AtomsGraph) -> Positions:
    return atom_normal(key, graph.x.shape[0])


def _unchanged(graph: AtomsGraph, vectors: Positions) -> Positions:
    return vectors


def _open_part(graph: AtomsGraph, around: Positions, within: Positions) -> Positions:
    """Positions uniform along periodic vectors and normal across them."""
    periodic = jnp.where(graph.pbc[:, None], graph.cell, 0.0)
    projector = dual_vectors(graph.cell, graph.pbc).T @ periodic
    return within @ projector + around @ (jnp.eye(3) - projector)
