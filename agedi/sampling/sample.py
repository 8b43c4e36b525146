"""Sampling structures in chunks, each by one compiled reverse process."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from agedi.config import DiffusionConfig
from agedi.data.buckets import BucketCapacity, counted, geometry_of, run_in_chunks
from agedi.data.graph import AtomsGraph, pad_graph
from agedi.diffusion import Diffusion
from agedi.forcefield.config import LbfgsConfig
from agedi.forcefield.relaxation import relax_graphs
from agedi.network.score import ScoreModel, require_force_field
from agedi.sampling.config import InpaintConfig, ReverseConfig, SampleConfig
from agedi.sampling.options import configs_from_options
from agedi.sampling.request import InitialState, SampleRequest, make_initial_state
from agedi.sampling.reverse import Reverse, ReverseResult, make_reverse

if TYPE_CHECKING:
    import ase

PROGRAMS = 32  # number of compiled samplers in the cache


class Sample(NamedTuple):
    """A sample, and the state from which it was generated."""

    start: InitialState
    frames: list[AtomsGraph]  # the last one is the sample

    def atoms(self) -> "list[ase.Atoms]":
        """The frames for ASE; fixed atoms are bit for bit those that were given."""
        return [place(self.start.atoms, graph) for graph in self.frames]


def sample(diffusion: Diffusion, *, as_atoms: bool = True, **options: Any) -> list[Any]:
    """Samples structures; the same seed gives the same ones, whatever the batch size.

    `agedi.sample(diffusion, num_samples=10, formula="Pd4O4", cell=[5, 5, 7], property={"energy": -3.5}, steps=500)`

    Args:
        as_atoms: whether to return ASE Atoms instead of `AtomsGraph`s.
        options: fields of `SampleRequest` (what to sample: `formula`, `num_atoms`, `cell`, `template`, `property` ...)
            and of `SampleConfig` (`num_samples` or `n_samples`, `seed`, `batch_size`, `save_trajectory`, `progress`)
            with the settings in it (`sampler`, `steps`, `eps`, `guidance_weight` ...). `sampler_kwargs` is a mapping of
            settings of the sampler, `ff_guidance` a weight (1/eV), a mapping or a `ForcefieldGuidanceConfig`.

    Returns:
        ASE's Atoms, or with `save_trajectory` lists of them, from noise to sample.

    Raises:
        ValueError: an option is unknown, missing, out of range, or contradicts the model or another one.
        FloatingPointError: positions are not finite.
    """
    request, config = configs_from_options(options, SampleRequest, SampleConfig)
    samples = iterate_samples(diffusion, request, config)
    return [as_result(one, config.save_trajectory, as_atoms) for one in samples]


def sample_each(diffusion: Diffusion, requests: Sequence[SampleRequest], config: SampleConfig) -> "list[ase.Atoms]":
    """One structure per request; their cells and numbers of atoms may differ. `config.num_samples` is not used.

    Raises:
        ValueError: a field is missing, out of range, or contradicts the model or another field.
    """
    states = [make_initial_state(diffusion.config, request) for request in requests]
    return [one.atoms()[-1] for one in iterate_from(diffusion, states, config)]


def as_result(one: Sample, trajectory: bool, as_atoms: bool) -> Any:
    """One structure, or with `trajectory` the list of its frames."""
    frames = one.atoms() if as_atoms else one.frames
    return frames if trajectory else frames[-1]


def iterate_samples(diffusion: Diffusion, request: SampleRequest, config: SampleConfig) -> Iterator[Sample]:
    """Yields `config.num_samples` samples as they are ready; checks everything before the first.

    Raises:
        ValueError: a field is missing, out of range, or contradicts the model or another field.
    """
    states = [make_initial_state(diffusion.config, request)] * config.num_samples
    return iterate_from(diffusion, states, config)


def iterate_from(
    diffusion: Diffusion,
    states: Sequence[InitialState],
    config: SampleConfig,
    inpaint: InpaintConfig | None = None,
) -> Iterator[Sample]:
    """Yields one sample per initial state, each with a key of its own; all states must prescribe the same quantities.

    Raises:
        ValueError: the settings need a property that is not given, or a force field that the model lacks.
    """
    weight = config.sampler.guidance_weight
    if weight != 1 and not any(state.conditions for state in states):
        raise ValueError(f"guidance_weight is for a property; got guidance_weight={weight} and no property")
    if config.sampler.sampler == "ffpc":
        require_force_field(diffusion.model, "sampler ffpc")
    if config.guidance.guidance > 0 or config.guidance.max_extra_steps > 0:
        require_force_field(diffusion.model, "ff_guidance")
    results = _run(diffusion, states, config, inpaint)
    samples = (Sample(state, _frames(state, result)) for state, result in zip(states, results, strict=True))
    if config.guidance.max_extra_steps:
        samples = _relaxed(diffusion, samples, config)
    return counted(samples, "sampling", len(states)) if config.progress else samples


def _run(
    diffusion: Diffusion, states: Sequence[InitialState], config: SampleConfig, inpaint: InpaintConfig | None
) -> Iterator[ReverseResult]:
    model, key = diffusion.model, jax.random.key(config.seed)
    settings = ReverseConfig(
        sampler=config.sampler,
        guidance=config.guidance,
        inpaint=inpaint,
        constrained=states[0].remaining is not None,
        trajectory=config.save_trajectory,
    )

    def padded(index: int, length: int) -> tuple[Any, ...]:
        state = states[index]
        left = np.zeros(len(diffusion.config.species), np.int32) if state.remaining is None else state.remaining
        inputs = np.uint32(index), pad_graph(state.graph, length), _pad(state.conditions, length), left
        return inputs if state.selected is None else (*inputs, _pad(state.selected, length))

    def run(inputs: tuple[Any, ...], sizes: BucketCapacity) -> ReverseResult:
        reverse = compiled_reverse(
            diffusion.config, model.apply, model.force_field, settings, capacity=sizes.slots, images=sizes.images
        )
        indices, *others = inputs
        return reverse(model.params, jax.vmap(lambda index: jax.random.fold_in(key, index))(indices), *others)

    geometries = [geometry_of(state.graph) for state in states]
    cutoff = diffusion.config.model.cutoff
    return run_in_chunks(geometries, padded, run, cutoff=cutoff, batch_size=config.batch_size)


@functools.lru_cache(maxsize=PROGRAMS)
def compiled_reverse(
    config: DiffusionConfig,
    apply: Callable[..., Any],
    force_field: Callable[..., Any] | None,
    settings: ReverseConfig,
    *,
    capacity: int,
    images: tuple[int, int, int],
) -> Reverse:
    """`make_reverse`, cached: another formula of the same sizes compiles nothing.

    Raises:
        ValueError: as `make_reverse`.
    """
    return make_reverse(config, ScoreModel({}, apply, force_field), settings, capacity=capacity, images=images)


def place(atoms: "ase.Atoms", graph: AtomsGraph) -> "ase.Atoms":
    """A copy of the atoms with the species and positions of the graph's free atoms; the others are unchanged."""
    copy, free = atoms.copy(), ~np.asarray(graph.mask)
    copy.arrays["positions"][free] = np.asarray(graph.pos, float)[free]
    copy.arrays["numbers"][free] = np.asarray(graph.x)[free]
    return copy


