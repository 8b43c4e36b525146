"""Platinum adatoms on copper: structures sampled on a fixed slab, guided and relaxed by the model's own force field.

    python experiments/agedi/surfaces.py --out runs/agedi_surfaces

Makes its data (experiments/agedi/surface_data.py: adatoms on Cu(100) relaxed with ASE's EMT), trains a model with
ConfinedCellPositions, MaskFixed and a force field, and samples clusters on the slab with and without guidance by
forces. Energies per adatom and relaxation steps with EMT, before and after relaxation, are compared with those of atoms
placed at random and of the data. Writes report.json, samples_*.traj and energies.png.
"""

import pathlib

import ase
import numpy as np

import agedi
from experiments import common
from experiments.agedi import surface_report
from experiments.agedi.shared import sample_once, train_once
from experiments.agedi.surface_data import (
    confinement,
    make_slab,
    make_surfaces,
    place_adatoms,
)
from matterform import write_structures

SLAB, ADATOM, ADATOMS = "Cu", "Pt", 4


def main() -> None:
    """Makes the data, trains, samples, relaxes and compares."""
    arguments = common.parse_arguments(__doc__, "runs/agedi_surfaces")
    count, drawn = (3000, 200) if arguments.full else (300, 40)
    slab = make_slab(SLAB)
    relaxed, frames = surfaces(arguments.out, slab, count)
    diffusion = train_once(
        arguments.out,
        relaxed,
        regressor_data=frames,
        noisers="ConfinedCellPositions",
        mask="MaskFixed",
        confinement=confinement(slab),
        force_field=True,
        cutoff=5.0,
        epochs=500 if arguments.full else 20,
        lr=1e-3,
        batch_size=32,
        log_interval=1000,
    )
    rng = np.random.default_rng(1)
    groups = {"random": [place_adatoms(rng, slab, ADATOM, ADATOMS) for _ in range(drawn)]}
    for name, guidance in (("samples", 0.0), ("guided", 5.0)):
        groups[name] = sample_once(
            arguments.out / f"{name}.traj",
            lambda guidance=guidance: agedi.sample(
                diffusion,
                n_samples=drawn,
                formula=f"{ADATOM}{ADATOMS}",
                template=slab,
                confinement=confinement(slab),
                steps=100,
                sampler_kwargs={"grid": "rho"},
                ff_guidance=guidance or None,
                progress_bar=True,
            ),
        )
    groups["data"] = [atoms for atoms in relaxed if atoms.info["adatoms"] == ADATOMS][:drawn]
    judged = {name: [surface_report.judge(atoms, slab) for atoms in structures] for name, structures in groups.items()}
    report = {name: surface_report.summary(found) for name, found in judged.items()}
    report["force_field_on_data"] = surface_report.force_errors(diffusion, groups["data"])
    common.write_json(arguments.out / "report.json", report)
    surface_report.draw(arguments.out, judged)


def surfaces(out: pathlib.Path, slab: ase.Atoms, count: int) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """The data set: minima, and frames of the relaxations to them."""
    paths = [out / f"{name}.traj" for name in ("relaxed", "frames")]
    if not all(path.exists() for path in paths):
        for path, structures in zip(paths, make_surfaces(slab, ADATOM, count, (2, 5), seed=0), strict=True):
            write_structures(path, structures)
    relaxed, frames = map(common.read_atoms, paths)
    return relaxed, frames


if __name__ == "__main__":
    main()
