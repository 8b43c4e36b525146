"""The commands that use a trained model: sample, inpaint, relax, predict."""

import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from matterform.commandline_old import parse, say

if TYPE_CHECKING:
    import ase

    from agedi.sampling.config import SampleConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How to draw."""

    steps: int = 500
    eps: float | None = None  # diffusion time at which the last step starts; 1e-3 by default
    sampler: Literal["em", "pc", "heun", "ddim", "heun_ode", "ffpc"] = "em"
    grid: Literal["uniform", "rho"] | None = None  # steps uniform in time, or in noise level^(1 / rho)
    rho: float | None = None  # with --grid rho; 7 by default
    property: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # NAME=VALUE, for a conditional model
    guidance_weight: float | None = None  # how strongly to follow the property; 1 by default
    churn: float | None = None  # heun: noise renewed, spread over the steps
    corrector_steps: Annotated[int | None, tyro.conf.arg(aliases=["--ffpc-corrector-steps"])] = None  # pc, ffpc
    corrector_snr: float | None = None  # pc, ffpc: length of a correction over the noise in it
    ffpc_zeta: float | None = None  # forces have the share (1 - t)^zeta in corrections
    ffpc_temperature: float | None = None  # k_B T in eV
    ffpc_terminal_steps: int | None = None  # steps of dynamics at the end
    ffpc_terminal_step_size: float | None = None  # angstrom^2/eV, or fs for langevin_md
    ffpc_terminal_dynamics: Literal["overdamped", "langevin_md"] | None = None
    ffpc_terminal_friction: float | None = None  # 1/fs
    ff_guidance: float = 0.0  # 1/eV: weight of the model's forces
    ff_zeta: float = 3.0  # times (1 - t)^zeta
    ff_max_extra_steps: int = 0  # relaxation steps after sampling
    ff_force_threshold: float = 0.05  # eV/angstrom, where they stop
    seed: Annotated[int, tyro.conf.arg(aliases=["-s"])] = 42
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 64
    confinement: tuple[float, float] | None = None  # z_min z_max in angstrom
    save_trajectory: bool = False  # writes the frames of each sample to a file of its own
    save_corrector_frames: bool = False
    progress_bar: bool = False
    print_timings: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Draws structures into OUTPUT/NAME.traj, as they come.

    What the model does not draw must be given: a formula or atomic numbers, and a cell where the training data shared
    none.

    agedi sample logs/version_0 --formula Cu8 --cell 5 0 0 0 5 0 0 0 15 --n-samples 32

    agedi sample logs/version_0 --n-atoms 5 --property energy=-3.5 --guidance-weight 2
    """

    path: tyro.conf.Positional[pathlib.Path]  # a training run, or one of its checkpoints
    n_samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 12
    n_atoms: Annotated[int | None, tyro.conf.arg(aliases=["-a"])] = None  # to draw, without a template's
    formula: Annotated[str | None, tyro.conf.arg(aliases=["-f"])] = None  # of the atoms to draw
    atomic_numbers: tuple[int, ...] | None = None  # of the atoms to draw
    cell: Annotated[tuple[float, ...] | None, tyro.conf.arg(aliases=["-c"])] = None  # 3, 6 or 9 numbers
    template_path: Annotated[pathlib.Path | None, tyro.conf.arg(aliases=["-t"])] = None  # fixed atoms and their cell
    positions_path: pathlib.Path | None = None  # structure whose positions to take, where only species are drawn
    non_periodic: bool = False
    drawing: SamplerOptions = SamplerOptions()
    output: Annotated[pathlib.Path, tyro.conf.arg(aliases=["-o"])] = pathlib.Path(".")  # folder
    name: str = "sampled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inpaint:
    """Draws part of a structure anew into OUTPUT/NAME.traj; of several structures into NAME_structJ.traj each.

    The atoms are those that any of the selectors names, or without one a random fraction.

    agedi inpaint logs/version_0 slab.traj --symbols O --n-samples 8

    agedi inpaint logs/version_0 cluster.xyz --fraction 0.3 --contiguous --t-start 0.6
    """

    path: tyro.conf.Positional[pathlib.Path]  # a training run, or one of its checkpoints
    structure: tyro.conf.Positional[pathlib.Path]
    indices: tuple[int, ...] | None = None  # from 0; negative ones from the end
    symbols: tuple[str, ...] | None = None
    z_range: tuple[float, float] | None = None  # angstrom
    sphere_center: tuple[float, float, float] | None = None  # angstrom
    sphere_radius: float | None = None
    from_atoms: bool = False  # reads the per-atom array inpaint_mask
    fraction: float = 0.25  # of the atoms that are not fixed, where nothing is selected
    contiguous: bool = False  # these next to each other
    freeze: tuple[str, ...] = ()  # indices to hold fixed besides FixAtoms, or `all` that is not selected
    n_samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 4
    t_start: float = 1.0  # below 1 the selected atoms begin at their noised positions
    n_resample: int = 1  # passes over each step
    jump_length: int = 1  # smaller steps a step
    drawing: SamplerOptions = SamplerOptions()
    output: Annotated[pathlib.Path, tyro.conf.arg(aliases=["-o"])] = pathlib.Path(".")  # folder
    name: str = "inpainted"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Relax:
    """Relaxes structures with the model's force field, into OUTPUT/NAME.traj; FixAtoms are kept.

    agedi relax logs/version_0 sampled.traj --fmax 0.02
    """

    path: tyro.conf.Positional[pathlib.Path]  # a training run, or one of its checkpoints
    input: tyro.conf.Positional[pathlib.Path]  # structures
    fmax: float = 0.05  # eV/angstrom
    steps: int = 200  # at most
    max_step_size: float = 0.2  # angstrom
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 64
    output: Annotated[pathlib.Path, tyro.conf.arg(aliases=["-o"])] = pathlib.Path(".")  # folder
    name: str = "relaxed"
    save_trajectory: bool = False  # writes the frames of each structure to a file of its own
    progress_bar: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Writes structures with the model's energies and forces to OUTPUT/NAME.traj.

    agedi predict logs/version_0 sampled.traj
    """

    path: tyro.conf.Positional[pathlib.Path]  # a training run, or one of its checkpoints
    input: tyro.conf.Positional[pathlib.Path]  # structures
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 64
    output: Annotated[pathlib.Path, tyro.conf.arg(aliases=["-o"])] = pathlib.Path(".")  # folder
    name: str = "predicted"
    progress_bar: bool = False


def run_sample(argv: Sequence[str]) -> int:
    """`agedi sample`."""
    from agedi.checkpoint import load_diffusion
    from agedi.sampling.request import SampleRequest
    from agedi.sampling.sample import iterate_samples

    arguments = parse(Sample, "agedi sample", argv)
    options = arguments.drawing
    placed = None if arguments.positions_path is None else read_one(arguments.positions_path)
    request = SampleRequest(
        n_atoms=arguments.n_atoms,
        atomic_numbers=arguments.atomic_numbers,
        formula=arguments.formula,
        positions=None if placed is None else placed.positions,
        cell=placed.cell.array
        if arguments.cell is None and placed is not None and placed.pbc.any()
        else arguments.cell,
        pbc=False if arguments.non_periodic else None if placed is None else placed.pbc,
        template=None if arguments.template_path is None else read_one(arguments.template_path),
        confinement=options.confinement,
        property=parse_properties(options.property),
    )
    samples = iterate_samples(load_diffusion(arguments.path), request, sample_config(options, arguments.n_samples))
    with timed("sampling", options.print_timings):
        return write_results(
            arguments.output, arguments.name, (one.atoms() for one in samples), options.save_trajectory
        )


def run_inpaint(argv: Sequence[str]) -> int:
    """`agedi inpaint`."""
    from agedi.checkpoint import load_diffusion
    from agedi.sampling.config import InpaintConfig, Selection
    from agedi.sampling.inpainting import InpaintRequest, iterate_inpainted

    arguments = parse(Inpaint, "agedi inpaint", argv)
    options, structures = arguments.drawing, read_all(arguments.structure)
    if (arguments.sphere_center is None) != (arguments.sphere_radius is None):
        raise ValueError("a sphere needs --sphere-center and --sphere-radius")
    sphere = None if arguments.sphere_center is None else (*arguments.sphere_center, arguments.sphere_radius)
    selection = Selection(
        indices=arguments.indices,
        symbols=arguments.symbols,
        z_range=arguments.z_range,
        sphere=sphere,  # pyright: ignore[reportArgumentType]  # both parts are given or none
        from_atoms=arguments.from_atoms,
        fraction=arguments.fraction,
        contiguous=arguments.contiguous,
        freeze=parse_freeze(arguments.freeze),
    )
    samples = iterate_inpainted(
        load_diffusion(arguments.path),
        structures,
        InpaintRequest(
            selection=selection, confinement=options.confinement, property=parse_properties(options.property)
        ),
        InpaintConfig(t_start=arguments.t_start, n_resample=arguments.n_resample, jump_length=arguments.jump_length),
        sample_config(options, arguments.n_samples),
    )
    results = (one.atoms() for one in samples)
    with timed("inpainting", options.print_timings):
        if len(structures) == 1:
            return write_results(arguments.output, arguments.name, results, options.save_trajectory)
        for number in range(len(structures)):
            name, part = f"{arguments.name}_struct{number}", _take(results, arguments.n_samples)
            if status := write_results(arguments.output, name, part, options.save_trajectory):
                return status
    return 0


def run_relax(argv: Sequence[str]) -> int:
    """`agedi relax`."""
    from agedi.checkpoint import load_diffusion
    from agedi.forcefield.lbfgs import LbfgsConfig
    from agedi.forcefield.relaxation import iterate_relaxed

    arguments = parse(Relax, "agedi relax", argv)
    settings = LbfgsConfig(fmax=arguments.fmax, steps=arguments.steps, max_step_size=arguments.max_step_size)
    ways = iterate_relaxed(
        load_diffusion(arguments.path),
        read_all(arguments.input),
        settings,
        batch_size=arguments.batch_size,
        trajectory=arguments.save_trajectory,
        progress=arguments.progress_bar,
    )
    converged: list[bool] = []

    def remembered() -> "Iterator[list[ase.Atoms]]":
        for way in ways:
            converged.append(way[-1].info["converged"])
            yield way

    status = write_results(arguments.output, arguments.name, remembered(), arguments.save_trajectory)
    say(f"{sum(converged)} of {len(converged)} relaxed to {arguments.fmax} eV/angstrom within {arguments.steps} steps")
    return status


def run_predict(argv: Sequence[str]) -> int:
    """`agedi predict`."""
    from agedi.checkpoint import load_diffusion
    from agedi.forcefield.relaxation import iterate_predicted

    arguments = parse(Predict, "agedi predict", argv)
    predicted = iterate_predicted(
        load_diffusion(arguments.path),
        read_all(arguments.input),
        batch_size=arguments.batch_size,
        progress=arguments.progress_bar,
    )
    return write_results(arguments.output, arguments.name, ([atoms] for atoms in predicted), False)


def sample_config(options: SamplerOptions, num_samples: int) -> "SampleConfig":
    """The settings of sampling; flags that are not given keep their defaults."""
    from agedi.sampling.config import SampleConfig
    from agedi.sampling.options import configs_from_options

    own = ("property", "confinement", "print_timings")  # not settings of sampling
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name not in own}
    return configs_from_options({"num_samples": num_samples, **given}, SampleConfig)[0]


def parse_properties(given: Iterable[str]) -> Mapping[str, Any] | None:
    """NAME=VALUE, or NAME=VALUE,VALUE,... for a value an atom."""
    properties: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        try:
            values = [float(part) for part in value.split(",")]
        except ValueError:
            values = []
        if not (name and separator and values):
            raise ValueError(f"--property must be NAME=VALUE with a number, as energy=-3.5; got {text!r}")
        if name in properties:
            raise ValueError(f"--property {name} is given twice")
        properties[name] = values[0] if len(values) == 1 else values
    return properties or None


def parse_freeze(given: Sequence[str]) -> tuple[int, ...] | Literal["all"]:
    """Indices, or `all`."""
    if list(given) == ["all"]:
        return "all"
    try:
        return tuple(int(text) for text in given)
    except ValueError as error:
        raise ValueError(f"--freeze must be indices of atoms, or all; got {' '.join(given)!r}") from error


def read_all(path: pathlib.Path) -> "list[ase.Atoms]":
    """The structures of a file; those that cannot be read are named on standard error."""
    from matterform.io.formats import read_structures, to_atoms

    structures, refused = read_structures(path)
    for index, reason in refused.items():
        sys.stderr.write(f"agedi: {path}, structure {index} left out: {reason}\n")
    if not structures:
        raise ValueError(f"{path} holds no structure that can be read")
    return [to_atoms(structure) for structure in structures]


def read_one(path: pathlib.Path) -> "ase.Atoms":
    """The only structure of a file."""
    structures = read_all(path)
    if len(structures) > 1:
        raise ValueError(f"{path} holds {len(structures)} structures, and one is needed; save that one alone")
    return structures[0]


def write_results(folder: pathlib.Path, name: str, results: "Iterable[list[ase.Atoms]]", trajectory: bool) -> int:
    """Appends each result to NAME.traj as it comes, or with `trajectory` writes its frames to NAME_i.traj.

    A file of that name is replaced when the first result is there. Returns the exit status.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = _write_each(folder, name, results) if trajectory else _append(folder / f"{name}.traj", results)
    count, stopped = 0, False
    try:
        for _ in written:
            count += 1
    except KeyboardInterrupt:
        stopped = True  # what has come so far is kept
    where = folder / (f"{name}_*.traj" if trajectory else f"{name}.traj")
    say(f"{count} structure{'s' * (count != 1)} in {where}{', where it was stopped' * stopped}")
    return 130 if stopped else 0


def _write_each(folder: pathlib.Path, name: str, results: "Iterable[list[ase.Atoms]]") -> Iterator[None]:
    """Writes the frames of every result to a file of its own."""
    from matterform.io.formats import write_structures

    for number, frames in enumerate(results):
        write_structures(folder / f"{name}_{number}.traj", frames)
        yield


def _append(path: pathlib.Path, results: "Iterable[list[ase.Atoms]]") -> Iterator[None]:
    """Writes last frames to a trajectory, where they can be read while later ones are still missing."""
    from ase.io.trajectory import TrajectoryWriter

    with contextlib.ExitStack() as stack:
        writer = None
        for frames in results:
            writer = writer or stack.enter_context(TrajectoryWriter(path))
            writer.write(frames[-1])
            yield


def _take(results: Iterator[Any], count: int) -> Iterator[Any]:
    for _ in range(count):
        yield next(results)


@contextlib.contextmanager
def timed(label: str, show: bool) -> Iterator[None]:
    """Says how long the block took, if asked to."""
    begin = time.perf_counter()
    yield
    if show:
        say(f"{label} took {time.perf_counter() - begin:.1f} s, compilation included")
