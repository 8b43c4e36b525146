"""Drawing structures in chunks, each by one compiled reverse process."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from agedi.checks import check_counts, check_force_field
from agedi.config import DiffusionConfig
from agedi.data.buckets import Room, counted, geometry_of, run_in_chunks
from agedi.data.graph import AtomsGraph, pad_graph
from agedi.diffusion import Diffusion
from agedi.forcefield.lbfgs import LbfgsConfig
from agedi.forcefield.relaxation import relax_graphs
from agedi.network.score import ScoreModel
from agedi.sampling.request import Start, Wanted, make_start
from agedi.sampling.reverse import SAMPLERS, InpaintConfig, ReverseResult, SamplerConfig, make_reverse

if TYPE_CHECKING:
    import ase

PROGRAMS = 32  # compiled samplers kept
# Settings that only some samplers have.
SPECIAL = {
    "churn": ("heun",),
    "corrector_steps": ("pc", "ffpc"),
    "corrector_snr": ("pc", "ffpc"),
    "save_corrector_frames": ("pc", "ffpc"),
    "mixing_zeta": ("ffpc",),
    "temperature": ("ffpc",),
    "terminal_steps": ("ffpc",),
    "terminal_dynamics": ("ffpc",),
    "terminal_step_size": ("ffpc",),
    "terminal_friction": ("ffpc",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForcefieldGuidanceConfig:
    """How the model's force field takes part in sampling."""

    guidance: float = 0.0  # 1/eV: weight of the forces on the predicted clean structure
    zeta: float = 3.0  # times (1 - t)^zeta, so that they count late
    force_threshold: float = 0.05  # eV/Å, where the extra steps stop
    max_extra_steps: int = 0  # of L-BFGS after sampling

    def __post_init__(self) -> None:
        for name in ("guidance", "zeta", "max_extra_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"ff_guidance: {name} must be at least 0; got {getattr(self, name)}")


class Drawn(NamedTuple):
    """A sample and how it came about."""

    start: Start
    frames: list[AtomsGraph]  # the last one is the sample

    def atoms(self) -> "list[ase.Atoms]":
        """The frames for ASE; fixed atoms are exactly those that were given."""
        return [place(self.start.atoms, graph) for graph in self.frames]


def sample(
    diffusion: Diffusion,
    *,
    n_samples: int = 1,
    n_atoms: int | None = None,
    atomic_numbers: Any = None,
    formula: str | None = None,
    positions: Any = None,
    cell: Any = None,
    pbc: Any = None,
    template: "ase.Atoms | AtomsGraph | None" = None,
    confinement: Any = None,
    property: Mapping[str, Any] | None = None,
    guidance_weight: float | None = None,
    sampler: str = "em",
    steps: int = 500,
    eps: float = 1e-3,
    seed: int = 42,
    batch_size: int = 64,
    ff_guidance: float | ForcefieldGuidanceConfig | Mapping[str, Any] | None = None,
    save_trajectory: bool = False,
    sampler_kwargs: Mapping[str, Any] | None = None,
    progress_bar: bool = False,
    as_atoms: bool = True,
) -> list[Any]:
    """Draws structures; the same seed gives the same ones, whatever the batch size.

    What the model does not draw must be given: species by `atomic_numbers` or `formula`, `positions` where it draws
    species only, and a cell unless nothing is periodic or the training data share one.

    Args:
        n_atoms: how many atoms to draw, those of a template not counted; follows from the species if they are given.
        atomic_numbers: of the atoms to draw. Where the model draws species, they prescribe the composition, and which
            atom is which is drawn.
        formula: the same, as `Cu2O`.
        positions: (n_atoms, 3) in Å, only where positions are not drawn.
        cell: lattice vectors as rows in Å: three lengths, lengths and angles (degrees), nine numbers or a matrix.
        pbc: periodic directions; by default those of the training data, or else all (none for `Positions`).
        template: fixed atoms, which come first in every sample, with their cell.
        confinement: z_min and z_max in Å, where the model confines; by default those of the training data.
        property: values by name, for a conditional model; a number, or a number for every atom (template first).
        guidance_weight: how strongly to follow the property: 1 (default) samples the conditional model.
        sampler: `em`, `pc`, `heun`, `ddim`, `heun_ode` or `ffpc`.
        steps: of the sampler.
        eps: diffusion time of the last step, which goes to 0.
        ff_guidance: a weight (1/eV), or `ForcefieldGuidanceConfig`, for models with a force field.
        save_trajectory: returns a list of all frames for each sample.
        sampler_kwargs: other fields of `agedi.sampling.reverse.SamplerConfig`.
        as_atoms: otherwise `AtomsGraph`s.

    Returns:
        ASE's Atoms, or lists of them with `save_trajectory`.

    Raises:
        ValueError: something is missing, contradicts the model or something else, or is out of range.
    """
    wanted = Wanted(
        n_atoms=n_atoms,
        atomic_numbers=atomic_numbers,
        formula=formula,
        positions=positions,
        cell=cell,
        pbc=pbc,
        template=template,
        confinement=confinement,
        property=property,
    )
    guidance = force_field_guidance(ff_guidance)
    settings = sampler_settings(
        sampler, steps, guidance_weight, property, guidance, {"eps": eps, **(sampler_kwargs or {})}
    )
    drawn = draw(
        diffusion,
        wanted,
        settings,
        n_samples=n_samples,
        seed=seed,
        batch_size=batch_size,
        trajectory=save_trajectory,
        guidance=guidance,
        progress=progress_bar,
    )
    return [as_result(one, save_trajectory, as_atoms) for one in drawn]


def as_result(drawn: Drawn, trajectory: bool, as_atoms: bool) -> Any:
    """One structure, or with `trajectory` the list of its frames."""
    frames = drawn.atoms() if as_atoms else drawn.frames
    return frames if trajectory else frames[-1]


def draw(
    diffusion: Diffusion,
    wanted: Wanted,
    settings: SamplerConfig,
    *,
    n_samples: int = 1,
    seed: int = 42,
    batch_size: int = 64,
    trajectory: bool = False,
    guidance: ForcefieldGuidanceConfig | None = None,
    progress: bool = False,
) -> Iterator[Drawn]:
    """Yields samples as they come; everything is checked before the first.

    Raises:
        ValueError: something is missing, contradicts the model or something else, or is out of range.
    """
    check_counts(n_samples=n_samples)
    starts = [make_start(diffusion.config, wanted)] * n_samples
    return draw_from(
        diffusion,
        starts,
        settings,
        seed=seed,
        batch_size=batch_size,
        trajectory=trajectory,
        guidance=guidance,
        progress=progress,
    )


def draw_from(
    diffusion: Diffusion,
    starts: Sequence[Start],
    settings: SamplerConfig,
    *,
    seed: int,
    batch_size: int,
    trajectory: bool = False,
    guidance: ForcefieldGuidanceConfig | None = None,
    inpaint: InpaintConfig | None = None,
    progress: bool = False,
) -> Iterator[Drawn]:
    """Runs the reverse process from every start, each with a key of its own; all must prescribe the same things."""
    check_counts(seed=seed, batch_size=batch_size)
    if settings.sampler == "ffpc":
        check_force_field(diffusion.model, "sampler ffpc")
    if settings.ff_guidance > 0 or (guidance is not None and guidance.max_extra_steps > 0):
        check_force_field(diffusion.model, "ff_guidance")
    results = _run(diffusion, starts, settings, seed, batch_size, trajectory, inpaint)
    drawn = (Drawn(start, _frames(start, result)) for start, result in zip(starts, results, strict=True))
    if guidance is not None and guidance.max_extra_steps:
        drawn = _relaxed(diffusion, drawn, guidance, batch_size, trajectory)
    return counted(drawn, "sampling", len(starts)) if progress else drawn


def _run(
    diffusion: Diffusion,
    starts: Sequence[Start],
    settings: SamplerConfig,
    seed: int,
    batch_size: int,
    trajectory: bool,
    inpaint: InpaintConfig | None,
) -> Iterator[ReverseResult]:
    config, model, key = diffusion.config, diffusion.model, jax.random.key(seed)

    def padded(index: int, length: int) -> tuple[Any, ...]:
        start = starts[index]
        left = np.zeros(len(config.species), np.int32) if start.remaining is None else start.remaining
        inputs = np.uint32(index), pad_graph(start.graph, length), _pad(start.conditions, length), left
        return inputs if start.selected is None else (*inputs, _pad(start.selected, length))

    def run(inputs: tuple[Any, ...], room: Room) -> ReverseResult:
        reverse = compiled_reverse(
            config,
            model.apply,
            model.force_field,
            settings,
            capacity=room.capacity,
            images=room.images,
            trajectory=trajectory,
            constrained=starts[0].remaining is not None,
            inpaint=inpaint,
        )
        indices, *others = inputs
        return reverse(model.params, jax.vmap(lambda index: jax.random.fold_in(key, index))(indices), *others)

    geometries = [geometry_of(start.graph) for start in starts]
    return run_in_chunks(geometries, padded, run, cutoff=config.model.cutoff, batch_size=batch_size)


@functools.lru_cache(maxsize=PROGRAMS)
def compiled_reverse(
    config: DiffusionConfig,
    apply: Callable[..., Any],
    force_field: Callable[..., Any] | None,
    settings: SamplerConfig,
    *,
    capacity: int,
    images: tuple[int, int, int],
    trajectory: bool,
    constrained: bool,
    inpaint: InpaintConfig | None,
) -> Callable[..., ReverseResult]:
    """`make_reverse`, kept: another formula of the same sizes does not compile anything."""
    return make_reverse(
        config,
        ScoreModel({}, apply, force_field),
        settings,
        capacity=capacity,
        images=images,
        trajectory=trajectory,
        constrained=constrained,
        inpaint=inpaint,
    )


def sampler_settings(
    sampler: str,
    steps: int,
    guidance_weight: float | None,
    property: Mapping[str, Any] | None,
    guidance: ForcefieldGuidanceConfig,
    sampler_kwargs: Mapping[str, Any] | None,
) -> SamplerConfig:
    """The arguments of `sample` that say how to draw, checked."""
    check_counts(steps=steps)
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {sampler!r}")
    sampler_kwargs = sampler_kwargs or {}
    if guidance_weight is not None and not property:
        raise ValueError(f"guidance_weight is for a property; got guidance_weight={guidance_weight} and no property")
    known = {field.name for field in dataclasses.fields(SamplerConfig)}
    known -= {"sampler", "steps", "guidance_weight", "ff_guidance", "ff_zeta"}  # which have arguments of their own
    if unknown := [name for name in sampler_kwargs if name not in known]:
        raise ValueError(f"sampler_kwargs must be among {', '.join(sorted(known))}; got {unknown[0]!r}")
    for name in sampler_kwargs:
        if sampler not in SPECIAL.get(name, (sampler,)):
            raise ValueError(f"{name} is for sampler {' or '.join(SPECIAL[name])}; the sampler is {sampler}")
    if "rho" in sampler_kwargs and sampler_kwargs.get("grid") != "rho":
        raise ValueError("rho is for grid rho; the grid is uniform")
    return SamplerConfig(
        sampler=sampler,  # pyright: ignore[reportArgumentType]  # one of SAMPLERS
        steps=steps,
        guidance_weight=1.0 if guidance_weight is None else float(guidance_weight),
        ff_guidance=guidance.guidance,
        ff_zeta=guidance.zeta,
        **sampler_kwargs,
    )


def force_field_guidance(
    given: float | ForcefieldGuidanceConfig | Mapping[str, Any] | None,
) -> ForcefieldGuidanceConfig:
    """The argument `ff_guidance` as a config."""
    if given is None or isinstance(given, ForcefieldGuidanceConfig):
        return given or ForcefieldGuidanceConfig()
    if not isinstance(given, Mapping):
        return ForcefieldGuidanceConfig(guidance=float(given))
    known = [field.name for field in dataclasses.fields(ForcefieldGuidanceConfig)]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"ff_guidance may have {', '.join(known)}; got {unknown[0]!r}")
    return ForcefieldGuidanceConfig(**given)


