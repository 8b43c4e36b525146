"""The command `agedi inpaint`."""

import dataclasses
import pathlib

from agedi.cli.sample import MODEL_NAMES, SamplingFlags, parse_properties
from agedi.cli.structures import read_all, timed, write_by_structure
from agedi.sampling.config import InpaintConfig, Selection
from matterform.arguments import OUT_NAMES, Out
from matterform.config import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class InpaintArguments:
    """Resamples some atoms of a structure while the others stay in place, and writes OUT/NAME.traj.

    Selected are all atoms that any selector names, or without a selector a random fraction. The results of several
    structures are written to OUT/NAME_structJ.traj.

    agedi inpaint logs/version_0 slab.traj --symbols O --num-samples 8

    agedi inpaint logs/version_0 cluster.xyz --fraction 0.3 --contiguous --t-start 0.6
    """

    # trained model: a run folder, or checkpoints/best_model or checkpoints/last_model in it
    model: pathlib.Path = setting(dataclasses.MISSING, *MODEL_NAMES)
    structures: pathlib.Path = setting(dataclasses.MISSING, "structure")  # file of structures to inpaint
    selection: Selection = Selection()  # atoms to inpaint: all that any selector names, or a random fraction
    inpaint: InpaintConfig = InpaintConfig()  # RePaint (Lugmayr et al. 2022)
    sampling: SamplingFlags = SamplingFlags()  # number of samples, their seed, and what they are conditioned on
    out: Out = setting(pathlib.Path("."), *OUT_NAMES)  # folder for the results
    name: str = "inpainted"  # name of the result files, without suffix


def run_inpaint(arguments: InpaintArguments) -> int:
    """Runs `agedi inpaint`; returns the exit status.

    Raises:
        FileNotFoundError: the run or the file of structures does not exist.
        ValueError: as `agedi.inpaint`.
        FloatingPointError: positions are not finite.
    """
    from agedi.checkpoint import load_diffusion
    from agedi.sampling.inpainting import InpaintRequest, iterate_inpainted

    flags, config = arguments.sampling, arguments.sampling.config()
    structures = read_all(arguments.structures)
    request = InpaintRequest(
        selection=arguments.selection, confinement=flags.confinement, property=parse_properties(flags.property)
    )
    samples = iterate_inpainted(load_diffusion(arguments.model), structures, request, arguments.inpaint, config)
    results = (one.atoms() for one in samples)
    with timed("inpainting", flags.print_timings):
        counts = [config.num_samples] * len(structures)
        write_by_structure(arguments.out, arguments.name, results, config.save_trajectory, counts)
    return 0
