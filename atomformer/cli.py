"""The command line `atomformer`: prepare, pretrain, finetune, predict, evaluate."""

import csv
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from matterform.commandline_old import dispatch, parse, parse_run, report_run, say
from matterform.io.files import write_atomically
from matterform.progress import progress_bar

if TYPE_CHECKING:
    from atomformer.config import AtomformerConfig, TrainConfig
    from atomformer.data.rows import Row
    from atomformer.data.sources import ReadRow

USAGE = """usage: atomformer COMMAND [OPTIONS]

A transformer over atoms for energies, forces and properties.

commands:
  prepare    structures of any kind -> a folder that training opens instantly, or parquet
  pretrain   energies and forces, masked atoms, coordinate denoising
  finetune   energies and forces, or properties, from published weights or from nothing
  predict    energies, forces, properties or features of structures
  evaluate   errors against known values: numbers, table, picture

`atomformer COMMAND --help` explains a command. Lengths are in angstrom, energies in eV, forces in eV/angstrom.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Converts structures once, with bounded memory: extxyz, traj, LMDB, ASE databases, CIF, CSV, parquet, folders of
    Hugging Face's `datasets`, and the pre-training sets as distributed (--kind).

    Structures that cannot be used are left out and listed, with the reason, in OUT.refused.csv.

    atomformer prepare s2ef_train_2M/ oc20 --kind oc20
    """

    source: tyro.conf.Positional[pathlib.Path]
    out: tyro.conf.Positional[pathlib.Path]  # a folder for training, or NAME.parquet for others
    kind: Literal["structures", "mptrj", "oc20", "oc22", "odac23", "spice"] = "structures"
    split: str | None = None  # part of a Hugging Face folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Writes structures with what a model says of them, in the format of the output's suffix.

    atomformer predict molecules.xyz --model runs/acac/model -o predicted.extxyz
    """

    structures: tyro.conf.Positional[pathlib.Path]
    model: str  # folder, .safetensors file or Hugging Face id
    out: Annotated[pathlib.Path, tyro.conf.arg(aliases=["-o"])] = pathlib.Path("predicted.extxyz")
    features: pathlib.Path | None = None  # also writes the hidden states, as .npz: system (m, dim), atoms, offsets
    split: str | None = None  # part of a Hugging Face folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compares predictions with what the structures know; writes evaluation.json, parity.csv and parity.png.

    atomformer evaluate acac_test_300K.extxyz.gz --model runs/acac/model --out evaluation
    """

    structures: tyro.conf.Positional[pathlib.Path]
    model: str  # folder, .safetensors file or Hugging Face id
    out: pathlib.Path = pathlib.Path("evaluation")  # folder; what it held of an earlier evaluation is replaced
    label_columns: tuple[str, ...] = ()  # where the labels are; by default under the names they were learned by
    task: Literal["SMP", "RES", "MSP", "LEP", "PPI", "LBA", "PSR", "RSR"] | None = None  # of ATOM3D, for its metrics
    split: str | None = None  # part of a Hugging Face folder


PRETRAIN = """Pre-trains a model: formation energies and forces, unless the loss weights say otherwise.

The run folder holds config.yaml, metrics.csv, curves.png, checkpoints/ to resume and model/ to use.

atomformer pretrain --train s2ef --run-dir runs/base --size base --epochs 10

atomformer pretrain --train molecules.xyz --run-dir runs/denoise --formation-energy 0 --forces 0 --denoising 1

atomformer pretrain --run-dir runs/base --resume
"""
FINETUNE = """Fine-tunes a model on properties, or on energies and forces; without --model it begins anew.

The run folder holds config.yaml, metrics.csv, curves.png, checkpoints/ to resume and model/ to use.

atomformer finetune --train qm9.parquet --label-columns gap --model atomformer-base --run-dir runs/gap

atomformer finetune --train atom3d-lba --split train --validation-split val --task LBA --run-dir runs/lba

atomformer finetune --train md.xyz --labels 0 --total-energy 1 --forces 10 --conservative --size tiny --run-dir runs/md
"""


def main(argv: Sequence[str] | None = None, recipe: "TrainConfig | None" = None) -> int:
    """Runs a command; 0 on success, 2 with one line on standard error where the user can mend it, 130 if stopped.

    A `recipe` replaces the defaults of `pretrain` or `finetune`.
    """
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "prepare": lambda rest: run_prepare(parse(Prepare, "atomformer prepare", rest)),
        "pretrain": lambda rest: run_training("pretrain", rest, recipe),
        "finetune": lambda rest: run_training("finetune", rest, recipe),
        "predict": lambda rest: run_predict(parse(Predict, "atomformer predict", rest)),
        "evaluate": lambda rest: run_evaluate(parse(Evaluate, "atomformer evaluate", rest)),
    }
    return dispatch("atomformer", USAGE, commands, argv)


def run_prepare(arguments: Prepare) -> int:
    """Converts a source, and lists what was refused."""
    from atomformer.data.converters import iterate_raw
    from atomformer.data.sources import iterate_rows, prepare_dataset

    if arguments.kind == "structures":
        reads = iterate_rows(arguments.source, split=arguments.split)
    elif arguments.split is not None:
        raise ValueError(f"--split is for Hugging Face folders; {arguments.kind} has none")
    else:
        reads = iterate_raw(arguments.kind, arguments.source)
    summary = prepare_dataset(_counted(reads, "reading structures"), arguments.out)
    _write_refused(arguments.out, summary.refused)
    say(f"{summary.accepted} structures in {arguments.out}; {len(summary.refused)} refused")
    return 0