def place(atoms: "ase.Atoms", graph: AtomsGraph) -> "ase.Atoms":
    """A copy of the atoms whose free ones have the species and positions of the graph; the others stay as they are."""
    copy, free = atoms.copy(), ~np.asarray(graph.mask)
    copy.arrays["positions"][free] = np.asarray(graph.pos, float)[free]
    copy.arrays["numbers"][free] = np.asarray(graph.x)[free]
    return copy


def _pad(tree: Any, length: int) -> Any:
    """Arrays of an entry an atom padded by zeros; single numbers as they are."""
    return jax.tree.map(lambda leaf: np.pad(leaf, (0, length - len(leaf))) if leaf.ndim else leaf, tree)


def _frames(start: Start, result: ReverseResult) -> list[AtomsGraph]:
    """The frames of one result without padding, the sample last."""
    count = len(start.graph.x)
    states = [] if result.frames is None else list(zip(result.frames.pos, result.frames.x, strict=True))[:-1]
    states.append((result.graph.pos, result.graph.x))
    frames = [start.graph._replace(pos=pos[:count], x=x[:count]) for pos, x in states]
    if not np.isfinite(frames[-1].pos).all():
        raise FloatingPointError(
            "sampling gave positions that are not finite; use more steps, less guidance, or train for longer"
        )
    if start.selected is not None:
        # In the end the atoms that were not selected are where they were, and stay there in a relaxation.
        frames[-1] = frames[-1]._replace(mask=~start.selected)
    return frames


def _relaxed(
    diffusion: Diffusion,
    samples: Iterator[Drawn],
    guidance: ForcefieldGuidanceConfig,
    batch_size: int,
    trajectory: bool,
) -> Iterator[Drawn]:
    """Moves samples to a minimum; with `trajectory` their frames go on, without the first, which is there already."""
    settings = LbfgsConfig(fmax=guidance.force_threshold, steps=guidance.max_extra_steps)
    while chunk := list(itertools.islice(samples, batch_size)):
        graphs = [drawn.frames[-1] for drawn in chunk]
        ways = relax_graphs(diffusion, graphs, settings, batch_size=batch_size, trajectory=trajectory)
        for drawn, (way, _) in zip(chunk, ways, strict=True):
            frames = [point.graph for point in way]
            yield drawn._replace(frames=[*drawn.frames, *frames[1:]] if trajectory else frames)
