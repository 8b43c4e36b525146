"""A hull from MP-20's binaries and ternaries: its deviation from the full one, and CHGNet's references for it.

    python experiments/rl/hull_mp20.py --table ../shared/data/mp20_biternary.csv.gz --out runs/hull_mp20

Writes hull/ (the index), references.json (energies of the elements by which CHGNet's energies become energies of
formation) and comparison.json. Takes about four minutes on one core, most of it CHGNet's energies.

The table is a part of the Materials Project, so a hull of it can only lie on or above the real one, and energies above
it are right or too low, never too high. This hull overestimates the stability of generated crystals, above all in
systems with few entries; differences between two sets of crystals are more reliable than the shares.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import numpy as np

import matterform
from experiments import common
from matterform import METASTABLE_EV, Hull, PotentialConfig, PotentialFit, fit_references

SAME_EV = 1e-4  # eV/atom


def main() -> None:
    """Indexes the table, compares energies above the hull, fits references, and compares again with CHGNet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=pathlib.Path, default=common.DATA / common.SOURCES["mp20"].path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/hull_mp20"))
    parser.add_argument("--limit", type=int, help="number of crystals to evaluate (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="number of threads of PyTorch (default: %(default)s)")
    arguments = parser.parse_args()
    if not (arguments.out / "hull").exists():
        matterform.index_hull(arguments.table, arguments.out / "hull")
    hull = matterform.open_hull(arguments.out / "hull")
    structures = [record.structure for record in matterform.iterate_records(arguments.table)][: arguments.limit]
    formation, published = (
        np.array([structure.properties[name] for structure in structures])
        for name in ("formation_energy_per_atom", "e_above_hull")
    )
    above = energies_above(hull, structures, formation)
    comparison: dict[str, Any] = {"hull_of_the_table": errors(above, published)}
    print(json.dumps(comparison, indent=1), flush=True)
    start = time.monotonic()
    config = PotentialConfig(threads=arguments.threads)
    with (
        matterform.open_potential(config) as potential,
        matterform.progress_bar("energies", len(structures)) as progress,
    ):
        fit = matterform.fit_potential_references(potential, structures, formation, progress)
    comparison["chgnet"] = {
        "seconds": time.monotonic() - start,
        "crystals": len(fit.used),
        "refused": [problem for problem in fit.problems if problem],
        **compare_potential(hull, structures, fit, above, published),
    }
    notes = {"potential": potential.name, "table": arguments.table.name, "residual_rms_ev_per_atom": fit.residual.rms}
    matterform.save_references(fit.references, arguments.out / "references.json", notes)
    common.write_json(arguments.out / "comparison.json", rounded(comparison))


def energies_above(hull: Hull, structures: list[Any], formation_per_atom: np.ndarray) -> np.ndarray:
    """Energies above the hull (eV/atom) of crystals with these energies of formation (eV/atom)."""
    compositions = [structure.composition for structure in structures]
    above = hull.energy_above_hull(compositions, formation_per_atom * [len(structure) for structure in structures])
    assert not any(above.problems)
    return above.values


def errors(ours: np.ndarray, published: np.ndarray) -> dict[str, float]:
    """Errors of energies above the hull (eV/atom) relative to the published ones."""
    difference = ours - published
    return {
        "crystals": len(ours),
        "mean_absolute_error": float(np.abs(difference).mean()),
        "mean_error": float(difference.mean()),
        "rms_error": float(np.sqrt((difference**2).mean())),
        "largest_above_published": float(difference.max()),
        "higher_than_published": int((difference > 1e-6).sum()),
        "share_equal": float((np.abs(difference) < SAME_EV).mean()),
        "published_mean": float(published.mean()),
        "mean": float(ours.mean()),
        "published_share_on_hull": float((published <= SAME_EV).mean()),
        "share_on_hull": float((ours <= SAME_EV).mean()),
        "share_metastable": float((ours <= METASTABLE_EV).mean()),
    }


def compare_potential(
    hull: Hull, structures: list[Any], fit: PotentialFit, above: np.ndarray, published: np.ndarray
) -> dict[str, Any]:
    """Errors of the formation energies (eV/atom), and the resulting errors of energies above the hull (eV/atom)."""
    used = [structures[index] for index in fit.used]
    formation = np.array([structure.properties["formation_energy_per_atom"] for structure in used])
    values = energies_above(hull, used, fit.residual.values + formation)
    # References absorb corrections per atom of an element, but not those that depend on its neighbours.
    again = matterform.mp2020_corrections(used).values / [len(structure) for structure in used]
    compositions = [structure.composition for structure in used]
    _, double = fit_references(compositions, fit.energy_per_atom[fit.used] + again, formation)
    return {
        "formation_rms": fit.residual.rms,
        "formation_rms_were_corrections_applied_twice": double.rms,
        "formation_mean_absolute_error": fit.residual.mean_absolute,
        "formation_absolute_quantiles": quantiles(np.abs(fit.residual.values)),
        "formation_largest": fit.residual.largest,
        "above_hull_against_the_table": errors(values, above[fit.used]),
        "above_hull_against_published": errors(values, published[fit.used]),
        "above_hull_quantiles": quantiles(values),
    }


def quantiles(values: np.ndarray) -> dict[str, float]:
    """A few quantiles by name."""
    return {f"{100 * q:g} %": float(np.quantile(values, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}


def rounded(tree: Any) -> Any:
    """Floats to four digits."""
    if isinstance(tree, dict):
        return {name: rounded(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [rounded(value) for value in tree]
    return float(f"{tree:.4g}") if isinstance(tree, float) else tree


if __name__ == "__main__":
    main()
