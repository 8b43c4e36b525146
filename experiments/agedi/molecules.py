"""Acetylacetone at 300 K: a diffusion model of its conformations, compared with held-out molecular dynamics.

    python experiments/agedi/molecules.py --data ../shared/data --out runs/agedi_molecules

Trains on 500 snapshots (BOTNet datasets, Kovács et al. 2021, MIT), samples 200 molecules and compares bond lengths
and angles with the 300 K test set. Writes report.json, samples.xyz and histograms.png.
"""

from typing import Any

import numpy as np
import scipy.stats

import agedi
from experiments import common
from experiments.agedi.geometry import geometry, intact_share
from experiments.agedi.shared import sample_once, train_once

SETTINGS = {"noisers": "Positions", "lr": 1e-3, "ema_decay": 0.999, "batch_size": 32, "log_interval": 1000}
SAMPLING = {"formula": "C5H8O2", "sampler": "heun", "steps": 50, "sampler_kwargs": {"grid": "rho"}, "batch_size": 200}


def main() -> None:
    """Trains, samples and compares."""
    arguments = common.parse_arguments(__doc__, "runs/agedi_molecules")
    train, test = (common.read_atoms(common.data_file(arguments.data, f"acac_{part}")) for part in ("train", "test"))
    diffusion = train_once(arguments.out, train, epochs=6000 if arguments.full else 600, **SETTINGS)
    samples = sample_once(
        arguments.out / "samples.xyz",
        lambda: agedi.sample(diffusion, n_samples=1000 if arguments.full else 200, progress_bar=True, **SAMPLING),
    )
    half = len(train) // 2
    lengths, angles = zip(*map(geometry, (test, samples, train[:half], train[half:])), strict=True)
    report: dict[str, Any] = {
        "intact_share_data": intact_share(test),
        "intact_share_samples": intact_share(samples),
        "wasserstein_bond_length_ang": compare(lengths),
        "wasserstein_angle_deg": compare(angles),
    }
    common.write_json(arguments.out / "report.json", report)
    panels = {f"{name[0]}-{name[1]} (Å)": (lengths[0][name], lengths[1][name]) for name in ("CC", "CO", "CH")}
    panels |= {f"{'-'.join(name)} (°)": (angles[0][name], angles[1][name]) for name in ("CCC", "CCO")}
    common.draw_histograms(arguments.out / "histograms.png", panels, "Acetylacetone at 300 K")


def compare(found: tuple[dict[str, np.ndarray], ...]) -> dict[str, dict[str, float]]:
    """Distances between the distributions of (test set, samples, two halves of the training set)."""
    test, samples, first, second = found
    return {
        name: {
            "samples_to_test": scipy.stats.wasserstein_distance(samples[name], test[name]),
            "train_halves_apart": scipy.stats.wasserstein_distance(first[name], second[name]),
            "test_std": float(np.std(test[name])),
        }
        for name in test
    }


if __name__ == "__main__":
    main()
