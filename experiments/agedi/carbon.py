"""Carbon at 10 GPa (carbon-24): crystals of 6 to 24 atoms sampled in given cells, compared with the data.

    python experiments/agedi/carbon.py --data ../shared/data --out runs/agedi_carbon

Trains on 90 % of `carbon24_val.csv.gz` (Pickard 2020, CC BY 4.0) with CellPositions, samples one crystal in the cell
of each of 200 training structures and compares radial distributions, distances to the nearest neighbour and numbers of
neighbours with those of these structures and of atoms placed at random. Writes report.json, samples.xyz and rdf.png.
"""

import ase
import numpy as np
import scipy.stats

from agedi import SamplerConfig, SampleRequest
from experiments import common
from experiments.agedi.geometry import neighbours
from experiments.agedi.pictures import draw_neighbours
from experiments.agedi.shared import sample_each, sample_once, train_once

LONGEST_BOND = 1.85  # Å
CUTOFF = 4.0  # cutoff of the network, Å; atoms of the densest crystals have 50 neighbours within it


def main() -> None:
    """Trains, samples one crystal in the cell of each chosen structure, and compares."""
    arguments = common.parse_arguments(__doc__, "runs/agedi_carbon")
    data = common.read_atoms(common.data_file(arguments.data, "carbon"))
    settings = {"noisers": "CellPositions", "cutoff": CUTOFF, "lr": 1e-3, "batch_size": 64, "log_interval": 1000}
    diffusion = train_once(arguments.out, data, epochs=2000 if arguments.full else 58, **settings)
    chosen = np.random.default_rng(0).permutation(len(data))[: 1000 if arguments.full else 200]
    reference = [data[i] for i in chosen]
    requests = [SampleRequest(atomic_numbers=atoms.numbers, cell=atoms.cell.array) for atoms in reference]
    sampler = SamplerConfig(sampler="heun_ode", steps=50, grid="rho")
    samples = sample_once(arguments.out / "samples.xyz", lambda: sample_each(diffusion, requests, sampler))
    rng = np.random.default_rng(1)
    placed = [ase.Atoms(a.numbers, cell=a.cell, pbc=True, scaled_positions=rng.random((len(a), 3))) for a in reference]
    groups = {"data": reference, "samples": samples, "random": placed}
    measured = {name: neighbours(structures, LONGEST_BOND) for name, structures in groups.items()}
    report = {name: compare(values, measured["data"]) for name, values in measured.items()}
    common.write_json(arguments.out / "report.json", report)
    bonds = {name: values["bonds"] for name, values in measured.items()}
    draw_neighbours(arguments.out / "rdf.png", groups, bonds, LONGEST_BOND)


def compare(values: dict[str, np.ndarray], data: dict[str, np.ndarray]) -> dict[str, object]:
    """Statistics of neighbours in a group of structures, compared with those of the data."""
    return {
        "nearest_ang_wasserstein": scipy.stats.wasserstein_distance(values["nearest"], data["nearest"]),
        "mean_bonds": float(np.mean(values["bonds"])),
        "share_of_atoms_with_2_3_4_bonds": [float(np.mean(values["bonds"] == count)) for count in (2, 3, 4)],
        "share_of_crystals_above_1.1_ang": float(np.mean(values["shortest"] > 1.1)),
    }


if __name__ == "__main__":
    main()
