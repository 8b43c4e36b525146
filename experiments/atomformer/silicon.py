"""Silicon crystals: energies and forces with periodic distances, to the nearest image and to all images.

    python experiments/atomformer/silicon.py --data ../shared/data --out runs/silicon

Trains two models (finished ones are skipped, interrupted ones resumed), evaluates them on the test set and writes
table.md, errors.json and a parity picture of each. Data: mlearn (Zuo et al. 2020, BSD-3): molecular dynamics, strained
cells, surfaces and vacancies, most with 63 or 64 atoms.
"""

import dataclasses

import atomformer
from atomformer import AtomformerConfig, EnergyScale, FinetuneConfig, LossConfig
from experiments import common
from experiments.atomformer.shared import OPTIMIZER, evaluate_on, train_once, write_errors
from matterform import LoopConfig, OptimizerConfig

NETWORK = AtomformerConfig(
    dim=64, num_heads=4, depth=4, k=64, conservative=True, cutoff=5.0, energy=EnergyScale(per_atom=True)
)


def main() -> None:
    """Runs the trainings that are not finished yet, evaluates and plots."""
    arguments = common.parse_arguments(__doc__, "runs/silicon", epochs=100)
    errors = {}
    for periodic in ("minimum_image", "images"):
        config = FinetuneConfig(
            train=common.data_file(arguments.data, "silicon_train"),
            run_dir=arguments.out / periodic,
            fit_references=True,
            network=dataclasses.replace(NETWORK, periodic=periodic),
            loss=LossConfig(total_energy=10.0, forces=10.0, errors_per_atom=True),
            optimizer=OptimizerConfig(**OPTIMIZER, warmup_steps=50),
            loop=LoopConfig(epochs=arguments.epochs),
            batch_size=4,
            ema_decay=0.995,
        )
        found = evaluate_on(common.data_file(arguments.data, "silicon_test"), train_once(config))
        title = f"Silicon, test set: {periodic.replace('_', ' ')}"
        atomformer.write_parity(arguments.out / f"{periodic}.png", found, title)
        errors[periodic] = found.metrics
    write_errors(arguments.out, "distances", errors, per_atom=True)


if __name__ == "__main__":
    main()
