"""The command `agedi sample`, and the flags that it shares with `agedi inpaint`."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import tyro

from agedi.cli.structures import read_one, timed, write_results
from agedi.sampling.config import ForcefieldGuidanceConfig, SampleConfig, SamplerConfig
from matterform.arguments import OUT_NAMES, Out
from matterform.config import setting

Properties = tyro.conf.UseAppendAction[tuple[str, ...]]
MODEL_NAMES = ("checkpoint", "restore_path")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceFlags:
    """Guidance of samples by the force field of the model, and their relaxation."""

    ff_guidance: float = ForcefieldGuidanceConfig.guidance  # weight of the forces during sampling, 1/eV; 0: off
    ff_zeta: float = ForcefieldGuidanceConfig.zeta  # exponent of the weight, which grows as (1 - t)^zeta
    # largest force at which relaxation stops, eV/Å
    ff_force_threshold: float = ForcefieldGuidanceConfig.force_threshold
    # largest number of L-BFGS relaxation steps after sampling; 0: no relaxation
    ff_max_extra_steps: int = ForcefieldGuidanceConfig.max_extra_steps

    def config(self) -> ForcefieldGuidanceConfig:
        """The settings of guidance."""
        return ForcefieldGuidanceConfig(
            guidance=self.ff_guidance,
            zeta=self.ff_zeta,
            force_threshold=self.ff_force_threshold,
            max_extra_steps=self.ff_max_extra_steps,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """Number of samples, their seed, and what they are conditioned on."""

    # number of structures to sample; for inpainting, per given structure
    num_samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = setting(SampleConfig.num_samples, "n_samples")
    # random seed; sample i depends on the seed and i only
    seed: Annotated[int, tyro.conf.arg(aliases=["-s"])] = SampleConfig.seed
    # number of structures sampled at once; changes speed and memory, not the samples
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = SampleConfig.batch_size
    sampler: SamplerConfig = SampleConfig.sampler  # solver of the reverse process
    guidance: GuidanceFlags = GuidanceFlags()  # guidance of samples by the force field of the model
    property: Properties = ()  # condition: NAME=VALUE, or NAME=VALUE,VALUE,... for one value per atom; repeatable
    # heights (Å) of the walls z_min and z_max, for models with a confinement; none: those of the training data
    confinement: tuple[float, float] | None = None
    save_trajectory: bool = SampleConfig.save_trajectory  # write all frames of each sample to a file of its own
    progress: bool = setting(SampleConfig.progress, "progress_bar")  # show a progress bar
    print_timings: bool = False  # print the time that sampling took, in seconds

    def config(self) -> SampleConfig:
        """The settings of sampling."""
        return SampleConfig(
            num_samples=self.num_samples,
            seed=self.seed,
            batch_size=self.batch_size,
            save_trajectory=self.save_trajectory,
            progress=self.progress,
            sampler=self.sampler,
            guidance=self.guidance.config(),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """Samples structures and appends each to OUT/NAME.traj as soon as it is ready.

    Whatever the model does not generate must be given: a formula or atomic numbers, and a cell unless all training
    structures share one.

    agedi sample logs/version_0 --formula Cu8 --cell 5 0 0 0 5 0 0 0 15 --num-samples 32

    agedi sample logs/version_0 --num-atoms 5 --property energy=-3.5 --guidance-weight 2
    """

    # trained model: a run folder, or checkpoints/best_model or checkpoints/last_model in it
    model: pathlib.Path = setting(dataclasses.MISSING, *MODEL_NAMES)
    # number of atoms to sample, not counting the template's; none: from the species
    num_atoms: Annotated[int | None, tyro.conf.arg(aliases=["-a"])] = setting(None, "n_atoms")
    # chemical formula of the sampled atoms, e.g. Pd4O4
    formula: Annotated[str | None, tyro.conf.arg(aliases=["-f"])] = None
    atomic_numbers: tuple[int, ...] | None = None  # atomic numbers of the sampled atoms, instead of a formula
    # cell: three lengths (Å), lengths and angles (degrees), or nine numbers (Å, vectors as rows); none: the model's
    cell: Annotated[tuple[float, ...] | None, tyro.conf.arg(aliases=["-c"])] = None
    # file with one structure: its atoms stay fixed and come first in every sample, its cell is used
    template: Annotated[pathlib.Path | None, tyro.conf.arg(aliases=["-t"])] = setting(None, "template_path")
    # file with one structure that gives the positions, for models that generate species only
    positions: pathlib.Path | None = setting(None, "positions_path")
    periodic: bool = True  # periodic as the template or else the training data; --no-periodic: not at all
    sampling: SamplingFlags = SamplingFlags()  # number of samples, their seed, and what they are conditioned on
    out: Out = setting(pathlib.Path("."), *OUT_NAMES)  # folder for the results
    name: str = "sampled"  # name of the result file, without suffix


def run_sample(arguments: SampleArguments) -> int:
    """Runs `agedi sample`; returns the exit status.

    Raises:
        FileNotFoundError: the run, or the file of a template or of positions, does not exist.
        ValueError: as `agedi.sample`.
        FloatingPointError: positions are not finite.
    """
    from agedi.checkpoint import load_diffusion
    from agedi.sampling.request import SampleRequest
    from agedi.sampling.sample import iterate_samples

    flags, config = arguments.sampling, arguments.sampling.config()
    placed = None if arguments.positions is None else read_one(arguments.positions)
    cell, pbc = arguments.cell, None
    if placed is not None:
        pbc = placed.pbc
        cell = placed.cell.array if cell is None and pbc.any() else cell
    request = SampleRequest(
        num_atoms=arguments.num_atoms,
        atomic_numbers=arguments.atomic_numbers,
        formula=arguments.formula,
        positions=None if placed is None else placed.positions,
        cell=cell,
        pbc=pbc if arguments.periodic else False,
        template=None if arguments.template is None else read_one(arguments.template),
        confinement=flags.confinement,
        property=parse_properties(flags.property),
    )
    samples = iterate_samples(load_diffusion(arguments.model), request, config)
    results = (one.atoms() for one in samples)
    with timed("sampling", flags.print_timings):
        write_results(arguments.out, arguments.name, results, config.save_trajectory, config.num_samples)
    return 0


def parse_properties(given: Iterable[str]) -> Mapping[str, Any] | None:
    """Values by name from NAME=VALUE, or NAME=VALUE,VALUE,... for one value per atom; None if there are none.

    Raises:
        ValueError: a text does not have this form, or a property is given twice.
    """
    properties: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        try:
            values = [float(part) for part in value.split(",")]
        except ValueError:
            values = []
        if not (name and separator and values):
            raise ValueError(f"--property must be NAME=VALUE with a number, such as energy=-3.5; got {text!r}")
        if name in properties:
            raise ValueError(f"--property {name} is given twice")
        properties[name] = values[0] if len(values) == 1 else values
    return properties or None
