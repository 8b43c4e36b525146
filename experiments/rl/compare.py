"""Comparison of weights before and after fine-tuning: the rewarded quantity, and validity, novelty and so on.

    python experiments/rl/compare.py --after runs/rl/published/epoch_000150.pkl --hull mp20_biternary.csv.gz \
        --references references.json --training mp20_biternary.csv.gz --relax-steps 60 --out runs/rl/comparison

Samples crystals from both, in the same space groups, and writes a table of each, comparison.json (shares of all
crystals, means over those that have a value, standard errors, and reasons of failures) and comparison.png. With
--property-path the property of a matgl model is compared as well. Energies are of the samples as they are and, with
--relax-steps, after relaxation.
"""

import dataclasses
import json
import pathlib
import sys
import warnings
from typing import Any

import jax
import numpy as np
import pandas as pd
import tyro
from pymatgen.core import Structure

from crystalformer import (
    WeightsConfig,
    build_structures,
    count_spacegroups,
    draw_spacegroups,
    load_model,
    sample,
    training_spacegroups,
)
from experiments import common
from experiments.rl.judges import add_energies, add_property, judge, open_judges
from experiments.rl.shares import measure
from matterform import PotentialConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Compares two sets of weights on fresh samples."""

    after: pathlib.Path  # fine-tuned weights
    out: pathlib.Path  # folder for tables, numbers and picture
    training: pathlib.Path  # CSV of CIFs; crystals in it are not novel
    before: pathlib.Path | None = None  # weights before fine-tuning; none: the shipped ones
    hull: pathlib.Path | None = None  # table or folder of the hull; none: no energies above a hull
    references: pathlib.Path | None = None  # references.json, for a hull of formation energies
    relax_steps: int = 0  # number of relaxation steps before a second energy; 0: no relaxation
    property_path: pathlib.Path | None = None  # folder of a matgl model of the property
    fidelity: int | None = None  # fidelity of a multi-fidelity model
    target: float | None = None  # target of the property, in its unit
    tolerance: float = 0.5  # largest distance that is near the target, in the property's unit
    spacegroup: tuple[int, ...] = ()  # space groups to sample; none: as in the shipped model's training set
    number: int = 500  # number of crystals per set of weights
    seed: int = 7  # random seed
    potential: PotentialConfig = PotentialConfig(threads=1)


def draw(arguments: Compare, weights: pathlib.Path | None) -> tuple[np.ndarray, list[Structure | None]]:
    """Space groups and crystals; None where a sample is no crystal."""
    model = load_model(WeightsConfig(model=weights))
    counts = count_spacegroups(arguments.spacegroup) if arguments.spacegroup else training_spacegroups()
    groups = draw_spacegroups(counts, arguments.number, [arguments.seed])
    crystals = sample(model.params, model.config, jax.random.key(arguments.seed), groups)
    return groups, build_structures(crystals)[0]


def compare(arguments: Compare) -> int:
    """Runs the comparison; 0 if all went well."""
    warnings.filterwarnings("ignore", "No Pauling electronegativity")
    arguments.out.mkdir(parents=True, exist_ok=True)
    tables, judged_by = {}, {}
    with open_judges(arguments) as judges:
        for label, weights in (("before", arguments.before), ("after", arguments.after)):
            table, judged_by = judge(*draw(arguments, weights), judges.known)
            if judges.hull is not None and judges.potential is not None:
                table = add_energies(table, judges.potential, judges.hull, judges.references, arguments.relax_steps)
            if judges.model is not None:
                table = add_property(table, judges.model)
            table.drop(columns="structure").to_csv(arguments.out / f"{label}.csv", index=False)
            tables[label] = table
    numbers = {label: measure(table, arguments.target, arguments.tolerance) for label, table in tables.items()}
    protocol = {name: named(value) for name, value in dataclasses.asdict(arguments).items() if name != "potential"}
    protocol |= {"potential": arguments.potential.mlff_model, "judged_by": judged_by}
    content = {"protocol": protocol, **numbers}
    (arguments.out / "comparison.json").write_text(json.dumps(content, indent=1) + "\n")
    draw_picture(tables, arguments.out / "comparison.png")
    for name, entry in numbers["before"].items():
        if "value" in entry:
            pair = "   ".join("{value:8.3f} +- {error:.3f}".format(**numbers[label][name]) for label in tables)
            print(f"{name:45s} {pair}")
    return 0


def named(value: Any) -> Any:
    """Paths replaced by file names, because folders differ between machines."""
    return value.name if isinstance(value, pathlib.Path) else value


def draw_picture(tables: dict[str, pd.DataFrame], path: pathlib.Path) -> None:
    """Plots distributions before and after fine-tuning."""
    ranges = {"e_above_hull": (-0.5, 5.0), "e_above_hull_relaxed": (-0.5, 2.0), "property": (-0.5, 8.0)}
    names = [name for name in ranges if name in tables["before"]]
    figure, axes = common.new_figure(len(names))
    for axis, name in zip(axes, names, strict=True):
        for (label, table), color in zip(tables.items(), (common.TRAINING, common.VALIDATION), strict=True):
            values = table[name].clip(*ranges[name])
            axis.hist(values, bins=44, range=ranges[name], color=color, alpha=0.6, label=label)
        axis.set(title=name.replace("_", " "), xlabel="eV" if name == "property" else "eV/atom", ylabel="crystals")
    axes[0].legend(frameon=False, fontsize=8)
    common.save_picture(figure, path)


if __name__ == "__main__":
    sys.exit(compare(tyro.cli(Compare, config=(tyro.conf.OmitArgPrefixes,))))
