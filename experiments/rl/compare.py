"""Weights before and after fine-tuning, side by side: what was rewarded, and what it may have cost.

    python experiments/rl/compare.py --after runs/rl/published/epoch_000150.pkl --hull mp20_biternary.csv.gz \
        --references references.json --training mp20_biternary.csv.gz --relax-steps 60 --out runs/rl/comparison

Draws crystals from both, in the same space groups, and writes a table of each, comparison.json (shares of all crystals
drawn, means over those that have a value, standard errors, what failed and why) and comparison.png. With
--property-path the property of a matgl model is compared as well. Energies are of the samples as they are and, with
--relax-steps, after relaxation.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import tyro
from pymatgen.core import Structure

from crystalformer import (
    WeightsConfig,
    build_structures,
    count_spacegroups,
    describe_problems,
    draw_spacegroups,
    load_model,
    sample,
    training_spacegroups,
)
from matterform.evaluation.summary import EvaluationConfig, evaluate
from matterform.io.cif import parse_structure
from matterform.io.formats import iterate_csv
from matterform.plots.curves import TRAINING, VALIDATION, new_figure
from matterform.potentials.base import Potential, PropertyModel
from matterform.potentials.config import PotentialConfig, PropertyConfig
from matterform.potentials.load import load_property
from matterform.potentials.open import open_potential
from matterform.stability.above_hull import METASTABLE_EV, above_hull, check_references, stability_shares
from matterform.stability.hull import Hull, open_hull
from matterform.stability.references import References, load_references

JUDGED = ("valid", "valid_strict", "space_group_kept", "unique", "novel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Compares two sets of weights on fresh samples."""

    after: pathlib.Path  # fine-tuned weights
    out: pathlib.Path  # folder for tables, numbers and picture
    training: pathlib.Path  # CSV of CIFs: what is not novel
    before: pathlib.Path | None = None  # by default the shipped weights
    hull: pathlib.Path | None = None  # for energies above the hull
    references: pathlib.Path | None = None  # for a hull of formation energies
    relax_steps: int = 0
    property_path: pathlib.Path | None = None  # folder of a matgl model
    fidelity: int | None = None  # of a multi-fidelity model
    target: float | None = None  # of the property
    tolerance: float = 0.5  # what counts as near the target
    spacegroup: tuple[int, ...] = ()  # by default as often as in the shipped model's training set
    number: int = 500
    seed: int = 7
    potential: PotentialConfig = PotentialConfig(threads=1)


class Judges(NamedTuple):
    """What crystals are judged by; None where it is not asked for."""

    known: list[Structure]  # what is not novel
    potential: Potential | None
    hull: Hull | None
    references: References | None
    model: PropertyModel | None


@contextlib.contextmanager
def open_judges(arguments: Compare) -> Iterator[Judges]:
    """Opened before anything is drawn, so that a missing one costs nothing."""
    with contextlib.ExitStack() as stack:
        hull = potential = references = model = None
        if arguments.hull is not None:
            hull = open_hull(arguments.hull)
            references = None if arguments.references is None else load_references(arguments.references)
            potential = stack.enter_context(open_potential(arguments.potential))
            check_references(hull, references, potential)
        if arguments.property_path is not None:
            model = load_property(
                PropertyConfig(
                    property_path=arguments.property_path,
                    fidelity=arguments.fidelity,
                    device=arguments.potential.device,
                )
            )
        known = [parse_structure(record.text) for record in iterate_csv(arguments.training)]
        yield Judges(known, potential, hull, references, model)


def draw(arguments: Compare, weights: pathlib.Path | None) -> tuple[np.ndarray, list[Structure | None]]:
    """Space groups and crystals; None where a sample is no crystal."""
    model = load_model(WeightsConfig(model=weights))
    counts = count_spacegroups(arguments.spacegroup) if arguments.spacegroup else training_spacegroups()
    groups = draw_spacegroups(counts, arguments.number, [arguments.seed])
    crystals = sample(model.params, model.config, jax.random.key(arguments.seed), groups)
    return groups, build_structures(crystals)[0]