def _pad(tree: Any, length: int) -> Any:
    """Per-atom arrays padded by zeros; single numbers as they are."""
    return jax.tree.map(lambda leaf: np.pad(leaf, (0, length - len(leaf))) if leaf.ndim else leaf, tree)


def _frames(start: InitialState, result: ReverseResult) -> list[AtomsGraph]:
    """The frames of one result without padding, the sample last."""
    count = len(start.graph.x)
    states = [] if result.frames is None else list(zip(result.frames.pos, result.frames.x, strict=True))[:-1]
    states.append((result.graph.pos, result.graph.x))
    frames = [start.graph._replace(pos=pos[:count], x=x[:count]) for pos, x in states]
    if not np.isfinite(frames[-1].pos).all():
        raise FloatingPointError(
            "sampling returned positions that are not finite; use more steps, less guidance, or train for longer"
        )
    if start.selected is not None:
        # The atoms that were not selected are back in place, and a relaxation must not move them.
        frames[-1] = frames[-1]._replace(mask=~start.selected)
    return frames


def _relaxed(diffusion: Diffusion, samples: Iterator[Sample], config: SampleConfig) -> Iterator[Sample]:
    """Relaxes samples; with trajectories the new frames are appended, without the first, which is the sample."""
    guidance, trajectory = config.guidance, config.save_trajectory
    settings = LbfgsConfig(fmax=guidance.force_threshold, steps=guidance.max_extra_steps)
    while chunk := list(itertools.islice(samples, config.batch_size)):
        graphs = [one.frames[-1] for one in chunk]
        paths = relax_graphs(diffusion, graphs, settings, batch_size=config.batch_size, trajectory=trajectory)
        for one, (path, _) in zip(chunk, paths, strict=True):
            frames = [point.graph for point in path]
            yield one._replace(frames=[*one.frames, *frames[1:]] if trajectory else frames)
