"""Relaxed structures, and energies and forces of structures, by a model's force field."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from agedi.checks import check_known
from agedi.data.buckets import Room, counted, geometry_of, run_in_chunks
from agedi.data.graph import AtomsGraph, from_atoms, pad_graph
from agedi.diffusion import Diffusion
from agedi.forcefield.lbfgs import Evaluated, ForceFunction, LbfgsConfig, Relaxed, make_relax
from agedi.network.groups import in_groups
from agedi.network.score import require_force_field
from agedi.network.search import make_search

if TYPE_CHECKING:
    import ase

PROGRAMS = 32  # compiled programs kept


class Point(NamedTuple):
    """One structure with what the force field says of it, without padding."""

    graph: AtomsGraph
    energy: float  # eV
    forces: Float[np.ndarray, "n 3"]  # eV/Å, of the model, on fixed atoms too


def relax(
    diffusion: Diffusion,
    structures: "ase.Atoms | Sequence[Any]",
    fmax: float = 0.05,
    steps: int = 200,
    batch_size: int = 64,
    max_step_size: float = 0.2,
    trajectory: bool = False,
    progress_bar: bool = False,
) -> Any:
    """Relaxes structures with the model's force field, by the steps of ASE's LBFGS.

    Atoms under FixAtoms do not move. A structure is done when no other atom feels more than `fmax` (eV/Å).

    Args:
        structures: one, or (nested) lists of them; the result is nested alike.
        steps: at most.
        max_step_size: Å that the atom which moves most may move in a step.
        trajectory: returns a list of all frames for each structure, the given one first.

    Returns:
        Copies of the structures with energy and forces in a calculator, and in `info` the number of `relaxation_steps`
        and whether the forces have `converged`.

    Raises:
        ValueError: the model has no force field, or a structure cannot be used.
    """
    settings = LbfgsConfig(fmax=fmax, steps=steps, max_step_size=max_step_size)
    flat, rebuild = _flattened(structures)
    ways = iterate_relaxed(
        diffusion, flat, settings, batch_size=batch_size, trajectory=trajectory, progress=progress_bar
    )
    return rebuild([way if trajectory else way[-1] for way in ways])


def iterate_relaxed(
    diffusion: Diffusion,
    structures: "Sequence[ase.Atoms]",
    settings: LbfgsConfig,
    *,
    batch_size: int = 64,
    trajectory: bool = False,
    progress: bool = False,
) -> "Iterator[list[ase.Atoms]]":
    """Yields the frames of each structure's relaxation as they come: all with `trajectory`, else only the last."""
    graphs = usable_graphs(diffusion, structures)
    ways = relax_graphs(diffusion, graphs, settings, batch_size=batch_size, trajectory=trajectory)

    def annotated() -> "Iterator[list[ase.Atoms]]":
        for atoms, graph, (way, steps) in zip(structures, graphs, ways, strict=True):
            frames = [with_results(atoms, graph, point) for point in way]
            pull = np.where(graph.mask[:, None], 0.0, way[-1].forces)
            converged = bool(np.linalg.norm(pull, axis=-1).max() < settings.fmax)
            frames[-1].info |= {"relaxation_steps": steps, "converged": converged}
            yield frames

    return counted(annotated(), "relaxing", len(structures)) if progress else annotated()


def predict(
    diffusion: Diffusion, structures: "ase.Atoms | Sequence[Any]", batch_size: int = 64, progress_bar: bool = False
) -> Any:
    """Copies of the structures, nested alike, with the model's energy (eV) and forces (eV/Å) in a calculator.

    Raises:
        ValueError: the model has no force field, or a structure cannot be used.
    """
    flat, rebuild = _flattened(structures)
    return rebuild(list(iterate_predicted(diffusion, flat, batch_size=batch_size, progress=progress_bar)))


def iterate_predicted(
    diffusion: Diffusion, structures: "Sequence[ase.Atoms]", *, batch_size: int = 64, progress: bool = False
) -> "Iterator[ase.Atoms]":
    """`predict` for a flat list; yields results as they come."""
    graphs = usable_graphs(diffusion, structures)
    points = evaluate_graphs(diffusion, graphs, batch_size=batch_size)

    annotated = map(with_results, structures, graphs, points)
    return counted(annotated, "predicting", len(structures)) if progress else annotated


def usable_graphs(diffusion: Diffusion, structures: "Sequence[ase.Atoms]") -> list[AtomsGraph]:
    """Graphs of structures that the force field can say something of; FixAtoms become masks.

    Raises:
        ValueError: the model has no force field, or names the structure that cannot be used, by its index.
    """
    require_force_field(diffusion.model, "this")
    forces = diffusion.config.force_field
    # Structures for the force field alone may have had more elements than those that diffused.
    referenced = {} if forces is None else dict(forces.reference_energies)
    graphs = []
    for index, atoms in enumerate(structures):
        try:
            check_known(diffusion.config, [z for z in atoms.numbers.tolist() if z not in referenced], "it")
            graphs.append(from_atoms(atoms, mask="MaskFixed"))
        except ValueError as error:
            raise ValueError(f"structure {index} ({atoms.get_chemical_formula() or 'empty'}): {error}") from error
    return graphs


