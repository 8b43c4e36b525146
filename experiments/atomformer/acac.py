"""Acetylacetone at 300 K: energies and forces from 450 structures, with and without pre-training by denoising.

    python experiments/atomformer/acac.py --data ../shared/data --out runs/acac

Trains four models (finished ones are skipped, interrupted ones resumed), evaluates them on the test set and writes
table.md, errors.json and curves.png. Data: BOTNet datasets (Kovács et al. 2021, MIT licence).
"""

import argparse
import dataclasses
import pathlib

import atomformer
from atomformer import AtomformerConfig, FinetuneConfig, LossConfig, PretrainConfig
from experiments import common
from experiments.atomformer.shared import OPTIMIZER, draw_curves, evaluate_on, train_once, write_errors
from matterform import LoopConfig, OptimizerConfig

# Small enough for two cores: a twentieth of `tiny`'s arithmetic, and more accurate on so few structures.
NETWORK = AtomformerConfig(dim=64, num_heads=4, depth=4, k=64)
STEPS = OptimizerConfig(**OPTIMIZER, warmup_steps=100)
FIVE_EPOCHS = 5 * 57  # steps: 450 structures, 8 per step


def main() -> None:
    """Runs the trainings that are not finished yet, evaluates and plots."""
    arguments = common.parse_arguments(__doc__, "runs/acac", epochs=400, pretrain_epochs=100)
    errors = {}
    for kind in ("direct", "conservative"):
        network = dataclasses.replace(NETWORK, conservative=kind == "conservative")
        starts = {"scratch": None, "denoised": str(train_once(denoising(arguments, network, kind)))}
        for name, start in starts.items():
            config = finetuning(arguments, network, start, arguments.out / f"{name}_{kind}")
            test = common.data_file(arguments.data, "acac_test")
            errors[f"{name}_{kind}"] = evaluate_on(test, train_once(config)).metrics
    write_errors(arguments.out, "model", errors)
    draw_curves(arguments.out, list(errors), "Acetylacetone, 450 structures: held-out errors while training")


def denoising(arguments: argparse.Namespace, network: AtomformerConfig, kind: str) -> PretrainConfig:
    """Denoising of the training structures of both molecules; their labels are not used."""
    folder = arguments.out / "unlabelled"
    if not folder.exists():
        files = (common.data_file(arguments.data, name) for name in ("3bpa_train", "acac_train"))
        rows = [atomformer.row_from_atoms(atoms) for file in files for atoms in common.read_atoms(file)]
        atomformer.write_dataset(folder, [{name: row[name] for name in ("input_ids", "coords")} for row in rows])
    return PretrainConfig(
        train=folder,
        run_dir=arguments.out / f"denoising_{kind}",
        network=network,
        loss=LossConfig(denoising=1.0, noise_ang=0.05),
        optimizer=STEPS,
        loop=LoopConfig(epochs=arguments.pretrain_epochs),
        batch_size=8,
        ema_decay=0.995,
    )


def finetuning(
    arguments: argparse.Namespace, network: AtomformerConfig, start: str | None, run_dir: pathlib.Path
) -> FinetuneConfig:
    """Energies relative to the isolated atoms, and forces with ten times their weight, in an L1 loss."""
    return FinetuneConfig(
        train=common.data_file(arguments.data, "acac_train"),
        run_dir=run_dir,
        model=start,
        isolated_atoms=common.data_file(arguments.data, "acac_atoms"),
        network=network,
        loss=LossConfig(total_energy=1.0, forces=10.0),
        optimizer=STEPS,
        loop=LoopConfig(epochs=arguments.epochs, log_every=FIVE_EPOCHS, validate_every=FIVE_EPOCHS),
        batch_size=8,
        ema_decay=0.998,
    )


if __name__ == "__main__":
    main()