def run_training(command: str, argv: Sequence[str], recipe: "TrainConfig | None" = None) -> int:
    """Trains from flags, on top of a saved config or of a `recipe`; or on from where a run was interrupted."""
    import jax

    from atomformer.config import FinetuneConfig, PretrainConfig
    from atomformer.training import train
    from matterform.plots.curves import write_learning_curves
    from matterform.training.mesh import initialize_distributed

    kind, text = {"pretrain": (PretrainConfig, PRETRAIN), "finetune": (FinetuneConfig, FINETUNE)}[command]
    run, resume, processes = parse_run(kind, f"atomformer {command}", text, argv, recipe)
    if processes is not None:
        initialize_distributed(*processes)
    result = train(run, resume=resume)
    if jax.process_index() == 0:
        try:
            write_learning_curves(run.run_dir, run.run_dir / "curves.png")
        except ImportError as error:  # a picture is no reason to fail
            say(str(error))
    return report_run("atomformer", command, run.run_dir, result, "model")


def run_predict(arguments: Predict) -> int:
    """Predicts structure by structure; refused ones are named and left out."""
    import numpy as np

    from atomformer.checkpoint.published import from_pretrained
    from atomformer.data.rows import row_to_atoms
    from atomformer.prediction.predict import annotate, predict_all
    from matterform.io.formats import write_structures

    model = from_pretrained(arguments.model)
    rows: list[Row] = []
    system, atoms = [], []

    def remembered() -> "Iterator[Row]":
        for row in _usable_rows(arguments.structures, arguments.split, model.config):
            rows.append(row)
            yield row
        if not rows:  # here, so that no empty file is written
            raise ValueError(f"{arguments.structures} holds no structure that can be used")

    def annotated():
        predictions = predict_all(model, remembered(), features=arguments.features is not None)
        for index, prediction in enumerate(predictions):
            yield annotate(row_to_atoms(rows[index]), prediction, model.config.label_names)
            rows[index] = {}
            if arguments.features is not None:
                system.append(prediction.system_features)
                atoms.append(prediction.atom_features)

    write_structures(arguments.out, annotated())
    if arguments.features is not None:
        offsets = np.cumsum([0, *(len(part) for part in atoms)])
        with write_atomically(arguments.features) as temporary, temporary.open("wb") as file:
            np.savez(file, system=np.stack(system), atoms=np.concatenate(atoms), offsets=offsets)
    say(f"{len(rows)} structures in {arguments.out}")
    return 0


def run_evaluate(arguments: Evaluate) -> int:
    """Predicts and compares; prints the errors and writes what is behind them."""
    from atomformer.checkpoint.published import from_pretrained
    from atomformer.prediction.evaluation import evaluate, write_parity

    model = from_pretrained(arguments.model)
    rows = _usable_rows(arguments.structures, arguments.split, model.config)
    evaluation = evaluate(model, rows, label_columns=arguments.label_columns, task=arguments.task)
    arguments.out.mkdir(parents=True, exist_ok=True)
    defined = {name: value if math.isfinite(value) else None for name, value in evaluation.metrics.items()}
    with write_atomically(arguments.out / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(defined, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with write_atomically(arguments.out / "parity.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["quantity", "known", "predicted"])
        for name, (known, predicted) in evaluation.pairs.items():
            if known.shape == predicted.shape:
                values = zip(known.ravel().tolist(), predicted.ravel().tolist(), strict=True)
                table.writerows([name, *pair] for pair in values)
    for name, value in evaluation.metrics.items():
        say(f"{name:<36} {value:.6g}")
    try:
        write_parity(arguments.out / "parity.png", evaluation)
    except ImportError as error:  # a picture is no reason to fail
        say(str(error))
    return 0


def _usable_rows(path: pathlib.Path, split: str | None, config: "AtomformerConfig") -> "Iterator[Row]":
    """The rows of a source; those that the model cannot use are named on standard error."""
    from atomformer.data.inputs import reference_energy
    from atomformer.data.sources import iterate_rows

    for index, row, reason in _counted(iterate_rows(path, split=split), "predicting"):
        if row is not None:
            try:
                reference_energy(row["input_ids"], config)
            except ValueError as error:
                row, reason = None, str(error)
        if row is None:
            sys.stderr.write(f"atomformer: {path}, structure {index} left out: {reason}\n")
        else:
            yield row


def _counted(reads: "Iterator[ReadRow]", label: str) -> "Iterator[ReadRow]":
    with progress_bar(label) as show:
        for number, read in enumerate(reads, 1):
            yield read
            show(number)


def _write_refused(out: pathlib.Path, refused: Mapping[int, str]) -> None:
    """Lists refused entries beside `out`; without any, a list of an earlier attempt goes."""
    path = out.with_name(f"{out.name}.refused.csv")
    if not refused:
        path.unlink(missing_ok=True)
        return
    with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["index", "reason"])
        table.writerows(refused.items())
