"""Acetylacetone at 300 K: a diffusion model of its conformations, against molecular dynamics it has not seen.

    python experiments/agedi/molecules.py --data ../shared/data --out runs/agedi_molecules

Trains on 500 snapshots (BOTNet datasets, Kovács et al. 2021, MIT), draws 200 molecules and compares bond lengths and
angles with the 300 K test set: report.json, samples.xyz and histograms.png.
"""

import ase
import numpy as np
import scipy.stats

import agedi
from experiments.agedi.shared import draw_histograms, parse_arguments, read_atoms, sample_once, train_once, write_report

LONGEST_BOND = {"CC": 1.85, "CO": 1.75, "CH": 1.35, "HO": 1.25}  # Å
BONDS = tuple(LONGEST_BOND)
ANGLES = ("CCC", "CCO", "CCH", "HCH")


def main() -> None:
    """Trains, samples, compares."""
    arguments = parse_arguments(__doc__, "agedi_molecules")
    train = read_atoms(arguments.data / "acac_train_300K.extxyz.gz")
    test = read_atoms(arguments.data / "acac_test_300K.extxyz.gz")
    diffusion = train_once(
        arguments.out,
        train,
        noisers="Positions",
        epochs=6000 if arguments.full else 600,
        lr=1e-3,
        ema_decay=0.999,
        batch_size=32,
        log_interval=1000,
    )
    samples = sample_once(
        arguments.out / "samples.xyz",
        lambda: agedi.sample(
            diffusion,
            n_samples=1000 if arguments.full else 200,
            formula="C5H8O2",
            sampler="heun",
            steps=50,
            sampler_kwargs={"grid": "rho"},
            batch_size=200,
            progress_bar=True,
        ),
    )
    half = len(train) // 2
    lengths, angles = [{}, {}, {}, {}], [{}, {}, {}, {}]
    for which, structures in enumerate((test, samples, train[:half], train[half:])):
        lengths[which], angles[which] = geometry(structures)
    report = {"intact_share_data": intact_share(test), "intact_share_samples": intact_share(samples)}
    for kind, found in (("bond_length_ang", lengths), ("angle_deg", angles)):
        report[f"wasserstein_{kind}"] = {
            name: {
                "samples_to_test": scipy.stats.wasserstein_distance(found[1][name], found[0][name]),
                "train_halves_apart": scipy.stats.wasserstein_distance(found[2][name], found[3][name]),
                "test_std": float(np.std(found[0][name])),
            }
            for name in found[0]
        }
    write_report(arguments.out / "report.json", report)
    panels = {f"{name[0]}-{name[1]} (Å)": (lengths[0][name], lengths[1][name]) for name in ("CC", "CO", "CH")}
    panels |= {f"{'-'.join(name)} (°)": (angles[0][name], angles[1][name]) for name in ("CCC", "CCO")}
    draw_histograms(arguments.out / "histograms.png", panels, "Acetylacetone at 300 K")


def bonds_of(atoms: ase.Atoms) -> list[tuple[int, int]]:
    """Pairs of atoms closer than the longest bond of their elements."""
    symbols, distances = atoms.get_chemical_symbols(), atoms.get_all_distances()
    pairs = []
    for i in range(len(atoms)):
        for j in range(i):
            longest = LONGEST_BOND.get("".join(sorted(symbols[i] + symbols[j])))
            if longest is not None and distances[i, j] < longest:
                pairs.append((j, i))
    return pairs


def geometry(structures: list[ase.Atoms]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Bond lengths (Å) and angles (degrees) of all molecules, by elements."""
    lengths: dict[str, list[float]] = {name: [] for name in BONDS}
    angles: dict[str, list[float]] = {name: [] for name in ANGLES}
    for atoms in structures:
        symbols, bonds = atoms.get_chemical_symbols(), bonds_of(atoms)
        for i, j in bonds:
            lengths["".join(sorted(symbols[i] + symbols[j]))].append(atoms.get_distance(i, j))
        for centre in range(len(atoms)):
            ends = sorted((i if j == centre else j for i, j in bonds if centre in (i, j)), key=lambda k: symbols[k])
            for first in range(len(ends)):
                for second in range(first):
                    name = f"{symbols[ends[second]]}{symbols[centre]}{symbols[ends[first]]}"
                    if name in angles:
                        angles[name].append(atoms.get_angle(ends[second], centre, ends[first]))
    return {name: np.array(v) for name, v in lengths.items()}, {name: np.array(v) for name, v in angles.items() if v}


def intact_share(structures: list[ase.Atoms]) -> float:
    """Share of molecules with four C-C, two C-O, and eight bonds of hydrogen (one may be shared between oxygens)."""
    intact = 0
    for atoms in structures:
        symbols = atoms.get_chemical_symbols()
        names = ["".join(sorted(symbols[i] + symbols[j])) for i, j in bonds_of(atoms)]
        counts = [names.count(name) for name in BONDS]
        intact += counts[:2] == [4, 2] and counts[2] in (7, 8) and counts[2] + counts[3] in (8, 9)
    return intact / len(structures)


if __name__ == "__main__":
    main()
