"""Perovskites with a requested heat of formation: positions and species sampled together, guided by a property.

    python experiments/agedi/perovskites.py --data ../shared/data --out runs/agedi_perovskites

Trains on 90 % of `perov5_val.csv.gz` (Castelli et al. 2012) with CellPositions and Types, conditioned on `heat_all`
(eV/atom). Samples crystals in the same cells for three requested values and several guidance weights, and looks up the
heat of the training crystals nearest in composition. Writes report.json, samples_*.xyz and heats.png.
"""

import ase
import numpy as np

import agedi
from agedi import SamplerConfig, SampleRequest
from experiments import common
from experiments.agedi.geometry import shortest_distance
from experiments.agedi.pictures import draw_heats
from experiments.agedi.shared import sample_each, sample_once, train_once

PROPERTY = "heat_all"
REQUESTS = (0.5, 1.4, 2.9)  # eV/atom: the 5th, 50th and 95th percentiles of the data
WEIGHTS = (0.0, 1.0, 2.0)


def main() -> None:
    """Trains, samples at each requested value, and looks up the training crystals nearest to the samples."""
    arguments = common.parse_arguments(__doc__, "runs/agedi_perovskites")
    data = common.read_atoms(common.data_file(arguments.data, "perovskites"))
    diffusion = train_once(
        arguments.out,
        data,
        noisers=("CellPositions", "Types"),
        conditioning=PROPERTY,
        cutoff=5.0,
        epochs=2000 if arguments.full else 120,
        lr=1e-3,
        ema_decay=0.999,
        batch_size=64,
        log_interval=1000,
    )
    cells = [
        data[i].cell.array for i in np.random.default_rng(0).permutation(len(data))[: 500 if arguments.full else 128]
    ]
    heats: dict[float, dict[float, np.ndarray]] = {}
    report = {
        "data": {"mean": mean_heat(data), "percentiles_5_50_95": np.percentile(known_heats(data), [5, 50, 95]).tolist()}
    }
    for weight in WEIGHTS:
        heats[weight] = {}
        for request in REQUESTS if weight else REQUESTS[:1]:  # weight 0 ignores the request
            path = arguments.out / f"samples_weight{weight:g}_heat{request:g}.xyz"
            samples = sample_once(path, lambda w=weight, r=request: draw_with(diffusion, cells, w, r))
            heats[weight][request] = nearest_heats(samples, data)
            report[f"weight {weight:g}, requested {request:g}"] = {
                "mean_heat_of_nearest": float(np.mean(heats[weight][request])),
                "standard_error": float(np.std(heats[weight][request]) / np.sqrt(len(samples))),
                "share_with_a_training_composition": float(
                    np.mean([composition_distance(s, data).min() == 0 for s in samples])
                ),
                "share_with_three_equal_anions": float(np.mean([max(np.bincount(s.numbers)) == 3 for s in samples])),
                "share_above_1.2_ang": float(np.mean([shortest_distance(s) > 1.2 for s in samples])),
            }
    common.write_json(arguments.out / "report.json", report)
    draw_heats(arguments.out / "heats.png", heats, known_heats(data))


def draw_with(diffusion: agedi.Diffusion, cells: list[np.ndarray], weight: float, request: float) -> list[ase.Atoms]:
    """Samples of five atoms in each of the cells; species are sampled too."""
    requests = [SampleRequest(num_atoms=5, cell=cell, property={PROPERTY: request}) for cell in cells]
    return sample_each(diffusion, requests, SamplerConfig(steps=100, grid="rho", guidance_weight=weight))


def known_heats(structures: list[ase.Atoms]) -> np.ndarray:
    """Heat of formation (eV/atom) of each structure of the data."""
    return np.array([atoms.info[PROPERTY] for atoms in structures])


def mean_heat(structures: list[ase.Atoms]) -> float:
    """Mean heat of formation (eV/atom) of the structures."""
    return float(np.mean(known_heats(structures)))


def composition_distance(atoms: ase.Atoms, data: list[ase.Atoms]) -> np.ndarray:
    """Number of atoms by which the composition differs from that of each structure of the data."""
    counts = np.stack([np.bincount(other.numbers, minlength=119) for other in data])
    return np.abs(counts - np.bincount(atoms.numbers, minlength=119)).sum(axis=1) / 2


def nearest_heats(samples: list[ase.Atoms], data: list[ase.Atoms]) -> np.ndarray:
    """For each sample the mean heat of formation (eV/atom) of the data nearest in composition."""
    known = known_heats(data)
    found = []
    for atoms in samples:
        distances = composition_distance(atoms, data)
        found.append(known[distances == distances.min()].mean())
    return np.array(found)


if __name__ == "__main__":
    main()
