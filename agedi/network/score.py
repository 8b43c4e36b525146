"""The score model: PaiNN conditioned on noise levels and properties, a head per noiser, and an optional force field."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from agedi.config import (
    DiffusionConfig,
    ForceFieldConfig,
    diffuses_types,
    position_noiser,
)
from agedi.data.graph import AtomsGraph
from agedi.network.conditioning import Conditions, clean_conditioning, conditioning
from agedi.network.painn import backbone, gated_head, linear, two_layers
from matterform.elements import MAX_ATOMIC_NUMBER
from matterform.neighbors import Neighbors

Params = Mapping[str, Any]


class Outputs(NamedTuple):
    """Network outputs for the atoms of one noisy structure; None for a noiser that the model does not have."""

    noise: Float[Array, "n 3"] | None  # noise of positions, with unit variance; 0 in padding
    logits: Float[Array, "n k"] | None  # logits of `config.species`


class ScoreModel(NamedTuple):
    """A parameter tree and the functions of one structure that read it."""

    params: Params
    apply: Callable[..., Outputs]  # (params, graph, levels, conditions, known) -> Outputs
    force_field: Callable[..., tuple[Array, Array]] | None  # (params, graph) -> energy (eV), forces (eV/Å)


def make_score_model(key: PRNGKeyArray, config: DiffusionConfig) -> ScoreModel:
    """Random parameters, and the network of one structure as functions of parameters.

    `apply` takes a graph with edges, one level per noiser (about -1 to 1), raw values of the properties by name ({}:
    none) and whether they are known. `force_field` takes a clean graph with edges; it shares the backbone, not the
    conditioning. Callers evaluate a batch in groups (`agedi.network.groups`), which is faster on CPUs.
    """
    score = hk.without_apply_rng(hk.transform(functools.partial(_score, config=config)))
    inputs = (_smallest_graph(), jnp.zeros(len(config.noisers)), _example_values(config), jnp.ones((), bool))
    if config.force_field is None:
        return ScoreModel(random_parameters(key, lambda: score.init(None, *inputs)), score.apply, None)
    energy_and_forces = hk.without_apply_rng(hk.transform(functools.partial(_energy_and_forces, config=config)))

    def deviations() -> Params:  # the backbone is the same in both
        return hk.data_structures.merge(score.init(None, *inputs), energy_and_forces.init(None, inputs[0]))

    force_field = make_force_field(energy_and_forces.apply, config.force_field)
    return ScoreModel(random_parameters(key, deviations), score.apply, force_field)


def random_parameters(key: PRNGKeyArray, deviations: Callable[[], Params]) -> Params:
    """Parameters from normal distributions of mean 0 with the given standard deviations.

    All parameters are one array of random numbers: one program per parameter would take many times as long to compile.
    """

    @jax.jit
    def drawn(key: PRNGKeyArray) -> Params:
        scales, unflatten = jax.flatten_util.ravel_pytree(deviations())
        return unflatten(scales * jax.random.normal(key, scales.shape))

    return drawn(key)


def make_force_field(
    energy_and_forces: Callable[..., tuple[Array, Array | None]], config: ForceFieldConfig
) -> Callable[..., tuple[Array, Array]]:
    """`force_field(params, graph) -> (energy, forces)` with forces from the head, or as -dE/dx if conservative."""

    def from_head(params: Params, graph: AtomsGraph) -> tuple[Float[Array, ""], Float[Array, "n 3"]]:
        energy, forces = energy_and_forces(params, graph)
        assert forces is not None
        return energy, forces

    def from_energy(params: Params, graph: AtomsGraph) -> tuple[Float[Array, ""], Float[Array, "n 3"]]:
        def energy_at(pos: Float[Array, "n 3"]) -> Float[Array, ""]:
            return energy_and_forces(params, graph._replace(pos=pos))[0]

        energy, gradient = jax.value_and_grad(energy_at)(graph.pos)
        return energy, -gradient

    return from_energy if config.conservative else from_head


def require_force_field(model: ScoreModel, purpose: str) -> None:
    """Checks that the model has a force field; `purpose` begins the message.

    Raises:
        ValueError: the model has no force field.
    """
    if model.force_field is None:
        raise ValueError(f"{purpose} needs a force field, and this model was trained without one (--force-field)")


def _score(
    graph: AtomsGraph,
    levels: Float[Array, " l"],
    conditions: Conditions,
    known: Bool[Array, ""],
    config: DiffusionConfig,
) -> Outputs:
    size, num_atoms = config.model.feature_size, len(graph.x)
    context = conditioning(levels, conditions, known, config.conditions, num_atoms=num_atoms, size=size)
    scalars, vectors = backbone(graph, context, config.model)
    noise = logits = None
    if position_noiser(config) is not None:
        noise = gated_head(scalars, vectors, "noise") * graph.present[:, None]
    if diffuses_types(config):
        logits = linear(scalars, len(config.species), "logits", std=0.0)
    return Outputs(noise, logits)


def _energy_and_forces(
    graph: AtomsGraph, config: DiffusionConfig
) -> tuple[Float[Array, ""], Float[Array, "n 3"] | None]:
    """Energy in eV, and forces in eV/Å unless they are derivatives of the energy."""
    assert config.force_field is not None
    size = config.model.feature_size
    # `mask` is for diffusion: a fixed atom has the same energy as a free one.
    graph = graph._replace(mask=jnp.zeros_like(graph.mask))
    scalars, vectors = backbone(graph, clean_conditioning(len(graph.x), size), config.model)
    energies = two_layers(scalars, max(size // 2, 1), 1, "energy", with_bias=False)[:, 0]
    energies *= config.force_field.energy_scale
    energy = jnp.where(graph.present, energies + reference_energies(config.force_field)[graph.x], 0.0).sum()
    if config.force_field.conservative:
        return energy, None
    return energy, gated_head(scalars, vectors, "forces") * graph.present[:, None]


def reference_energies(config: ForceFieldConfig) -> Float[Array, " z"]:
    """Energy (eV) per atom by atomic number; 0 for species without one."""
    table = np.zeros(MAX_ATOMIC_NUMBER + 1, np.float32)
    for number, energy in config.reference_energies:
        table[number] = energy
    return jnp.asarray(table)


def _example_values(config: DiffusionConfig) -> dict[str, Array]:
    types = {"scalar": jnp.zeros(()), "integer": jnp.zeros((), jnp.int32), "node": jnp.zeros(1)}
    return {condition.name: types[condition.kind] for condition in config.conditions}


def _smallest_graph() -> AtomsGraph:
    """One atom without neighbors: parameters do not depend on the number of atoms."""
    edges = Neighbors(
        index=jnp.zeros((1, 1), jnp.int32),
        shift=jnp.zeros((1, 1, 3)),
        mask=jnp.zeros((1, 1), bool),
        reverse=jnp.zeros((1, 1), jnp.int32),
        overflow=jnp.zeros((), bool),
    )
    return AtomsGraph(
        x=jnp.ones(1, jnp.int32),
        pos=jnp.zeros((1, 3)),
        cell=jnp.eye(3),
        pbc=jnp.zeros(3, bool),
        mask=jnp.zeros(1, bool),
        present=jnp.ones(1, bool),
        confinement=jnp.array([-jnp.inf, jnp.inf]),
        edges=edges,
    )
