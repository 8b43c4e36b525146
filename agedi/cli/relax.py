"""The commands `agedi relax` and `agedi predict`, which use the force field of a model."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import tyro

from agedi.cli.sample import MODEL_NAMES
from agedi.cli.structures import read_all, write_results
from agedi.forcefield.config import BATCH_SIZE, LbfgsConfig
from matterform.arguments import OUT_NAMES, Out
from matterform.commandline import say
from matterform.config import setting

if TYPE_CHECKING:
    import ase

BatchSize = Annotated[int, tyro.conf.arg(aliases=["-b"])]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelaxArguments:
    """Relaxes structures with the force field of a model and writes them to OUT/NAME.traj; FixAtoms are kept.

    agedi relax logs/version_0 sampled.traj --fmax 0.02
    """

    # trained model: a run folder, or checkpoints/best_model or checkpoints/last_model in it
    model: pathlib.Path = setting(dataclasses.MISSING, *MODEL_NAMES)
    structures: pathlib.Path = setting(dataclasses.MISSING, "input")  # file of structures to relax
    minimizer: LbfgsConfig = LbfgsConfig()  # L-BFGS; the defaults are those of ASE
    # number of structures relaxed at once; changes speed and memory, not the results
    batch_size: BatchSize = BATCH_SIZE
    save_trajectory: bool = False  # write all frames of each structure to a file of its own
    progress: bool = setting(False, "progress_bar")  # show a progress bar
    out: Out = setting(pathlib.Path("."), *OUT_NAMES)  # folder for the results
    name: str = "relaxed"  # name of the result file, without suffix


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Predicts energies (eV) and forces (eV/Å) of structures and writes both to OUT/NAME.traj.

    agedi predict logs/version_0 sampled.traj
    """

    # trained model: a run folder, or checkpoints/best_model or checkpoints/last_model in it
    model: pathlib.Path = setting(dataclasses.MISSING, *MODEL_NAMES)
    structures: pathlib.Path = setting(dataclasses.MISSING, "input")  # file of structures
    # number of structures predicted at once; changes speed and memory, not the results
    batch_size: BatchSize = BATCH_SIZE
    progress: bool = setting(False, "progress_bar")  # show a progress bar
    out: Out = setting(pathlib.Path("."), *OUT_NAMES)  # folder for the results
    name: str = "predicted"  # name of the result file, without suffix


def run_relax(arguments: RelaxArguments) -> int:
    """Runs `agedi relax`; returns the exit status.

    Raises:
        FileNotFoundError: the run or the file of structures does not exist.
        ValueError: the model has no force field, or a structure cannot be used.
        FloatingPointError: forces are not finite.
    """
    from agedi.checkpoint import load_diffusion
    from agedi.forcefield.relaxation import iterate_relaxed

    structures, settings = read_all(arguments.structures), arguments.minimizer
    paths = iterate_relaxed(
        load_diffusion(arguments.model),
        structures,
        settings,
        batch_size=arguments.batch_size,
        trajectory=arguments.save_trajectory,
        progress=arguments.progress,
    )
    converged: list[bool] = []

    def counted() -> "Iterator[list[ase.Atoms]]":
        for frames in paths:
            converged.append(frames[-1].info["converged"])
            yield frames

    write_results(arguments.out, arguments.name, counted(), arguments.save_trajectory, len(structures))
    say(f"{sum(converged)} of {len(converged)} relaxed to {settings.fmax} eV/angstrom within {settings.steps} steps")
    return 0


def run_predict(arguments: PredictArguments) -> int:
    """Runs `agedi predict`; returns the exit status.

    Raises:
        FileNotFoundError: the run or the file of structures does not exist.
        ValueError: the model has no force field, or a structure cannot be used.
        FloatingPointError: energies or forces are not finite.
    """
    from agedi.checkpoint import load_diffusion
    from agedi.forcefield.relaxation import iterate_predicted

    structures = read_all(arguments.structures)
    predicted = iterate_predicted(
        load_diffusion(arguments.model), structures, batch_size=arguments.batch_size, progress=arguments.progress
    )
    write_results(arguments.out, arguments.name, ([atoms] for atoms in predicted), False, len(structures))
    return 0
