"""Noise kernels on a torus and between walls: samples, log-densities, and the targets of a score model.

The target is -std times the gradient of the log-density: the expected unit-variance noise, given the displacement
(eq. 5 of docs/formulas/agedi.md, whose equation numbers are used below).
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, ndtri
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from matterform.cell import complete, inverse, volume

Counts = tuple[int, int, int]
# std over the largest spacing below which a wrapped normal is summed over images, and above which over waves.
SWITCH = 0.3
IMAGE_EXPONENT = 28.0  # images with a squared distance above the nearest one's by this many variances are left out
WAVE_EXPONENT = 14.0  # waves damped by more than exp(-this) are left out


class LatticeSums(NamedTuple):
    """Number of images and of waves each way along the three axes that a wrapped normal is summed over."""

    images: Counts
    waves: Counts


def atom_normal(key: PRNGKeyArray, count: int) -> Float[Array, "n 3"]:
    """Standard normal numbers with one key per atom, so that padding does not change them."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(count))
    return jax.vmap(lambda atom: jax.random.normal(atom, (3,)))(keys)


def atom_uniform(key: PRNGKeyArray, count: int, width: int = 3) -> Float[Array, "n w"]:
    """Uniform numbers in [0, 1) with one key per atom."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(count))
    return jax.vmap(lambda atom: jax.random.uniform(atom, (width,)))(keys)


def dual_vectors(cell: Float[Array, "3 3"], pbc: Bool[Array, "3"]) -> Float[Array, "3 3"]:
    """Rows d_k with d_k . a_l = 1 where k = l, else 0, within the span of the periodic vectors; 0 for the others."""
    return jnp.where(pbc[:, None], inverse(complete(cell, pbc)).T, 0.0)


def lattice_sums(cells: Float[np.ndarray, "b 3 3"], pbcs: Bool[np.ndarray, "b 3"]) -> LatticeSums:
    """Ranges of the sums that keep the error of densities and scores below 1e-5 in all these cells (Å); on the host."""
    images, waves = np.zeros(3, int), np.zeros(3, int)
    for cell, pbc in zip(np.asarray(cells, float), np.asarray(pbcs, bool), strict=True):
        if not pbc.any():
            continue
        periodic = cell[pbc]
        heights, lengths = 1 / np.linalg.norm(np.linalg.pinv(periodic), axis=0), np.linalg.norm(periodic, axis=1)
        switch = SWITCH * heights.max()
        # No point of the centred cell is farther from the origin than half the sum of its vectors' lengths.
        reach = np.sqrt(np.sum(lengths) ** 2 / 4 + IMAGE_EXPONENT * switch**2)
        images[pbc] = np.maximum(images[pbc], np.floor(reach / heights + 0.5))
        waves[pbc] = np.maximum(waves[pbc], np.floor(np.sqrt(2 * WAVE_EXPONENT) / switch * lengths / (2 * np.pi)))
    return LatticeSums(*(tuple(counts.tolist()) for counts in (images, waves)))


def wrapped_normal(
    displacements: Float[Array, "n 3"],
    std: Float[Array, ""],
    cell: Float[Array, "3 3"],
    pbc: Bool[Array, "3"],
    sums: LatticeSums,
) -> tuple[Float[Array, " n"], Float[Array, "n 3"]]:
    """Log-density (1/Å^3) of wrapped normal displacements (Å), and the expected noise.

    For small std it is the sum over images (eq. 6), for large std its Fourier series (eq. 7). Directions without
    periodicity are normal.
    """
    dual = dual_vectors(cell, pbc)
    centred = displacements - jnp.round(displacements @ dual.T) @ cell
    spacing = jnp.max(jnp.where(pbc, 1 / jnp.maximum(jnp.linalg.norm(dual, axis=-1), 1e-12), 0.0))
    # Both sums are computed, each at a std where it converges.
    periodic = jnp.any(pbc)
    blurred = periodic & (std > SWITCH * spacing)
    by_images = _sum_over_images(centred, jnp.where(blurred, SWITCH * spacing, std), cell, pbc, sums.images)
    by_waves = _sum_over_waves(centred, jnp.where(blurred, std, 1.0 + SWITCH * spacing), cell, pbc, dual, sums.waves)
    return jax.tree.map(lambda waves, images: jnp.where(blurred, waves, images), by_waves, by_images)


def _sum_over_images(
    centred: Float[Array, "n 3"],
    std: Float[Array, ""],
    cell: Float[Array, "3 3"],
    pbc: Bool[Array, "3"],
    counts: Counts,
) -> tuple[Float[Array, " n"], Float[Array, "n 3"]]:
    steps = _grid(counts)
    allowed = jnp.all(pbc[None] | (steps == 0), axis=-1)
    shifts = steps.astype(np.float32) @ cell
    exponents = -jnp.sum((centred[:, None] - shifts[None]) ** 2, axis=-1) / (2 * std**2)
    exponents = jnp.where(allowed[None], exponents, -jnp.inf)
    log_density = jax.nn.logsumexp(exponents, axis=-1) - 3 * jnp.log(std) - 1.5 * np.log(2 * np.pi)
    return log_density, (centred - jax.nn.softmax(exponents, axis=-1) @ shifts) / std


def _sum_over_waves(
    centred: Float[Array, "n 3"],
    std: Float[Array, ""],
    cell: Float[Array, "3 3"],
    pbc: Bool[Array, "3"],
    dual: Float[Array, "3 3"],
    counts: Counts,
) -> tuple[Float[Array, " n"], Float[Array, "n 3"]]:
    steps = _grid(counts)
    allowed = jnp.all(pbc[None] | (steps == 0), axis=-1)
    wave_vectors = 2 * np.pi * steps.astype(np.float32) @ dual
    damping = jnp.where(allowed, jnp.exp(-jnp.sum(wave_vectors**2, axis=-1) * std**2 / 2), 0.0)
    phases = centred @ wave_vectors.T
    relative = jnp.cos(phases) @ damping  # density over the uniform one
    slopes = -(jnp.sin(phases) * damping[None]) @ wave_vectors
    open_part = centred - (centred @ dual.T) @ jnp.where(pbc[:, None], cell, 0.0)
    open_axes = 3 - jnp.sum(pbc)
    log_density = (
        jnp.log(relative)
        - jnp.log(volume(complete(cell, pbc)))
        - jnp.sum(open_part**2, axis=-1) / (2 * std**2)
        - open_axes * (jnp.log(std) + 0.5 * np.log(2 * np.pi))
    )
    return log_density, open_part / std - std * slopes / relative[:, None]


def _grid(counts: Counts) -> Int[np.ndarray, "s 3"]:
    return np.array(list(itertools.product(*(range(-count, count + 1) for count in counts))))


def reflect(z: Float[Array, " n"], low: Float[Array, ""], high: Float[Array, ""]) -> Float[Array, " n"]:
    """Positions (Å) reflected at two walls until they are between them."""
    width = high - low
    return low + width - jnp.abs(jnp.mod(z - low, 2 * width) - width)


def reflected_normal(
    z: Float[Array, " n"],
    start: Float[Array, " n"],
    std: Float[Array, ""],
    low: Float[Array, ""],
    high: Float[Array, ""],
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Log-density (1/Å) of Brownian motion reflected at two walls (Lou and Ermon 2023), and the expected noise.

    Eqs. 9 and 10. It tends to the uniform density, and the reverse process is exact between the same walls, as the
    score has no component through them.
    """
    width = high - low
    blurred = std > 2 * SWITCH * width  # the mirror images repeat with twice the width
    x, x0 = (z - low)[:, None], (start - low)[:, None]
    near = jnp.where(blurred, 2 * SWITCH * width, std)
    shifts = 2 * width * jnp.arange(-3, 4)[None]
    offsets = jnp.concatenate([x - x0 - shifts, x + x0 - shifts], axis=-1)
    exponents = -(offsets**2) / (2 * near**2)
    by_images = jax.nn.logsumexp(exponents, axis=-1) - jnp.log(near) - 0.5 * np.log(2 * np.pi)
    noise_by_images = jnp.sum(jax.nn.softmax(exponents, axis=-1) * offsets, axis=-1) / near
    wide = jnp.where(blurred, std, 1.0 + width)
    relative, slope = jnp.ones_like(z), jnp.zeros_like(z)
    # Written out: XLA 0.10 on CPUs gets this sum wrong as a reduction inside a large batch.
    for wave in (np.pi * np.arange(1, 5)).tolist():
        damped = 2 * jnp.exp(-((wave * wide / width) ** 2) / 2) * jnp.cos(wave * (start - low) / width)
        relative += damped * jnp.cos(wave * (z - low) / width)
        slope += damped * wave / width * jnp.sin(wave * (z - low) / width)
    noise_by_waves = wide * slope / relative
    log_density = jnp.where(blurred, jnp.log(relative) - jnp.log(width), by_images)
    return log_density, jnp.where(blurred, noise_by_waves, noise_by_images)


