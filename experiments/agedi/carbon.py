"""Carbon at 10 GPa (carbon-24): crystals of 6 to 24 atoms drawn in given cells, against the data.

    python experiments/agedi/carbon.py --data ../shared/data --out runs/agedi_carbon

Trains on 90 % of `carbon24_val.csv.gz` (Pickard 2020, CC BY 4.0) with CellPositions, draws one crystal in the cell of
each of 200 training structures and compares radial distribution, distances to the nearest neighbour and
numbers of neighbours with those of the same structures, and with atoms placed at random: report.json, samples.xyz
and rdf.png.
"""

import ase
import numpy as np
import scipy.stats

import agedi
from agedi.sampling.config import SamplerConfig
from agedi.sampling.request import SampleRequest
from experiments.agedi.shared import (
    distances_within,
    parse_arguments,
    radial_distribution,
    read_atoms,
    sample_each,
    sample_once,
    save,
    train_once,
    write_report,
)
from matterform.plots.curves import INK, TRAINING, VALIDATION, new_figure

LONGEST_BOND = 1.85  # Å
CUTOFF = 4.0  # Å, of the network; the densest crystals have 50 neighbours within


def main() -> None:
    """Trains, samples, compares."""
    arguments = parse_arguments(__doc__, "agedi_carbon")
    data = read_atoms(arguments.data / "carbon24_val.csv.gz")
    diffusion = train_once(
        arguments.out,
        data,
        noisers="CellPositions",
        cutoff=CUTOFF,
        epochs=2000 if arguments.full else 58,
        lr=1e-3,
        batch_size=64,
        log_interval=1000,
    )
    chosen = np.random.default_rng(0).permutation(len(data))[: 1000 if arguments.full else 200]
    reference = [data[i] for i in chosen]
    samples = sample_once(arguments.out / "samples.xyz", lambda: draw_in_cells(diffusion, reference))
    rng = np.random.default_rng(1)
    placed = [ase.Atoms(a.numbers, cell=a.cell, pbc=True, scaled_positions=rng.random((len(a), 3))) for a in reference]
    groups = {"data": reference, "samples": samples, "random": placed}
    measured = {name: describe(structures) for name, structures in groups.items()}
    report = {
        name: {
            "nearest_ang_wasserstein": scipy.stats.wasserstein_distance(values["nearest"], measured["data"]["nearest"]),
            "mean_bonds": float(np.mean(values["bonds"])),
            "share_of_atoms_with_2_3_4_bonds": [float(np.mean(values["bonds"] == count)) for count in (2, 3, 4)],
            "share_of_crystals_above_1.1_ang": float(np.mean(values["shortest"] > 1.1)),
        }
        for name, values in measured.items()
    }
    write_report(arguments.out / "report.json", report)
    figure, (left, right) = new_figure(2, "carbon-24: crystals drawn in given cells")
    for (name, structures), color in zip(groups.items(), (TRAINING, VALIDATION, INK), strict=True):
        left.plot(*radial_distribution(structures, 4.0), color=color, label=name, linewidth=1.2)
        shares = [np.mean(measured[name]["bonds"] == count) for count in range(9)]
        right.plot(range(9), shares, "o-", color=color, label=name, linewidth=1.2, markersize=3)
    left.set(title="radial distribution", xlabel="distance (Å)")
    right.set(title=f"neighbours within {LONGEST_BOND} Å", xlabel="number", ylabel="share of atoms")
    left.legend(frameon=False, fontsize=8)
    save(figure, arguments.out / "rdf.png")


def draw_in_cells(diffusion: agedi.Diffusion, cells: list[ase.Atoms]) -> list[ase.Atoms]:
    """One crystal in the cell of each structure, with as many atoms."""
    requests = [SampleRequest(atomic_numbers=atoms.numbers, cell=atoms.cell.array) for atoms in cells]
    return sample_each(diffusion, requests, SamplerConfig(sampler="heun_ode", steps=50, grid="rho"))


def describe(structures: list[ase.Atoms]) -> dict[str, np.ndarray]:
    """Of every atom the nearest neighbour (Å) and the number of bonds, of every crystal its shortest distance."""
    from ase.neighborlist import neighbor_list

    nearest, bonds, shortest = [], [], []
    for atoms in structures:
        first, distances = neighbor_list("id", atoms, 3.0)
        per_atom = np.full(len(atoms), 3.0)
        np.minimum.at(per_atom, first, distances)
        nearest.append(per_atom)
        bonds.append(np.bincount(first[distances < LONGEST_BOND], minlength=len(atoms)))
        shortest.append(distances_within([atoms], 3.0).min(initial=3.0))
    return {"nearest": np.concatenate(nearest), "bonds": np.concatenate(bonds), "shortest": np.array(shortest)}


if __name__ == "__main__":
    main()
