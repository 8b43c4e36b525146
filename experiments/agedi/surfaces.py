"""Platinum adatoms on copper: structures drawn on a fixed slab, guided and relaxed by the model's own force field.

    python experiments/agedi/surfaces.py --out runs/agedi_surfaces

Makes its data (experiments/agedi/surface_data.py: adatoms on Cu(100) relaxed with ASE's EMT), trains a model with
ConfinedCellPositions, MaskFixed and a force field, and draws clusters on the slab with and without guidance by forces.
EMT judges them, as drawn and after relaxation with EMT, beside atoms placed at random and beside the data: energy an
adatom, relaxation steps. Writes report.json, samples_*.traj and energies.png.
"""

import ase
import numpy as np
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import agedi
from experiments.agedi.shared import parse_arguments, sample_once, save, train_once, write_report
from experiments.agedi.surface_data import (
    FMAX,
    confinement,
    labelled,
    make_slab,
    make_surfaces,
    place_adatoms,
    relaxation,
)
from matterform.io.formats import read_structures, write_structures
from matterform.plots.curves import INK, TRAINING, VALIDATION, new_figure

SLAB, ADATOM, ADATOMS = "Cu", "Pt", 4


def main() -> None:
    """Makes data, trains, samples, relaxes, compares."""
    arguments = parse_arguments(__doc__, "agedi_surfaces")
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
    judged = {name: [judge(atoms, slab) for atoms in structures] for name, structures in groups.items()}
    report = {name: summary(found) for name, found in judged.items()}
    report["force_field_on_data"] = force_errors(diffusion, groups["data"])
    write_report(arguments.out / "report.json", report)
    draw(arguments.out, judged)


def surfaces(out, slab: ase.Atoms, count: int) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """The data set: minima, and frames on the way to them."""
    paths = [out / f"{name}.traj" for name in ("relaxed", "frames")]
    if not all(path.exists() for path in paths):
        for path, structures in zip(paths, make_surfaces(slab, ADATOM, count, (2, 5), seed=0), strict=True):
            write_structures(path, structures)
    relaxed, frames = (read_structures(path)[0] for path in paths)
    return relaxed, frames


def judge(atoms: ase.Atoms, slab: ase.Atoms) -> dict[str, float]:
    """Binding energy an adatom (eV) with EMT, as it is and relaxed; NaN relaxed where that does not end."""
    moved = np.abs(atoms.positions[: len(slab)] - slab.positions).max()
    if moved > 0:
        raise ValueError(f"a fixed atom moved by {moved} angstrom")
    start = atoms.copy()
    start.set_constraint(slab.constraints)
    start.calc = EMT()
    start.calc = SinglePointCalculator(start, energy=start.get_potential_energy())
    path = relaxation(start)
    end = float("nan") if path is None else labelled(path[-1]).info["binding"]
    return {
        "drawn": labelled(start).info["binding"],
        "relaxed": end,
        "steps": float("nan") if path is None else len(path) - 1,
    }


def summary(found: list[dict[str, float]]) -> dict[str, float]:
    """Medians and means of a group."""
    values = {name: np.array([one[name] for one in found]) for name in found[0]}
    return {
        "drawn_median_ev": float(np.median(values["drawn"])),
        "relaxed_mean_ev": float(np.nanmean(values["relaxed"])),
        "relaxed_standard_error_ev": float(np.nanstd(values["relaxed"]) / np.sqrt(len(found))),
        "relaxed_best_ev": float(np.nanmin(values["relaxed"])),
        "steps_mean": float(np.nanmean(values["steps"])),
        "not_converged": int(np.isnan(values["relaxed"]).sum()),
        "number": len(found),
    }


def force_errors(diffusion: agedi.Diffusion, structures: list[ase.Atoms]) -> dict[str, float]:
    """Errors of the model's force field on minima and, shaken by 0.1 Å, beside them; against EMT."""
    rng, energies, forces = np.random.default_rng(2), [], []
    shaken = []
    for atoms in structures:
        free = np.setdiff1d(np.arange(len(atoms)), atoms.constraints[0].index)
        moved = atoms.copy()
        moved.positions[free] += rng.normal(0, 0.1, (len(free), 3))
        shaken.append(moved)
    for moved, predicted in zip(shaken, agedi.predict(diffusion, shaken), strict=True):
        free = np.setdiff1d(np.arange(len(moved)), moved.constraints[0].index)
        moved.calc = EMT()
        energies.append((predicted.get_potential_energy() - moved.get_potential_energy()) / len(free))
        forces.append((predicted.get_forces(False) - moved.get_forces(False))[free].ravel())
    return {
        "energy_mae_ev_per_adatom": float(np.mean(np.abs(energies))),
        "force_mae_ev_per_ang": float(np.mean(np.abs(np.concatenate(forces)))),
        "converged_to_ev_per_ang": FMAX,
    }


def draw(out, judged: dict[str, list[dict[str, float]]]) -> None:
    """Distributions of energies before and after relaxation."""
    figure, axes = new_figure(2, "4 Pt on Cu(100): binding energy, EMT (eV an adatom)")
    colors = {"random": INK, "samples": VALIDATION, "guided": "#b04a4a", "data": TRAINING}
    for axis, key, title in zip(axes, ("drawn", "relaxed"), ("as drawn", "after relaxation"), strict=True):
        for name, found in judged.items():
            values = np.sort([one[key] for one in found if np.isfinite(one[key])])
            axis.plot(
                np.clip(values, -8, 0), np.arange(1, len(values) + 1) / len(values), color=colors[name], label=name
            )
        axis.set(title=title, xlabel="eV", ylabel="share below")
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, out / "energies.png")


if __name__ == "__main__":
    main()