def draw_truncated(
    uniform: Float[Array, " n"],
    mean: Float[Array, " n"],
    std: Float[Array, ""],
    low: Float[Array, ""],
    high: Float[Array, ""],
) -> Float[Array, " n"]:
    """Samples of the normal distribution truncated at two walls (Å), from uniform numbers: eq. 11.

    The computation uses logarithms of the distribution function, which are accurate far in the tails, too.
    """
    left, right, flipped = _bounds_to_the_left(mean, std, low, high)
    uniform = jnp.clip(uniform, 1e-7, 1 - 1e-7)
    level = jnp.logaddexp(jnp.log1p(-uniform) + log_ndtr(left), jnp.log(uniform) + log_ndtr(right))
    draw = inverse_log_ndtr(level)
    return jnp.clip(mean + std * jnp.where(flipped, -draw, draw), low, high)


def truncated_normal(
    z: Float[Array, " n"],
    mean: Float[Array, " n"],
    std: Float[Array, ""],
    low: Float[Array, ""],
    high: Float[Array, ""],
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Log-density (1/Å) of the normal distribution truncated at two walls, and the noise (z - mean) / std."""
    left, right, _ = _bounds_to_the_left(mean, std, low, high)
    outer, inner = log_ndtr(right), log_ndtr(left)
    log_mass = outer + jnp.log1p(-jnp.exp(inner - outer))
    noise = (z - mean) / std
    return -(noise**2) / 2 - jnp.log(std) - 0.5 * np.log(2 * np.pi) - log_mass, noise


def _bounds_to_the_left(
    mean: Float[Array, " n"], std: Float[Array, ""], low: Float[Array, ""], high: Float[Array, ""]
) -> tuple[Float[Array, " n"], Float[Array, " n"], Bool[Array, " n"]]:
    """The walls in standard deviations from the mean, mirrored to the left tail, where the CDF does not round to 1."""
    below, above = (low - mean) / std, (high - mean) / std
    flipped = below + above > 0
    return jnp.where(flipped, -above, below), jnp.where(flipped, -below, above), flipped


def inverse_log_ndtr(level: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The z at which the normal distribution function is exp(level), for any level below 0."""
    central = level > -5.0
    near = ndtri(jnp.exp(jnp.where(central, level, -1.0)))
    far_level = jnp.where(central, -10.0, level)
    z = -jnp.sqrt(-2 * far_level - jnp.log(-4 * jnp.pi * far_level))  # leading terms of the tail
    for _ in range(3):  # Newton's steps; the function is nearly quadratic, so these reach float32
        log_slope = -(z**2) / 2 - 0.5 * np.log(2 * np.pi) - log_ndtr(z)
        z = z - (log_ndtr(z) - far_level) * jnp.exp(-log_slope)
    return jnp.where(central, near, z)
