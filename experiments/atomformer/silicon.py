"""Silicon crystals: energies and forces with periodic distances, to the nearest image and to all images.

    python experiments/atomformer/silicon.py --data ../shared/data --out runs/silicon

Trains two models (finished ones are skipped, interrupted ones resumed), evaluates them on the test set and writes
table.md, errors.json and a parity picture of each. Data: mlearn (Zuo et al. 2020, BSD-3): molecular dynamics, strained
cells, surfaces and vacancies, most with 63 or 64 atoms.
"""

import argparse
import dataclasses
import json
import logging
import pathlib

from atomformer.checkpoint.published import from_pretrained
from atomformer.config import AtomformerConfig, EnergyScale, FinetuneConfig, LossConfig
from atomformer.data.sources import iterate_rows
from atomformer.prediction.evaluation import evaluate, write_parity
from atomformer.training import train
from matterform.io.files import write_atomically
from matterform.training.config import LoopConfig, OptimizerConfig

NETWORK = AtomformerConfig(
    dim=64, num_heads=4, depth=4, k=64, conservative=True, cutoff=5.0, energy=EnergyScale(per_atom=True)
)


def main() -> None:
    """Runs what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("../shared/data"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/silicon"))
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("atomformer", "matterform"):
        logging.getLogger(name).setLevel(logging.INFO)
    errors = {}
    for periodic in ("minimum_image", "images"):
        config = FinetuneConfig(
            train=arguments.data / "mlearn_Si_train.extxyz.gz",
            run_dir=arguments.out / periodic,
            fit_references=True,
            network=dataclasses.replace(NETWORK, periodic=periodic),
            loss=LossConfig(total_energy=10.0, forces=10.0, errors_per_atom=True),
            optimizer=OptimizerConfig(
                optimizer="adamw",
                learning_rate=2e-3,
                weight_decay=0.01,
                clip_norm=20.0,
                schedule="cosine",
                warmup_steps=50,
            ),
            loop=LoopConfig(epochs=arguments.epochs),
            batch_size=4,
            ema_decay=0.995,
        )
        if not (config.run_dir / "model").exists():
            train(config, resume=(config.run_dir / "checkpoints").exists())
        rows = (read.row for read in iterate_rows(arguments.data / "mlearn_Si_test.extxyz.gz") if read.row is not None)
        evaluation = evaluate(from_pretrained(config.run_dir / "model"), rows)
        write_parity(arguments.out / f"{periodic}.png", evaluation, f"Silicon, test set: {periodic.replace('_', ' ')}")
        errors[periodic] = evaluation.metrics
    report(arguments.out, errors)


def report(out: pathlib.Path, errors: dict[str, dict[str, float]]) -> None:
    """Writes the errors on the test set as a table and as numbers."""
    lines = [
        "| distances | energy MAE | energy RMSE (meV/atom) | force MAE | force RMSE (meV/Å) | cosine |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in errors.items():
        energy = f"{found['total_energy/mae_mev_per_atom']:.1f} | {found['total_energy/rmse_mev_per_atom']:.1f}"
        forces = f"{found['forces/mae_mev_per_ang']:.0f} | {found['forces/rmse_mev_per_ang']:.0f}"
        lines.append(f"| {name.replace('_', ' ')} | {energy} | {forces} | {found['forces/cosine']:.4f} |")
    with write_atomically(out / "table.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with write_atomically(out / "errors.json") as temporary:
        temporary.write_text(json.dumps(errors, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