def relax_graphs(
    diffusion: Diffusion,
    graphs: Sequence[AtomsGraph],
    settings: LbfgsConfig,
    *,
    batch_size: int = 64,
    trajectory: bool = False,
) -> Iterator[tuple[list[Point], int]]:
    """Yields the points of each relaxation, all with `trajectory` and else the last one, and the number of steps.

    Raises:
        FloatingPointError: forces are not finite.
    """
    config, model = diffusion.config, diffusion.model

    def run(inputs: tuple[AtomsGraph], room: Room) -> "_Way":
        relax_batch = compiled_relax(
            model.force_field, config.model.cutoff, settings, room.capacity, room.images, trajectory
        )
        done, frames = relax_batch(diffusion.params, *inputs)
        # Frames come with their number first; chunks want structures first.
        parts = None if frames is None else tuple(np.moveaxis(np.asarray(leaf), 1, 0) for leaf in frames)
        return _Way(done, parts, done.overflow)

    for graph, way in zip(graphs, _evaluated(diffusion, graphs, run, batch_size), strict=True):
        count, steps, done = len(graph.x), int(way.done.steps), way.done
        ends = [(done.graph.pos, done.energy, done.forces)]
        states = ends if way.frames is None else zip(*(part[: steps + 1] for part in way.frames), strict=True)
        yield [_point(graph, pos[:count], energy, forces[:count]) for pos, energy, forces in states], steps


class _Way(NamedTuple):
    done: Relaxed
    frames: tuple[np.ndarray, ...] | None  # positions, energies and forces, structures first
    overflow: Any


def evaluate_graphs(diffusion: Diffusion, graphs: Sequence[AtomsGraph], *, batch_size: int = 64) -> Iterator[Point]:
    """Yields energy and forces of each structure.

    Raises:
        FloatingPointError: they are not finite.
    """

    def run(inputs: tuple[AtomsGraph], room: Room) -> Evaluated:
        evaluate = compiled_force(
            diffusion.model.force_field, diffusion.config.model.cutoff, room.capacity, room.images
        )
        return evaluate(diffusion.params, *inputs)

    for graph, found in zip(graphs, _evaluated(diffusion, graphs, run, batch_size), strict=True):
        yield _point(graph, np.asarray(graph.pos), found.energy, found.forces[: len(graph.x)])


def _evaluated(diffusion: Diffusion, graphs: Sequence[AtomsGraph], run: Any, batch_size: int) -> Iterator[Any]:
    geometries = [geometry_of(graph) for graph in graphs]

    def padded(index: int, length: int) -> tuple[AtomsGraph]:
        return (pad_graph(graphs[index], length),)

    return run_in_chunks(geometries, padded, run, cutoff=diffusion.config.model.cutoff, batch_size=batch_size)


def make_force(
    force_field: Callable[..., Any], cutoff: float, capacity: int, images: tuple[int, int, int]
) -> ForceFunction:
    """The force field of one structure with its neighbour search."""
    search = make_search(cutoff, capacity, images)

    grouped = in_groups(force_field)

    def force(params: Any, graph: AtomsGraph) -> Evaluated:
        graph = search(graph)
        assert graph.edges is not None
        energy, forces = grouped(params, graph)
        return Evaluated(energy, forces, graph.edges.overflow)

    return force


@functools.lru_cache(maxsize=PROGRAMS)
def compiled_force(
    force_field: Callable[..., Any], cutoff: float, capacity: int, images: tuple[int, int, int]
) -> Callable[[Any, AtomsGraph], Evaluated]:
    """Energies and forces of a batch."""
    return jax.jit(jax.vmap(make_force(force_field, cutoff, capacity, images), (None, 0)))


@functools.lru_cache(maxsize=PROGRAMS)
def compiled_relax(
    force_field: Callable[..., Any],
    cutoff: float,
    settings: LbfgsConfig,
    capacity: int,
    images: tuple[int, int, int],
    trajectory: bool,
) -> Callable[..., Any]:
    """`make_relax` of a model, kept: more structures of the same sizes do not compile anything."""
    return make_relax(make_force(force_field, cutoff, capacity, images), settings, trajectory=trajectory)


def with_results(atoms: "ase.Atoms", graph: AtomsGraph, point: Point) -> "ase.Atoms":
    """A copy of the atoms, moved by as much as their graph was, with energy and forces in a calculator.

    Not placed where the graph is: what did not move is then the same to the last bit of double precision.
    """
    from ase.calculators.singlepoint import SinglePointCalculator

    copy = atoms.copy()
    copy.arrays["positions"] += np.asarray(point.graph.pos, float) - np.asarray(graph.pos, float)
    copy.calc = SinglePointCalculator(copy, energy=point.energy, forces=point.forces)
    return copy


def _point(graph: AtomsGraph, pos: np.ndarray, energy: Any, forces: np.ndarray) -> Point:
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise FloatingPointError("the force field gave numbers that are not finite; relax with a smaller max_step_size")
    return Point(graph._replace(pos=pos), float(energy), np.asarray(forces, float))


def _flattened(structures: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The structures of nested lists as one list, and a function that nests their results alike."""
    import ase

    if isinstance(structures, ase.Atoms):
        return [structures], lambda results: results[0]
    if not isinstance(structures, list | tuple):
        raise ValueError(f"structures must be ASE's Atoms or lists of them; got {type(structures).__name__}")
    parts = [_flattened(part) for part in structures]
    flat = [atoms for found, _ in parts for atoms in found]

    def rebuild(results: list[Any]) -> list[Any]:
        remaining = iter(results)
        return [nest([next(remaining) for _ in found]) for found, nest in parts]

    return flat, rebuild
