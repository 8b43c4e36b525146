"""The command line `atomformer`: prepare, pretrain, finetune, predict, evaluate."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import tyro

from atomformer.aliases import PREDICTION_ANSWERS, TRAINING_ALIASES, TRAINING_ANSWERS
from atomformer.config import FinetuneConfig, PretrainConfig, Task, TrainConfig
from matterform.arguments import OUT_NAMES, Command, Out, TrainingRun
from matterform.commandline import main as run_command
from matterform.commandline import on_interrupt, report_run, say, this_command
from matterform.config import setting
from matterform.progress import progress_bar

if TYPE_CHECKING:
    import numpy as np

    from atomformer.config import AtomformerConfig
    from atomformer.data.rows import Row
    from atomformer.data.sources import ReadRow

DESCRIPTION = """A transformer over atoms for energies, forces and properties.

`atomformer COMMAND --help` explains a command. Lengths are in angstrom, energies in eV, forces in eV/angstrom."""

MODEL_NAMES = ("checkpoint", "restore_path", "model_name_or_path")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareArguments:
    """Converts structures into a folder that training opens instantly, or into a parquet file; memory is bounded.

    Sources are extxyz, traj, LMDB, ASE databases, CIF, CSV, parquet, folders of Hugging Face's `datasets`, and the
    pre-training sets as they are distributed (--kind). Structures that cannot be used are left out and listed with the
    reason in OUT.refused.csv.

    atomformer prepare s2ef_train_2M/ oc20 --kind oc20
    """

    source: tyro.conf.Positional[pathlib.Path]  # file or folder of structures
    out: Out = setting(dataclasses.MISSING, *OUT_NAMES)  # new folder for training, or NAME.parquet
    kind: Literal["structures", "mptrj", "oc20", "oc22", "odac23", "spice"] = "structures"  # format of the source
    split: str | None = None  # split of a Hugging Face folder, e.g. train; needed where there are several


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Predicts energies, forces, properties or features of structures and writes them with the structures.

    Structures that cannot be used are named on standard error and left out.

    atomformer predict molecules.xyz --model runs/acac -o predicted.extxyz
    """

    structures: tyro.conf.Positional[pathlib.Path]  # file or folder of structures, in any format
    model: str = setting(dataclasses.MISSING, *MODEL_NAMES)  # run folder, model folder, .safetensors or Hugging Face id
    out: Out = setting(pathlib.Path("predicted.extxyz"), *OUT_NAMES)  # file for the results, format by its suffix
    # .npz file for the hidden states: system (m, dim), atoms (n, dim), offsets (m + 1,); none: not written
    features: pathlib.Path | None = None
    split: str | None = None  # split of a Hugging Face folder, e.g. test


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Compares predictions with known values; writes evaluation.json, parity.csv and parity.png.

    atomformer evaluate acac_test_300K.extxyz.gz --model runs/acac --out evaluation
    """

    structures: tyro.conf.Positional[pathlib.Path]  # file or folder of structures with known values
    model: str = setting(dataclasses.MISSING, *MODEL_NAMES)  # run folder, model folder, .safetensors or Hugging Face id
    # folder for the results; replaces an earlier evaluation there
    out: Out = setting(pathlib.Path("evaluation"), *OUT_NAMES)
    label_columns: tuple[str, ...] = ()  # properties with the known labels; none: those the model was trained on
    task: Task | None = None  # ATOM3D task whose metrics to report; none: all metrics of the model's problem
    split: str | None = None  # split of a Hugging Face folder, e.g. test


def run_prepare(arguments: PrepareArguments) -> int:
    """Runs `atomformer prepare`: converts a source and lists the structures that cannot be used.

    Raises:
        ValueError: --split is given for a source without splits, or as `atomformer.prepare_dataset`.
    """
    from atomformer.data.converters import iterate_raw
    from atomformer.data.sources import iterate_rows, prepare_dataset

    if arguments.kind == "structures":
        reads = iterate_rows(arguments.source, split=arguments.split)
    elif arguments.split is not None:
        raise ValueError(f"--split is for Hugging Face folders; {arguments.kind} has none")
    else:
        reads = iterate_raw(arguments.kind, arguments.source)
    with _nothing_written(arguments.out):
        summary = prepare_dataset(_counted(reads, "reading structures"), arguments.out)
    _write_refused(arguments.out, summary.refused)
    say(f"{summary.accepted} structures in {arguments.out}; {len(summary.refused)} refused")
    return 0


def run_training(command: str, run: TrainingRun) -> int:
    """Runs `atomformer pretrain` or `atomformer finetune`: trains, or continues an interrupted run.

    Raises:
        ValueError, FloatingPointError: as `atomformer.train`.
    """
    import jax

    from atomformer.training import train
    from matterform.plots.curves import write_curves
    from matterform.training.mesh import connect

    run_dir = run.config.run_dir

    def safe() -> str:
        if (run_dir / "config.yaml").exists():
            return (
                f"{run_dir} is as at its last checkpoint; go on with: atomformer {command} --run-dir {run_dir} --resume"
            )
        return f"training had not begun; start again with: {this_command()}"

    with on_interrupt(safe):
        connect(run.processes)
        result = train(run.config, resume=run.resume)
        if jax.process_index() == 0:
            try:
                write_curves(run_dir / "metrics.csv", run_dir / "curves.png")
            except ImportError as error:  # the extra `viz` is missing; the run is complete without a picture
                say(str(error))
    return report_run("atomformer", command, run_dir, result, "model")


def run_predict(arguments: PredictArguments) -> int:
    """Runs `atomformer predict`: predicts structure by structure.

    Raises:
        FileNotFoundError: the model or the structures do not exist.
        ValueError: the model cannot be read, or the source has no usable structure.
    """
    from atomformer.checkpoint.published import from_pretrained
    from atomformer.data.rows import row_to_atoms
    from atomformer.prediction.predict import annotate, predict_rows
    from matterform.io.formats import write_structures

    model = from_pretrained(arguments.model)
    rows = _usable_rows(arguments.structures, arguments.split, model.config)
    system, atoms = [], []  # hidden states, if requested
    count = 0

    def annotated():
        nonlocal count
        for row, prediction in predict_rows(model, rows, features=arguments.features is not None):
            count += 1
            if arguments.features is not None:
                system.append(prediction.system_features)
                atoms.append(prediction.atom_features)
            yield annotate(row_to_atoms(row), prediction, model.config.label_names)

    with _nothing_written(arguments.out):
        write_structures(arguments.out, annotated())
        if arguments.features is not None:
            _write_features(arguments.features, system, atoms)
    say(f"{count} structures in {arguments.out}")
    return 0


def run_evaluate(arguments: EvaluateArguments) -> int:
    """Runs `atomformer evaluate`: prints the errors and writes known and predicted values.

    Raises:
        FileNotFoundError: the model or the structures do not exist.
        ValueError: the model cannot be read, or no structure has a known value of a predicted quantity.
    """
    from atomformer.checkpoint.published import from_pretrained
    from atomformer.prediction.evaluation import evaluate, write_evaluation

    model = from_pretrained(arguments.model)
    rows = _usable_rows(arguments.structures, arguments.split, model.config)
    with _nothing_written(arguments.out):
        evaluation = evaluate(model, rows, label_columns=arguments.label_columns, task=arguments.task)
    for name, value in evaluation.metrics.items():
        say(f"{name:<36} {value:.6g}")
    try:
        write_evaluation(arguments.out, evaluation)
    except ImportError as error:  # the extra `viz` is missing; numbers and table are written
        say(str(error))
    return 0


COMMANDS = (
    Command("prepare", PrepareArguments, run_prepare, positional=("", "--out")),
    Command(
        "pretrain",
        PretrainConfig,
        functools.partial(run_training, "pretrain"),
        aliases=TRAINING_ALIASES,
        answers=TRAINING_ANSWERS,
        training=True,
    ),
    Command(
        "finetune",
        FinetuneConfig,
        functools.partial(run_training, "finetune"),
        aliases=TRAINING_ALIASES,
        answers=TRAINING_ANSWERS,
        positional=("--model",),
        training=True,
    ),
    Command("predict", PredictArguments, run_predict, answers=PREDICTION_ANSWERS, positional=("", "--model")),
    Command("evaluate", EvaluateArguments, run_evaluate, answers=PREDICTION_ANSWERS, positional=("", "--model")),
)


def main(argv: Sequence[str] | None = None, recipe: TrainConfig | None = None) -> int:
    """Runs a command and returns its exit status, as `matterform.commandline.main`.

    A `recipe` replaces the defaults of the command that trains such a config.
    """
    recipes = {} if recipe is None else {c.name: recipe for c in COMMANDS if c.training and type(recipe) is c.arguments}
    return run_command("atomformer", DESCRIPTION, COMMANDS, argv, recipes)


def _nothing_written(out: pathlib.Path):
    """Reports after Ctrl-C in the block that no output was written: outputs appear whole or not at all."""
    return on_interrupt(lambda: f"nothing was written to {out}; start again with: {this_command()}")


def _usable_rows(path: pathlib.Path, split: str | None, config: "AtomformerConfig") -> "Iterator[Row]":
    """The rows of a source that the model can use; the others are named on standard error.

    Raises:
        ValueError: the source has no usable row.
    """
    from atomformer.data.inputs import reference_energy
    from atomformer.data.sources import iterate_rows

    count = 0
    for index, row, reason in _counted(iterate_rows(path, split=split), "predicting"):
        if row is not None:
            try:
                reference_energy(row["input_ids"], config)
            except ValueError as error:
                row, reason = None, str(error)
        if row is None:
            sys.stderr.write(f"atomformer: {path}, structure {index} left out: {reason}\n")
        else:
            count += 1
            yield row
    if not count:
        raise ValueError(f"{path} holds no structure that can be used")


def _counted(reads: "Iterator[ReadRow]", label: str) -> "Iterator[ReadRow]":
    with progress_bar(label) as show:
        for number, read in enumerate(reads, 1):
            yield read
            show(number)


def _write_features(path: pathlib.Path, system: "Sequence[np.ndarray]", atoms: "Sequence[np.ndarray]") -> None:
    """Hidden states of m structures: system (m, dim), atoms (n, dim) one after another, offsets (m + 1,)."""
    import numpy as np

    from matterform.io.files import write_atomically

    offsets = np.cumsum([0, *(len(part) for part in atoms)])
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, system=np.stack(system), atoms=np.concatenate(atoms), offsets=offsets)


def _write_refused(out: pathlib.Path, refused: Mapping[int, str]) -> None:
    """Lists refused entries beside `out`; removes the list of an earlier attempt if there are none."""
    from matterform.io.tables import write_table

    path = out.with_name(f"{out.name}.refused.csv")
    if refused:
        rows = ({"index": index, "reason": reason} for index, reason in refused.items())
        write_table(path, rows, ("index", "reason"))
    else:
        path.unlink(missing_ok=True)
