"""The training loss of one structure: denoising of positions and species, and errors of energy and forces.

Formulas: docs/formulas/agedi.md.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from agedi.config import DiffusionConfig, RegressorLoss
from agedi.data.example import GraphExample
from agedi.data.graph import AtomsGraph, free_atoms
from agedi.network.groups import in_groups
from agedi.network.score import Outputs, ScoreModel
from agedi.network.search import Search
from agedi.noise.kernels import LatticeSums
from agedi.noise.noisers import Noised, make_perturb

VALIDATION_DRAWS = 4  # evenly spaced diffusion times per structure in validation


Metrics = dict[str, Float[Array, ""]]
ExampleLoss = Callable[[Any, PRNGKeyArray | None, GraphExample], tuple[Float[Array, ""], Metrics]]


def metric_names(config: DiffusionConfig) -> tuple[str, ...]:
    """Names of the metrics that `make_example_loss` returns besides the loss."""
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

    Without a key, as in validation, evenly spaced times are used and the noise is seeded by the example's index, so
    that every validation sees the same noise. Structures whose noised positions have more neighbors than the search
    has slots contribute 0, and are reported as `overflow`.

    Args:
        config: configuration of the model.
        model: functions of the model.
        search: the neighbor search.
        sums: number of terms in the lattice sums of the noise kernel.
        regressor: weights of the force field loss; defaults if None.
        diffused: share of the structures that the diffusion loss applies to; the diffusion loss is the mean over these.
    """
    diffusion_loss = make_diffusion_loss(config, model, search, sums, diffused)
    force_field = None if model.force_field is None else in_groups(model.force_field)
    regressor = regressor or RegressorLoss()

    def at_random_time(params: Any, key: PRNGKeyArray, example: GraphExample) -> Metrics:
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        t = jax.random.uniform(time_key, minval=config.smallest_time, maxval=1.0)
        known = ~jax.random.bernoulli(drop_key, config.condition_dropout)
        return diffusion_loss(params, noise_key, example, t, known)

    def at_spaced_times(params: Any, example: GraphExample) -> Metrics:
        key = jax.random.fold_in(jax.random.key(0), example.index)
        offset_key, noise_key = jax.random.split(key)
        times = (jnp.arange(VALIDATION_DRAWS) + jax.random.uniform(offset_key)) / VALIDATION_DRAWS
        keys = jax.random.split(noise_key, VALIDATION_DRAWS)

        def at_time(inputs: tuple[PRNGKeyArray, Array, Array]) -> Metrics:
            key, t, known = inputs
            return diffusion_loss(params, key, example, jnp.maximum(t, config.smallest_time), known)

        # lax.map evaluates one time after another: one compilation, and memory for one evaluation.
        return jax.tree.map(jnp.mean, jax.lax.map(at_time, (keys, times, jnp.ones(VALIDATION_DRAWS, bool))))

    def example_loss(params: Any, key: PRNGKeyArray | None, example: GraphExample) -> tuple[Float[Array, ""], Metrics]:
        metrics = at_spaced_times(params, example) if key is None else at_random_time(params, key, example)
        loss = metrics["diffusion"]
        if force_field is not None:
            parts = regressor_losses(regressor, force_field, params, search, example)
            metrics = {**metrics, **parts}
            loss = loss + regressor.regressor_loss_weight * parts["regressor"]
        return loss, metrics

    return example_loss


def make_diffusion_loss(
    config: DiffusionConfig, model: ScoreModel, search: Search, sums: LatticeSums, diffused: float = 1.0
) -> Callable[[Any, PRNGKeyArray, GraphExample, Array, Array], Metrics]:
    """Returns `diffusion_loss(params, key, example, t, known) -> metrics` at diffusion time t.

    `known` is whether the network is given the example's properties. Arguments are those of `make_example_loss`.
    """
    perturb = make_perturb(config, sums)
    score = in_groups(model.apply)
    scales = config.loss_scaling or (1.0,) * len(config.noisers)

    def diffusion_loss(params: Any, key: PRNGKeyArray, example: GraphExample, t: Array, known: Array) -> Metrics:
        noised = perturb(key, example.graph, t)
        # Terms masked out below must be finite too, or their gradient would be NaN.
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

    return diffusion_loss


def noiser_losses(config: DiffusionConfig, outputs: Outputs, noised: Noised, clean: AtomsGraph, t: Array) -> Metrics:
    """The loss of each noiser, by its name in lower case: a mean over the free atoms."""
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

    Atoms are absorbed with probability t, so sigma(t) = -log(1 - t) and the exact scores are r p_k with
    r = 1 / (e^sigma - 1) = (1 - t) / t. With s = log(r) + log_softmax(logits), whose exponentials sum to r,
    sum_k e^(s_k) - r s_x0 + r (log r - 1) = -r log p_x0. Times sigma'(t) = 1 / (1 - t) this is the cross entropy / t.
    """
    places = jnp.argmax(x[:, None] == np.asarray(species)[None], axis=-1)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), places[:, None], axis=-1)[:, 0]
    return jnp.sum(jnp.where(absorbed, -log_probs, 0.0)) / t


def regressor_losses(
    settings: RegressorLoss, force_field: Callable[..., Any], params: Any, search: Search, example: GraphExample
) -> Metrics:
    """Losses of energy per atom and of forces on free atoms of the clean structure; 0 where a label is unknown."""
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
    """The distance of an error from 0: its square (`mse`), its absolute value (`mae`), or Huber's loss (`huber`)."""
    if name == "mse":
        return jnp.square
    if name == "mae":
        return jnp.abs
    return lambda error: jnp.where(jnp.abs(error) < delta, error**2 / 2, delta * (jnp.abs(error) - delta / 2))
