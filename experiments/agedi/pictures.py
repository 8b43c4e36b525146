"""Pictures of AGeDi's recipes."""

import pathlib
from typing import Any

import ase
import numpy as np

from experiments import common
from experiments.agedi.geometry import radial_distribution


def draw_costs(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Plots the distance to the test set against the number of evaluations of the network."""
    figure, (axis,) = common.new_figure(1, "Acetylacetone: quality against cost")
    colors = {"em": common.INK, "ddim": common.TRAINING, "heun_ode": common.VALIDATION, "heun": "#b04a4a"}
    for row in rows[1:]:
        sampler, grid = row["name"].split()
        axis.errorbar(
            row["evaluations"],
            row["distance"],
            row["error"],
            color=colors[sampler],
            marker="o" if grid == "rho" else "s",
            markersize=5,
            label=row["name"],
        )
    axis.axhline(rows[0]["distance"], color=common.INK, linewidth=0.7, linestyle=":", label="training set")
    axis.set(xscale="log", xlabel="evaluations of the network", ylabel="distance to the test set (std)")
    axis.set_xticks([25, 50, 100, 500], ["25", "50", "100", "500"])
    axis.minorticks_off()
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), frameon=False, fontsize=6)
    common.save_picture(figure, path)


def draw_heats(path: pathlib.Path, heats: dict[float, dict[float, np.ndarray]], known: np.ndarray) -> None:
    """Plots the requested heats (eV/atom) against those of the training crystals nearest to the samples."""
    figure, (axis,) = common.new_figure(1, "Perovskites: heat of formation (eV/atom)")
    axis.plot([0, 3.2], [0, 3.2], color=common.INK, linewidth=0.6, linestyle=":")
    axis.axhline(known.mean(), color=common.INK, linewidth=0.8, label="mean of the data")
    for weight, color in zip([weight for weight in heats if weight], (common.TRAINING, common.VALIDATION), strict=True):
        requests = list(heats[weight])
        means = [np.mean(heats[weight][request]) for request in requests]
        errors = [np.std(heats[weight][request]) / np.sqrt(len(heats[weight][request])) for request in requests]
        axis.errorbar(requests, means, errors, fmt="o-", color=color, label=f"guidance {weight:g}", linewidth=1.2)
    axis.set(xlabel="requested", ylabel="nearest training compositions")
    axis.legend(frameon=False, fontsize=8)
    common.save_picture(figure, path)


def draw_neighbours(
    path: pathlib.Path, groups: dict[str, list[ase.Atoms]], bonds: dict[str, np.ndarray], longest_bond: float
) -> None:
    """Plots radial distributions of groups of structures, and shares of atoms by their number of bonds."""
    figure, (left, right) = common.new_figure(2, "carbon-24: crystals drawn in given cells")
    for (name, structures), color in zip(groups.items(), (common.TRAINING, common.VALIDATION, common.INK), strict=True):
        left.plot(*radial_distribution(structures, 4.0), color=color, label=name, linewidth=1.2)
        shares = [np.mean(bonds[name] == count) for count in range(9)]
        right.plot(range(9), shares, "o-", color=color, label=name, linewidth=1.2, markersize=3)
    left.set(title="radial distribution", xlabel="distance (Å)")
    right.set(title=f"neighbours within {longest_bond} Å", xlabel="number", ylabel="share of atoms")
    left.legend(frameon=False, fontsize=8)
    common.save_picture(figure, path)
