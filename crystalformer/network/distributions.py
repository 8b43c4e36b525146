"""Densities and samples of the continuous variables: von Mises and normal mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


def von_mises_log_prob(
    angle: Float[Array, "*s"], location: Float[Array, "*s"], concentration: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """Log-density (1/rad) of an angle (rad): kappa cos(angle - location) - log(2 pi I0(kappa)).

    I0 is scaled by exp(-kappa), so that large concentrations cause neither overflow nor cancellation.
    """
    scaled_bessel = jax.scipy.special.i0e(concentration)
    return concentration * (jnp.cos(angle - location) - 1) - jnp.log(2 * np.pi * scaled_bessel)


def normal_log_prob(x: Float[Array, "*s"], mean: Float[Array, "*s"], width: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Log-density of N(mean, width^2)."""
    return -0.5 * ((x - mean) / width) ** 2 - jnp.log(width) - 0.5 * np.log(2 * np.pi)


def mixture_log_prob(log_weight: Float[Array, "*s k"], log_prob: Float[Array, "*s k"]) -> Float[Array, "*s"]:
    """log sum_k w_k p_k over the last axis."""
    return jax.nn.logsumexp(log_weight + log_prob, axis=-1)


def sample_von_mises(
    key: PRNGKeyArray, location: Float[Array, ""], concentration: Float[Array, ""], attempts: int = 8
) -> Float[Array, ""]:
    """Samples an angle (rad, in [-pi, pi)) exactly, by rejection (Wood, Commun. Stat. Simul. 23, 157 (1994)).

    Formulas use b = 1/(2 kappa + sqrt(4 kappa^2 + 1)) and delta = 1 - cos(angle), to avoid cancellation in float32.
    Each round makes `attempts` proposals, of which at least two thirds are accepted.
    """
    b = 1 / (2 * concentration + jnp.sqrt(4 * concentration**2 + 1))
    gap = 2 * b / (1 + b)  # 1 - x0 in Wood's notation

    def propose(key):
        accept_key, sine_key, sign_key = jax.random.split(key, 3)
        z = jnp.sin(0.5 * np.pi * jax.random.uniform(sine_key, (attempts,))) ** 2
        delta = 2 * b * z / (1 - (1 - b) * z)
        log_ratio = concentration * (gap - delta) + jnp.log((gap + (1 - gap) * delta) / (gap * (2 - gap)))
        # Not `>=`: a NaN concentration must give NaN, not an endless loop.
        accepted = ~(log_ratio < jnp.log(jax.random.uniform(accept_key, (attempts,))))
        first = jnp.argmax(accepted)
        angle = 2 * jnp.arcsin(jnp.sqrt(jnp.minimum(0.5 * delta[first], 1.0)))
        return accepted[first], jnp.where(jax.random.bernoulli(sign_key), angle, -angle)

    def again(state):
        key, _, _ = state
        key, round_key = jax.random.split(key)
        return key, *propose(round_key)

    start = (key, jnp.zeros((), bool), jnp.zeros((), concentration.dtype))
    _, _, angle = jax.lax.while_loop(lambda state: ~state[1], again, start)
    return wrap_angle(location + angle)


def wrap_angle(angle: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The same angle in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi
