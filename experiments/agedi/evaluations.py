"""How few evaluations of the network give samples as good as 500 steps of Euler-Maruyama?

    python experiments/agedi/molecules.py
    python experiments/agedi/evaluations.py --out runs/agedi_molecules

With the model of acetylacetone trained by the first script, samples molecules with each sampler and grid, and measures
the mean Wasserstein distance of 8 distributions of bond lengths and angles to the test set, in standard deviations of
the test set; errors from bootstrapping the molecules. Writes evaluations.json and evaluations.png.
"""

import time
from typing import Any

import ase
import numpy as np

import agedi
from experiments import common
from experiments.agedi.geometry import intact_share, relative_distance, values_of
from experiments.agedi.pictures import draw_costs

REFERENCE = ("em", "uniform", 500, 1e-3)  # sampler, grid, steps, time of the last step
SETTINGS = (
    REFERENCE,
    ("em", "rho", 100, 1e-3),
    ("em", "rho", 50, 1e-3),
    ("em", "uniform", 50, 1e-3),
    ("ddim", "rho", 50, 1e-3),
    ("ddim", "rho", 25, 1e-3),
    ("ddim", "uniform", 50, 1e-3),
    ("heun_ode", "rho", 25, 1e-3),
    ("heun_ode", "rho", 12, 1e-3),
    ("heun", "rho", 50, 1e-3),
    ("heun", "rho", 25, 1e-3),
    ("heun", "rho", 25, 1e-2),
)
EVALUATIONS = {"em": 1, "ddim": 1, "heun": 2, "heun_ode": 2}  # evaluations per step
BOOTSTRAPS = 40


def main() -> None:
    """Samples with every setting, and compares."""
    arguments = common.parse_arguments(__doc__, "runs/agedi_molecules")
    diffusion = agedi.load_diffusion(arguments.out / "version_0")
    test = common.read_atoms(common.data_file(arguments.data, "acac_test"))
    count = 1000 if arguments.full else 200
    rng = np.random.default_rng(0)
    other = common.read_atoms(common.data_file(arguments.data, "acac_train"))[:count]
    rows: list[dict[str, Any]] = [measure({"name": "training set"}, other, test, rng)]
    for sampler, grid, steps, eps in SETTINGS:
        start = time.perf_counter()
        molecules = agedi.sample(
            diffusion,
            n_samples=count,
            formula="C5H8O2",
            sampler=sampler,
            steps=steps,
            eps=eps,
            sampler_kwargs={"grid": grid},
            batch_size=count,
            seed=1,
        )
        seconds = time.perf_counter() - start
        row = {
            "name": f"{sampler} {grid}",
            "eps": eps,
            "evaluations": EVALUATIONS[sampler] * steps,
            "seconds": round(seconds, 1),
        }
        rows.append(measure(row, molecules, test, rng))
    common.write_json(arguments.out / "evaluations.json", {"rows": rows})
    draw_costs(arguments.out / "evaluations.png", rows)


def measure(
    row: dict[str, Any], molecules: list[ase.Atoms], test: list[ase.Atoms], rng: np.random.Generator
) -> dict[str, Any]:
    """The row with the distance to the test set, its error and the share of intact molecules."""
    each, reference = [values_of([one]) for one in molecules], values_of(test)
    found = relative_distance(each, reference)
    resampled = [
        relative_distance([each[i] for i in rng.integers(0, len(each), len(each))], reference)
        for _ in range(BOOTSTRAPS)
    ]
    return row | {
        "distance": round(found, 4),
        "error": round(float(np.std(resampled)), 4),
        "intact": intact_share(molecules),
    }


if __name__ == "__main__":
    main()
