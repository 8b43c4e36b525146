"""How fast does AGeDi sample, against the plain way and against its own network alone?

    python benchmarks/cases/agedi_speed.py --out benchmarks/results/agedi_speed.jsonl

Fresh weights at the published sizes; 64 random structures of 8 to 32 atoms. All take turns in one process. `sampler` is
the whole reverse process, neighbour search included, as one compiled scan for each chunk of structures of similar
size; `network` the same number of evaluations of the network, as a scan too, on neighbours that are given; `matscipy`
and `ase` are `baselines/agedi.py`, whose steps make neighbour lists on the host. Times are of one step of all
structures: the work per step does not depend on the number of steps, so few are run. `training` is one
gradient of all structures.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import PartitionSpec

from agedi.config import DiffusionConfig, ModelConfig
from agedi.data.buckets import BucketCapacity, bucket_capacity, geometry_of
from agedi.data.graph import AtomsGraph, from_atoms, pad_graph, stack_graphs
from agedi.network.groups import in_groups
from agedi.network.score import ScoreModel, make_score_model
from agedi.network.search import make_search
from agedi.noise.noisers import make_position_noiser
from agedi.sampling.config import ReverseConfig, SamplerConfig
from agedi.sampling.plan import make_plan
from agedi.sampling.reverse import make_reverse
from benchmarks.baselines.agedi import find_with_ase, find_with_matscipy, make_step
from benchmarks.baselines.agedi import sample as plain_sample
from benchmarks.timing import machine_limits, num_parameters, peak_rss_mib, report, time_calls
from matterform.training.mesh import DATA_AXIS, make_mesh

NO_PROPERTY = jnp.zeros((), bool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes and options of the benchmark."""

    structures: int = 64  # number of structures
    least_atoms: int = 8  # smallest number of atoms
    most_atoms: int = 32  # largest number of atoms
    density: float = 0.05  # atoms per Å³, as in silicon
    chunk: int = 16  # structures per compiled scan, after sorting by size
    steps: int = 10  # number of steps of our sampler and evaluations of the network
    plain_steps: int = 3  # number of steps of the plain samplers
    repeats: int = 5  # number of timed runs after the first
    quick: bool = False  # a small network and few structures, to see that it runs
    out: pathlib.Path | None = None  # file to which the result is appended as one line of JSON


def random_structures(options: Options) -> list[ase.Atoms]:
    """Atoms at random in skewed cells, as at the start of sampling."""
    rng = np.random.default_rng(0)
    found = []
    for count in rng.integers(options.least_atoms, options.most_atoms + 1, options.structures):
        cell = np.eye(3) + 0.1 * rng.standard_normal((3, 3))
        cell *= (count / options.density / np.linalg.det(cell)) ** (1 / 3)
        places = rng.random((count, 3))
        found.append(ase.Atoms(rng.choice([6, 8, 14], count), scaled_positions=places, cell=cell, pbc=True))
    return found


def make_chunks(structures: list[ase.Atoms], size: int, cutoff: float) -> list[tuple[AtomsGraph, BucketCapacity]]:
    """Batches of padded graphs, by size."""
    graphs = sorted((from_atoms(atoms) for atoms in structures), key=lambda graph: len(graph.x))
    parts = [graphs[i : i + size] for i in range(0, len(graphs), size)]
    capacities = [bucket_capacity([geometry_of(graph) for graph in part], cutoff) for part in parts]
    return [
        (stack_graphs([pad_graph(graph, sizes.length) for graph in part]), sizes)
        for part, sizes in zip(parts, capacities, strict=True)
    ]


def make_sampler(
    config: DiffusionConfig, model: ScoreModel, options: Options, sizes: BucketCapacity
) -> Callable[..., Any]:
    """`sampler(params, key, graphs)`, compiled."""
    settings = ReverseConfig(sampler=SamplerConfig(sampler="em", steps=options.steps))
    reverse = make_reverse(config, model, settings, capacity=sizes.slots, images=sizes.images)

    def run(params: Any, key: jax.Array, graphs: AtomsGraph) -> Any:
        count = len(graphs.x)
        return reverse(params, jax.random.split(key, count), graphs, {}, np.zeros((count, 0), np.int32))

    return run


def make_evaluations(config: DiffusionConfig, model: ScoreModel, options: Options) -> Callable[..., Any]:
    """`evaluations(params, graphs)`: the network alone, as often as the sampler evaluates it, on given edges."""
    levels, score = jnp.zeros(len(config.noisers)), in_groups(model.apply)

    def single(params: Any, graph: AtomsGraph) -> jax.Array:
        def body(pos: jax.Array, level: jax.Array) -> tuple[jax.Array, None]:
            noise = score(params, graph._replace(pos=pos), levels + level, {}, NO_PROPERTY).noise
            return pos - 1e-3 * noise, None

        return jax.lax.scan(body, jnp.asarray(graph.pos), jnp.linspace(1, -1, options.steps))[0]

    batch = jax.vmap(single, (None, 0))
    everywhere, by_rows = PartitionSpec(), PartitionSpec(DATA_AXIS)
    # Over all devices, as the sampler is.
    spread = jax.shard_map(batch, mesh=make_mesh(), in_specs=(everywhere, by_rows), out_specs=by_rows, check_vma=False)
    return jax.jit(spread)