def judge(
    groups: np.ndarray, built: Sequence[Structure | None], known: list[Structure]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Validity, symmetry, uniqueness, novelty: a row a sample, False where there is no crystal; and the protocol."""
    places = [index for index, structure in enumerate(built) if structure is not None]
    structures = [structure for structure in built if structure is not None]
    table, summary = evaluate(structures, groups[places], known, EvaluationConfig(strict=True))
    table = table.set_index(pd.Index(places)).reindex(range(len(built)))
    for name in JUDGED:
        table[name] = table[name].eq(True)
    return table.assign(structure=built), summary["protocol"]


def add_energies(
    table: pd.DataFrame, potential: Potential, hull: Hull, references: References | None, relax_steps: int
) -> pd.DataFrame:
    """Columns with energies above the hull (eV/atom; NaN where there is none), and whether it knows the system."""
    places = np.flatnonzero(table["structure"].notna())
    structures = table["structure"][places].tolist()
    columns = {"e_above_hull": 0} | ({"e_above_hull_relaxed": relax_steps} if relax_steps else {})
    for name, steps in columns.items():
        found = above_hull(structures, potential, hull, references, steps)
        values, known, problems = np.full(len(table), np.nan), np.zeros(len(table), bool), ["not built"] * len(table)
        values[places], known[places] = found.e_above_hull, found.known_system
        for place, problem in zip(places, found.problems, strict=True):
            problems[place] = problem
        table = table.assign(**{name: values, f"{name}: problem": problems, "system_known": known})
    return table


def add_property(table: pd.DataFrame, model: PropertyModel) -> pd.DataFrame:
    """A column with the property, NaN where there is none."""
    places = np.flatnonzero(table["structure"].notna())
    values = np.full(len(table), np.nan)
    values[places] = model.predict(table["structure"][places].tolist()).values
    return table.assign(property=values)


def measure(table: pd.DataFrame, arguments: Compare) -> dict[str, dict[str, Any]]:
    """Means over crystals that have a value, and shares of all, each with its standard error."""
    numbers: dict[str, dict[str, Any]] = {name: share(table[name].to_numpy()) for name in JUDGED}
    for name in ("e_above_hull", "e_above_hull_relaxed"):
        if name in table:
            values = table[name].to_numpy()
            shares = stability_shares(values, table["unique"].to_numpy(), table["novel"].to_numpy())
            numbers |= {f"{name}: {key}": error_of_share(value, len(table)) for key, value in shares._asdict().items()}
            numbers[name] = mean(values)
            for label, known in (("known", True), ("unknown", False)):
                members = values[table["structure"].notna() & (table["system_known"] == known)]
                numbers[f"{name}: metastable in {label} systems"] = share(members <= METASTABLE_EV)
            numbers[f"{name}: failed"] = {"reasons": describe_problems(table[f"{name}: problem"].tolist())}
    if "property" in table:
        values = table["property"].to_numpy()
        numbers["property"] = mean(values)
        if arguments.target is not None:
            numbers["distance to the target"] = mean(np.abs(values - arguments.target))
            near = np.abs(values - arguments.target) <= arguments.tolerance
            numbers["near the target"] = share(near)
            numbers["near the target, valid, unique and novel"] = share(
                near & table["valid"].to_numpy() & table["unique"].to_numpy() & table["novel"].to_numpy()
            )
    return numbers


def share(values: np.ndarray) -> dict[str, float]:
    """Of all samples, or of some; without any there is none."""
    return error_of_share(float(values.mean()) if len(values) else float("nan"), len(values))


def error_of_share(value: float, number: int) -> dict[str, float]:
    """A share with its binomial standard error."""
    error = float(np.sqrt(value * (1 - value) / number)) if number else float("nan")
    return {"value": value, "error": error, "number": number}


def mean(values: np.ndarray) -> dict[str, float]:
    """Mean and median over the samples that have a value, and how many those are."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return {"value": float("nan"), "error": float("nan"), "median": float("nan"), "number": len(known)}
    error = float(known.std(ddof=1) / len(known) ** 0.5)
    return {"value": float(known.mean()), "error": error, "median": float(np.median(known)), "number": len(known)}


def named(value: Any) -> Any:
    """Files by their names, since their places mean nothing elsewhere."""
    return value.name if isinstance(value, pathlib.Path) else value


def draw_picture(tables: dict[str, pd.DataFrame], path: pathlib.Path) -> None:
    """Distributions before and after."""
    ranges = {"e_above_hull": (-0.5, 5.0), "e_above_hull_relaxed": (-0.5, 2.0), "property": (-0.5, 8.0)}
    names = [name for name in ranges if name in tables["before"]]
    figure, axes = new_figure(len(names))
    for axis, name in zip(axes, names, strict=True):
        for (label, table), color in zip(tables.items(), (TRAINING, VALIDATION), strict=True):
            values = table[name].clip(*ranges[name])
            axis.hist(values, bins=44, range=ranges[name], color=color, alpha=0.6, label=label)
        axis.set(title=name.replace("_", " "), xlabel="eV" if name == "property" else "eV/atom", ylabel="crystals")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


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
    numbers = {label: measure(table, arguments) for label, table in tables.items()}
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


if __name__ == "__main__":
    sys.exit(compare(tyro.cli(Compare, config=(tyro.conf.OmitArgPrefixes,))))
