"""The training objective for one structure: noise and species to be guessed, energies and forces to be met."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from agedi.config import DiffusionConfig
from agedi.data.graph import AnyArray, AtomsGraph, free_atoms
from agedi.network.groups import in_groups
from agedi.network.score import Outputs, ScoreModel
from agedi.network.search import Search
from agedi.noise.kernels import LatticeSums
from agedi.noise.noisers import Noised, make_perturb

VALIDATION_DRAWS = 4  # diffusion times a structure is validated at, spread evenly


class Example(NamedTuple):
    """A structure with what is known of it; with a leading axis on every leaf, a batch."""

    graph: AtomsGraph
    conditions: dict[str, AnyArray]
    energy: Float[AnyArray, ""]  # eV, NaN where unknown
    forces: Float[AnyArray, "n 3"]  # eV/Å, NaN where unknown
    diffuse: Bool[AnyArray, ""]  # False: only the force field learns from it
    index: Int[AnyArray, ""]  # its number in the data set, which draws its noise in validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressorLoss:
    """How energies and forces are compared with their labels."""

    weight: float = 1.0  # of energy and forces together, beside the diffusion loss
    energy_loss: Literal["mse", "mae", "huber"] = "mse"  # of energies an atom (eV)
    force_loss: Literal["mse", "mae", "huber"] = "huber"
    huber_delta: float = 0.01  # eV/Å, or eV an atom: quadratic below
    energy_weight: float = 1.0
    force_weight: float = 1.0


ExampleLoss = Callable[[Any, PRNGKeyArray | None, Example], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]


def metric_names(config: DiffusionConfig) -> tuple[str, ...]:
    """What `make_example_loss` reports besides the loss."""
    forces = () if config.force_field is None else ("regressor", "energy", "forces")
    return ("diffusion", *(name.lower() for name in config.noisers), *forces, "overflow")


def make_example_loss(
    config: DiffusionConfig,
    model: ScoreModel,
    search: Search,
    sums: LatticeSums,
    regressor: RegressorLoss | None = None,
    diffused: float = 1.0,
) -> ExampleLoss:
    """Returns `example_loss(params, key, example) -> (loss, metrics)` for a random diffusion time.

    Without a key, as in validation, the times are spread over [0, 1] and the noise is drawn from the example's number:
    the same in every validation. Structures whose noised positions have more neighbours than the search has slots
    count 0, and are reported as `overflow`.

    Args:
        diffused: share of the structures that the diffusion learns from, over which its part of the loss is the mean.
    """
    perturb = make_perturb(config, sums)
    score = in_groups(model.apply)
    force_field = None if model.force_field is None else in_groups(model.force_field)
    regressor = regressor or RegressorLoss()
    scales = config.loss_scaling or (1.0,) * len(config.noisers)

    def diffusion_loss(params: Any, key: PRNGKeyArray, example: Example, t: Array, known: Array) -> dict[str, Array]:
        noised = perturb(key, example.graph, t)
        # What does not count must be finite all the same, for the sake of the gradient.
        graph, noise = noised.graph, noised.noise
        pos = jnp.where(example.diffuse, graph.pos, example.graph.pos)
        noise = None if noise is None else jnp.where(example.diffuse, noise, 0.0)
        noised = noised._replace(graph=graph._replace(pos=pos), noise=noise)
        graph = search(noised.graph)
        outputs = score(params, graph, noised.levels, example.conditions, known)
        parts = noiser_losses(config, outputs, noised, example.graph, t)
        counts = example.diffuse & ~graph.edges.overflow
        parts = {name: jnp.where(counts, value / diffused, 0.0) for name, value in parts.items()}
        total = jnp.sum(jnp.stack([scale * value for scale, value in zip(scales, parts.values(), strict=True)]))
        return {"diffusion": total, **parts, "overflow": graph.edges.overflow.astype(jnp.float32)}

    def drawn(params: Any, key: PRNGKeyArray, example: Example) -> dict[str, Array]:
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        t = jax.random.uniform(time_key, minval=config.eps, maxval=1.0)
        known = ~jax.random.bernoulli(drop_key, config.condition_dropout)
        return diffusion_loss(params, noise_key, example, t, known)

    def spread(params: Any, example: Example) -> dict[str, Array]:
        key = jax.random.fold_in(jax.random.key(0), example.index)
        offset_key, noise_key = jax.random.split(key)
        times = (jnp.arange(VALIDATION_DRAWS) + jax.random.uniform(offset_key)) / VALIDATION_DRAWS
        keys = jax.random.split(noise_key, VALIDATION_DRAWS)

        def draw(drawn: tuple[PRNGKeyArray, Array, Array]) -> dict[str, Array]:
            key, t, known = drawn
            return diffusion_loss(params, key, example, jnp.maximum(t, config.eps), known)

        # One after another: compiled once, in the memory of one.
        return jax.tree.map(jnp.mean, jax.lax.map(draw, (keys, times, jnp.ones(VALIDATION_DRAWS, bool))))

    def example_loss(
        params: Any, key: PRNGKeyArray | None, example: Example
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        metrics = spread(params, example) if key is None else drawn(params, key, example)
        loss = metrics["diffusion"]
        if force_field is not None:
            parts = regressor_losses(regressor, force_field, params, search, example)
            metrics = {**metrics, **parts}
            loss = loss + regressor.weight * parts["regressor"]
        return loss, metrics

    return example_loss


def noiser_losses(
    config: DiffusionConfig, outputs: Outputs, noised: Noised, clean: AtomsGraph, t: Array
) -> dict[str, Float[Array, ""]]:
    """One loss a noiser, by its name in lower case: means over free atoms."""
    free = free_atoms(clean)
    count = jnp.maximum(jnp.sum(free), 1)
    losses = {}
    for name in config.noisers:
        if name == "Types":
            assert outputs.logits is not None  # the model has a head for every noiser
            losses[name.lower()] = types_loss(outputs.logits, clean.x, noised.absorbed, config.species, t) / count
        else:
            assert outputs.noise is not None
            assert noised.noise is not None
            square = jnp.sum((outputs.noise - noised.noise) ** 2, axis=-1)
            losses[name.lower()] = jnp.sum(jnp.where(free, square, 0.0)) / (3 * count)
    return losses


def types_loss(
    logits: Float[Array, "n k"],
    x: Int[Array, " n"],
    absorbed: Bool[Array, " n"],
    species: tuple[int, ...],
    t: Float[Array, ""],
) -> Float[Array, ""]:
    """Score entropy of absorbing diffusion (Lou et al. 2024, eq. 5), summed over the absorbed atoms.

    The share of absorbed atoms is t, so sigma(t) = -log(1 - t) and the exact scores are r p_k with
    r = 1 / (e^sigma - 1) = (1 - t) / t. With s = log(r) + log_softmax(logits), which holds that sum by construction,
    sum_k e^(s_k) - r s_x0 + r (log r - 1) = -r log p_x0; times sigma'(t) = 1 / (1 - t) that is the cross entropy / t.
    """
    places = jnp.argmax(x[:, None] == np.asarray(species)[None], axis=-1)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), places[:, None], axis=-1)[:, 0]
    return jnp.sum(jnp.where(absorbed, -log_probs, 0.0)) / t


def regressor_losses(
    settings: RegressorLoss, force_field: Callable[..., Any], params: Any, search: Search, example: Example
) -> dict[str, Float[Array, ""]]:
    """Errors of energy an atom and of the forces on free atoms of the clean structure; unknown labels count 0."""
    graph = search(example.graph)
    energy, forces = force_field(params, graph)
    count = jnp.maximum(jnp.sum(graph.present), 1)
    has_energy = jnp.isfinite(example.energy) & ~graph.edges.overflow
    energy_error = jnp.where(has_energy, (energy - jnp.where(has_energy, example.energy, 0.0)) / count, 0.0)
    compared = free_atoms(graph) & jnp.all(jnp.isfinite(example.forces), axis=-1) & ~graph.edges.overflow
    labels = jnp.where(compared[:, None], example.forces, 0.0)
    force_errors = jnp.where(compared[:, None], forces - labels, 0.0)
    distance = make_distance(settings.force_loss, settings.huber_delta)
    force_loss = jnp.sum(distance(force_errors)) / jnp.maximum(3 * jnp.sum(compared), 1)
    energy_loss = make_distance(settings.energy_loss, settings.huber_delta)(energy_error)
    total = settings.energy_weight * energy_loss + settings.force_weight * force_loss
    return {"regressor": total, "energy": energy_loss, "forces": force_loss}


def make_distance(name: str, delta: float) -> Callable[[Array], Array]:
    """Squares (`mse`), absolute values (`mae`), or Huber's mixture of the two (quadratic below `delta`)."""
    if name == "mse":
        return jnp.square
    if name == "mae":
        return jnp.abs
    return lambda error: jnp.where(jnp.abs(error) < delta, error**2 / 2, delta * (jnp.abs(error) - delta / 2))
