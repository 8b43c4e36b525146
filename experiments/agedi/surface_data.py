"""Adatoms on a frozen slab, relaxed with ASE's EMT: a data set for ConfinedCellPositions and the force field.

    python experiments/agedi/surface_data.py --out runs/surface --count 300

Writes relaxed.traj (minima, to train the diffusion on), frames.traj (other points of the relaxations, for the force
field only) and slab.traj, the template to sample on. Every structure has energy and forces, FixAtoms on the slab, and
in `info` the number of `adatoms` and their `binding` energy (eV per adatom, relative to free atoms of EMT).
One structure takes half a second, 300 take two to three minutes on one core.
"""

import argparse
import pathlib

import ase
import numpy as np
from ase.build import fcc100
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.geometry import get_distances
from ase.optimize import BFGS

from matterform import write_structures

SIZE = (3, 3, 2)  # atoms along a and b, layers
HEIGHT = 16.0  # height of the cell, Å
GAP = (0.8, 4.8)  # Å above the top layer: the confinement
START = (1.5, 3.5)  # Å above the top layer, where adatoms are placed
CLEAR = 2.0  # smallest distance between atoms at the start, Å
FMAX, STEPS = 0.05, 100
KEPT = (0, 2, 5, 10, 20)  # steps of a relaxation that become data of the force field


def main() -> None:
    """Writes the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/surface"))
    parser.add_argument("--count", type=int, default=300, help="number of relaxed structures (default: %(default)s)")
    parser.add_argument("--slab", default="Cu", help="element of the slab (default: %(default)s)")
    parser.add_argument("--adatom", default="Pt", help="element of the adatoms (default: %(default)s)")
    parser.add_argument("--adatoms", type=int, nargs=2, default=(2, 5), help="smallest and largest number of adatoms")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    slab = make_slab(arguments.slab)
    least, most = arguments.adatoms
    relaxed, frames = make_surfaces(slab, arguments.adatom, arguments.count, (least, most), arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, structures in (("relaxed", relaxed), ("frames", frames), ("slab", [slab])):
        write_structures(arguments.out / f"{name}.traj", structures)
    low, high = confinement(slab)
    energies = [atoms.info["binding"] for atoms in relaxed]
    print(f"{len(relaxed)} relaxed structures and {len(frames)} frames in {arguments.out}")
    print(f"binding {np.mean(energies):.3f} +- {np.std(energies):.3f} eV; --confinement {low:.2f} {high:.2f}")


def make_slab(metal: str) -> ase.Atoms:
    """A slab of two layers, periodic in the plane, all of it fixed."""
    slab = fcc100(metal, SIZE, vacuum=0.0)
    slab.positions[:, 2] += 1.0
    slab.cell[2] = [0.0, 0.0, HEIGHT]
    slab.pbc = [True, True, False]
    slab.set_constraint(FixAtoms(range(len(slab))))
    return slab


def confinement(slab: ase.Atoms) -> tuple[float, float]:
    """The heights z_min and z_max (Å) between which adatoms are confined."""
    top = slab.positions[:, 2].max()
    return round(top + GAP[0], 2), round(top + GAP[1], 2)


def make_surfaces(
    slab: ase.Atoms, element: str, count: int, adatoms: tuple[int, int], seed: int
) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """`count` relaxed structures, and frames of their relaxations; the number of adatoms is drawn for each."""
    rng = np.random.default_rng(seed)
    relaxed, frames = [], []
    while len(relaxed) < count:
        atoms = place_adatoms(rng, slab, element, int(rng.integers(adatoms[0], adatoms[1] + 1)))
        path = relaxation(atoms)
        if path is None or outside(path[-1], slab):
            continue
        relaxed.append(labelled(path[-1]))
        frames += [labelled(path[step]) for step in KEPT if step < len(path) - 1 and not outside(path[step], slab)]
    return relaxed, frames


def place_adatoms(rng: np.random.Generator, slab: ase.Atoms, element: str, number: int) -> ase.Atoms:
    """The slab with atoms at random places above it, none too close to another; also the baseline for samples."""
    atoms = slab.copy()
    top = slab.positions[:, 2].max()
    while len(atoms) < len(slab) + number:
        place = rng.random(3) @ np.diag([1.0, 1.0, 0.0]) @ np.asarray(slab.cell)
        place[2] = top + rng.uniform(*START)
        _, distances = get_distances(place, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        if distances.min() > CLEAR:
            atoms.append(ase.Atom(element, place))
    return atoms


def relaxation(atoms: ase.Atoms) -> list[ase.Atoms] | None:
    """All frames of a relaxation with EMT, with energies and forces; None if it does not converge."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    path = []

    def keep() -> None:
        frame = atoms.copy()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(apply_constraint=False)}
        frame.calc = SinglePointCalculator(frame, **results)
        path.append(frame)

    optimizer = BFGS(atoms, logfile=None)
    optimizer.attach(keep)
    return path if optimizer.run(fmax=FMAX, steps=STEPS) else None


def outside(atoms: ase.Atoms, slab: ase.Atoms) -> bool:
    """Whether an adatom is outside the confinement."""
    low, high = confinement(slab)
    heights = atoms.positions[len(slab) :, 2]
    return bool((heights <= low).any() or (heights >= high).any())


def labelled(atoms: ase.Atoms) -> ase.Atoms:
    """The structure with its number of adatoms and their binding energy (eV per adatom)."""
    fixed = len(atoms.constraints[0].index)
    number = len(atoms) - fixed
    slab = atoms[:fixed]
    slab.calc = EMT()
    # Energies of EMT are relative to the bulk metals; subtracting free atoms gives the binding energy.
    alone = ase.Atoms(atoms.symbols[-1:])
    alone.calc = EMT()
    free = slab.get_potential_energy() + number * alone.get_potential_energy()
    atoms.info |= {"adatoms": number, "binding": (atoms.get_potential_energy() - free) / number}
    return atoms


if __name__ == "__main__":
    main()