def make_gradient(model: ScoreModel) -> Callable[..., Any]:
    """The gradient of a mean square of the network's outputs over a batch."""
    score = in_groups(model.apply)

    def loss(params: Any, graphs: AtomsGraph) -> jax.Array:
        def single(graph: AtomsGraph) -> jax.Array:
            return jnp.mean((score(params, graph, jnp.zeros(1), {}, NO_PROPERTY).noise - graph.pos) ** 2)

        return jnp.mean(jax.vmap(single)(graphs))

    return jax.jit(jax.grad(loss))


def with_cpu_time(call: Callable[[], Any], seconds: list[float]) -> Callable[[], Any]:
    """The call, which also records the CPU seconds of all its threads; other load adds little to these."""

    def run() -> Any:
        start = time.process_time()
        out = jax.block_until_ready(call())
        seconds.append(time.process_time() - start)
        return out

    return run


def ratios(times: dict[str, float]) -> dict[str, float]:
    """Ratios of the times of the sampler to its network, and of the plain samplers to ours."""
    return {
        "sampler_over_network": times["sampler"] / times["network"],
        "matscipy_over_sampler": times["matscipy"] / times["sampler"],
        "ase_over_sampler": times["ase"] / times["sampler"],
    }


def temporary_mib(function: Any, *arguments: Any) -> float:
    """Temporary memory (MiB) of a compiled function, besides its inputs and outputs."""
    return function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes / 2**20


def measure(options: Options) -> dict[str, Any]:
    """The results as one line of JSON."""
    sizes: dict[str, Any] = {"feature_size": 8, "n_rbf": 8, "n_blocks": 2, "cutoff": 4.0} if options.quick else {}
    if options.quick:
        options = dataclasses.replace(options, structures=4, most_atoms=12, chunk=2, repeats=1, steps=2, plain_steps=1)
    config = DiffusionConfig(noisers=("CellPositions",), sigma_max=5.0, model=ModelConfig(**sizes))
    model = make_score_model(jax.random.key(0), config)
    params, key = model.params, jax.random.key(1)
    structures = random_structures(options)
    chunks = make_chunks(structures, options.chunk, config.model.cutoff)
    searched = [
        jax.jit(jax.vmap(make_search(config.model.cutoff, sizes.slots, sizes.images)))(graphs)
        for graphs, sizes in chunks
    ]
    samplers = [make_sampler(config, model, options, sizes) for _, sizes in chunks]
    evaluations, gradient = make_evaluations(config, model, options), make_gradient(model)
    noiser = make_position_noiser(config)
    assert noiser is not None
    plan = jax.tree.map(np.asarray, make_plan(SamplerConfig(steps=options.plain_steps), noiser, None))
    step = make_step(config, noiser.level)

    def plain(find: Any) -> Any:
        return plain_sample(params, key, structures, plan, step, find, config.model.cutoff)[0].positions

    calls = {
        "sampler": lambda: [run(params, key, graphs) for run, (graphs, _) in zip(samplers, chunks, strict=True)],
        "network": lambda: [evaluations(params, graphs) for graphs in searched],
        "training": lambda: [gradient(params, graphs) for graphs in searched],
    }
    own = time_calls(calls, 1)  # before the plain way runs, for the peak of memory
    memory = peak_rss_mib()
    calls |= {"matscipy": lambda: plain(find_with_matscipy), "ase": lambda: plain(find_with_ase)}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    timed = {name: with_cpu_time(call, cpu[name]) for name, call in calls.items()}
    times = time_calls(timed, options.repeats)
    steps = {"training": 1, "matscipy": options.plain_steps, "ase": options.plain_steps}
    ms = {name: 1e3 * times[name]["steady_s"] / steps.get(name, options.steps) for name in calls}
    cpu_ms = {name: 1e3 * float(np.median(cpu[name][1:])) / steps.get(name, options.steps) for name in calls}
    return {
        "benchmark": "agedi_speed",
        "quick": options.quick,
        "structures": options.structures,
        "atoms": [options.least_atoms, options.most_atoms],
        "rooms": [[sizes.length, sizes.slots, *sizes.images] for _, sizes in chunks],
        "parameters": num_parameters(params),
        "mean_neighbours": float(sum(g.edges.mask.sum() for g in searched) / sum(g.present.sum() for g in searched)),
        "ms": ms,
        "cpu_ms": cpu_ms,
        "first_s": {name: found["first_s"] for name, found in own.items()},
        "ratios": ratios(ms),
        "cpu_ratios": ratios(cpu_ms),
        "network_temporary_mib": max(temporary_mib(evaluations, params, graphs) for graphs in searched),
        "training_temporary_mib": max(temporary_mib(gradient, params, graphs) for graphs in searched),
        "peak_rss_mib": memory,
        **machine_limits(),
    }


if __name__ == "__main__":
    options = tyro.cli(Options)
    report(measure(options), options.out)
