"""Relaxation, energies and forces of structures by the force field of a model."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from agedi.checks import check_known
from agedi.data.buckets import BucketCapacity, counted, geometry_of, run_in_chunks
from agedi.data.graph import AtomsGraph, from_atoms, pad_graph
from agedi.diffusion import Diffusion
from agedi.forcefield.config import BATCH_SIZE, LbfgsConfig
from agedi.forcefield.lbfgs import Evaluated, ForceFunction, Relaxed, make_relax
from agedi.network.groups import in_groups
from agedi.network.score import require_force_field
from agedi.network.search import make_search

if TYPE_CHECKING:
    import ase

PROGRAMS = 32  # compiled programs kept in memory


class Point(NamedTuple):
    """One structure with its energy and forces, without padding."""

    graph: AtomsGraph
    energy: float  # eV
    forces: Float[np.ndarray, "n 3"]  # eV/Å, on fixed atoms too


def relax(
    diffusion: Diffusion,
    structures: "ase.Atoms | Sequence[Any]",
    fmax: float = LbfgsConfig.fmax,
    steps: int = LbfgsConfig.steps,
    batch_size: int = BATCH_SIZE,
    max_step_size: float = LbfgsConfig.max_step_size,
    trajectory: bool = False,
    progress_bar: bool = False,
) -> Any:
    """Relaxes structures with the model's force field, by the steps of ASE's LBFGS.

    Atoms under FixAtoms do not move. A structure has converged when no other atom has a force above `fmax` (eV/Å).

    Args:
        structures: one structure, or nested lists of them; the result has the same nesting.
        steps: largest number of steps.
        batch_size: structures relaxed at once.
        max_step_size: largest move of an atom per step, Å.
        trajectory: returns a list of all frames for each structure, the given one first.

    Returns:
        Copies of the structures with energy and forces in a calculator, and in `info` the number of `relaxation_steps`
        and whether the forces have `converged`.

    Raises:
        ValueError: the model has no force field, or a structure cannot be used.
    """
    settings = LbfgsConfig(fmax=fmax, steps=steps, max_step_size=max_step_size)
    flat, rebuild = _flattened(structures)
    paths = iterate_relaxed(
        diffusion, flat, settings, batch_size=batch_size, trajectory=trajectory, progress=progress_bar
    )
    return rebuild([path if trajectory else path[-1] for path in paths])


def iterate_relaxed(
    diffusion: Diffusion,
    structures: "Sequence[ase.Atoms]",
    settings: LbfgsConfig,
    *,
    batch_size: int = BATCH_SIZE,
    trajectory: bool = False,
    progress: bool = False,
) -> "Iterator[list[ase.Atoms]]":
    """Yields the frames of each structure's relaxation as they are ready: all with `trajectory`, else only the last.

    Raises:
        ValueError: the model has no force field, or a structure cannot be used; names it by its index.
        FloatingPointError: forces are not finite.
    """
    graphs = usable_graphs(diffusion, structures)
    paths = relax_graphs(diffusion, graphs, settings, batch_size=batch_size, trajectory=trajectory)

    def annotated() -> "Iterator[list[ase.Atoms]]":
        for atoms, graph, (path, steps) in zip(structures, graphs, paths, strict=True):
            frames = [with_results(atoms, graph, point) for point in path]
            pull = np.where(graph.mask[:, None], 0.0, path[-1].forces)
            converged = bool(np.linalg.norm(pull, axis=-1).max() < settings.fmax)
            frames[-1].info |= {"relaxation_steps": steps, "converged": converged}
            yield frames

    return counted(annotated(), "relaxing", len(structures)) if progress else annotated()


def predict(
    diffusion: Diffusion,
    structures: "ase.Atoms | Sequence[Any]",
    batch_size: int = BATCH_SIZE,
    progress_bar: bool = False,
) -> Any:
    """Copies of the structures, in the same nesting, with the model's energy (eV) and forces (eV/Å) in a calculator.

    Raises:
        ValueError: the model has no force field, or a structure cannot be used.
    """
    flat, rebuild = _flattened(structures)
    return rebuild(list(iterate_predicted(diffusion, flat, batch_size=batch_size, progress=progress_bar)))


def iterate_predicted(
    diffusion: Diffusion, structures: "Sequence[ase.Atoms]", *, batch_size: int = BATCH_SIZE, progress: bool = False
) -> "Iterator[ase.Atoms]":
    """`predict` for a flat list; yields results as they are ready.

    Raises:
        ValueError: the model has no force field, or a structure cannot be used; names it by its index.
    """
    graphs = usable_graphs(diffusion, structures)
    points = evaluate_graphs(diffusion, graphs, batch_size=batch_size)

    annotated = map(with_results, structures, graphs, points)
    return counted(annotated, "predicting", len(structures)) if progress else annotated


def usable_graphs(diffusion: Diffusion, structures: "Sequence[ase.Atoms]") -> list[AtomsGraph]:
    """Graphs of structures, with FixAtoms as masks, if the force field was trained on their elements.

    Raises:
        ValueError: the model has no force field, or a structure cannot be used; names it by its index.
    """
    require_force_field(diffusion.model, "this")
    forces = diffusion.config.force_field
    # Training data of the force field may have more elements than the data of the diffusion.
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
    batch_size: int = BATCH_SIZE,
    trajectory: bool = False,
) -> Iterator[tuple[list[Point], int]]:
    """Yields the points of each relaxation (all with `trajectory`, else the last one) and its number of steps.

    Raises:
        FloatingPointError: forces are not finite.
    """
    config, model = diffusion.config, diffusion.model

    def run(inputs: tuple[AtomsGraph], sizes: BucketCapacity) -> "_Path":
        relax_batch = compiled_relax(
            model.force_field, config.model.cutoff, settings, sizes.slots, sizes.images, trajectory
        )
        done, frames = relax_batch(diffusion.params, *inputs)
        # Frames come with their number first; chunks want structures first.
        parts = None if frames is None else tuple(np.moveaxis(np.asarray(leaf), 1, 0) for leaf in frames)
        return _Path(done, parts, done.overflow)

    for graph, path in zip(graphs, _evaluated(diffusion, graphs, run, batch_size), strict=True):
        count, steps, done = len(graph.x), int(path.done.steps), path.done
        ends = [(done.graph.pos, done.energy, done.forces)]
        states = ends if path.frames is None else zip(*(part[: steps + 1] for part in path.frames), strict=True)
        yield [_point(graph, pos[:count], energy, forces[:count]) for pos, energy, forces in states], steps


class _Path(NamedTuple):
    """A batch of relaxations on the host."""

    done: Relaxed
    frames: tuple[np.ndarray, ...] | None  # positions, energies and forces, structures first
    overflow: Any


def evaluate_graphs(
    diffusion: Diffusion, graphs: Sequence[AtomsGraph], *, batch_size: int = BATCH_SIZE
) -> Iterator[Point]:
    """Yields energy (eV) and forces (eV/Å) of each structure.

    Raises:
        FloatingPointError: they are not finite.
    """

    def run(inputs: tuple[AtomsGraph], sizes: BucketCapacity) -> Evaluated:
        evaluate = compiled_force(diffusion.model.force_field, diffusion.config.model.cutoff, sizes.slots, sizes.images)
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
    """Returns the force field of one structure (energy in eV, forces in eV/Å), with its neighbor search."""
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
    """The compiled force field of a batch (energies in eV, forces in eV/Å); cached."""
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
    """The compiled relaxation of a batch; cached, so that other structures of the same sizes compile nothing."""
    return make_relax(make_force(force_field, cutoff, capacity, images), settings, trajectory=trajectory)


def with_results(atoms: "ase.Atoms", graph: AtomsGraph, point: Point) -> "ase.Atoms":
    """A copy of the atoms, displaced as much as their graph, with energy and forces in a calculator.

    Displacing instead of copying positions keeps atoms that did not move to the last bit of double precision.
    """
    from ase.calculators.singlepoint import SinglePointCalculator

    copy = atoms.copy()
    copy.arrays["positions"] += np.asarray(point.graph.pos, float) - np.asarray(graph.pos, float)
    copy.calc = SinglePointCalculator(copy, energy=point.energy, forces=point.forces)
    return copy


def _point(graph: AtomsGraph, pos: np.ndarray, energy: Any, forces: np.ndarray) -> Point:
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise FloatingPointError(
            "the force field returned numbers that are not finite; relax with a smaller max_step_size"
        )
    return Point(graph._replace(pos=pos), float(energy), np.asarray(forces, float))


def _flattened(structures: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The structures of nested lists as one list, and a function that restores the nesting for their results."""
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
