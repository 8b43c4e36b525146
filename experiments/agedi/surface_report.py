"""EMT as reference for adatoms on a slab: binding energies before and after relaxation, and errors of a force field."""

import pathlib

import ase
import numpy as np
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import agedi
from experiments import common
from experiments.agedi.surface_data import FMAX, labelled, relaxation


def judge(atoms: ase.Atoms, slab: ase.Atoms) -> dict[str, float]:
    """Binding energy per adatom (eV) with EMT, as sampled and relaxed; NaN where the relaxation does not converge.

    Raises:
        ValueError: a fixed atom has moved.
    """
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
    """Medians and means of a group of structures."""
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
    """Errors of the model's force field, relative to EMT, at minima and at positions displaced by about 0.1 Å."""
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


def draw(out: pathlib.Path, judged: dict[str, list[dict[str, float]]]) -> None:
    """Plots distributions of binding energies before and after relaxation."""
    figure, axes = common.new_figure(2, "4 Pt on Cu(100): binding energy, EMT (eV per adatom)")
    colors = {"random": common.INK, "samples": common.VALIDATION, "guided": "#b04a4a", "data": common.TRAINING}
    for axis, key, title in zip(axes, ("drawn", "relaxed"), ("as drawn", "after relaxation"), strict=True):
        for name, found in judged.items():
            values = np.sort([one[key] for one in found if np.isfinite(one[key])])
            axis.plot(
                np.clip(values, -8, 0), np.arange(1, len(values) + 1) / len(values), color=colors[name], label=name
            )
        axis.set(title=title, xlabel="eV", ylabel="share below")
    axes[0].legend(frameon=False, fontsize=8)
    common.save_picture(figure, out / "energies.png")
