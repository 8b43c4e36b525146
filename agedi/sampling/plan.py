"""Time grid of a reverse process: which steps are taken, and the noise levels at their ends."""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from agedi.data.graph import AnyArray
from agedi.noise.noisers import PositionNoiser
from agedi.noise.sdes import noise_level
from agedi.sampling.config import InpaintConfig, SamplerConfig


class Step(NamedTuple):
    """Start and end of a solver step, in diffusion time and noise level; with a leading axis s, all steps."""

    t: Float[AnyArray, "*s"]
    t_next: Float[AnyArray, "*s"]
    noise: Float[AnyArray, "*s"]  # nu = std / mean at t
    noise_next: Float[AnyArray, "*s"]
    renoise: Bool[AnyArray, "*s"]  # a step back towards the prior, in resampled inpainting


def make_plan(settings: SamplerConfig, noiser: PositionNoiser | None, inpaint: InpaintConfig | None) -> Step:
    """All steps in order, as NumPy arrays."""
    times = _times(settings, noiser, 1.0 if inpaint is None else inpaint.t_start)
    pairs = list(itertools.pairwise(times)) if inpaint is None else _resampled(times, inpaint)
    begin, end = np.array(pairs, np.float32).T
    noise, noise_next = (np.zeros_like(part) if noiser is None else _noises(noiser, part) for part in (begin, end))
    return Step(begin, end, noise, noise_next, end > begin)


def _resampled(times: Float[np.ndarray, " s"], inpaint: InpaintConfig) -> list[tuple[float, float]]:
    """Each time step divided into substeps and passed `n_resample` times, with a step back before every repetition.

    Lugmayr et al. (2022), algorithm 1.
    """
    pairs = []
    for high, low in itertools.pairwise(times):
        substeps = list(itertools.pairwise(np.linspace(high, low, inpaint.jump_length + 1)))
        for repetition in range(inpaint.n_resample):
            pairs += ([(low, high)] if repetition else []) + substeps
    return pairs


def _times(settings: SamplerConfig, noiser: PositionNoiser | None, start: float) -> Float[np.ndarray, " s"]:
    """Decreasing times of `settings.steps` steps from `start` to 0; for grid rho, Karras et al. (2022), eq. 5."""
    eps = min(settings.eps, start / 2)
    if settings.grid == "uniform" or noiser is None:
        return np.append(np.linspace(start, eps, settings.steps), 0.0) if settings.steps > 1 else np.array([start, 0.0])
    # The noise level is inverted by interpolation on a grid much finer than any number of steps.
    fine = np.concatenate([np.geomspace(1e-6, 1e-2, 2000), np.linspace(1e-2, 1.0, 20001)[1:]])
    levels = _noises(noiser, fine.astype(np.float32)).astype(float) ** (1 / settings.rho)
    high, low = np.interp([start, eps], fine, levels)
    times = np.interp(np.linspace(high, low, settings.steps), levels, fine)
    return np.concatenate([[start], times[1:], [0.0]])


def _noises(noiser: PositionNoiser, times: Float[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
    return np.array(noise_level(noiser.sde, jnp.asarray(times)))
