"""Evaluation of crystals before and after fine-tuning: validity, energies above a hull, a property."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pymatgen.core import Structure

import matterform
from matterform import Hull, Potential, PropertyModel, References

JUDGED = ("valid", "valid_strict", "space_group_kept", "unique", "novel")


class Judges(NamedTuple):
    """References and models for the evaluation; None for those that are not requested."""

    known: list[Structure]  # crystals that are not novel
    potential: Potential | None
    hull: Hull | None
    references: References | None
    model: PropertyModel | None


@contextlib.contextmanager
def open_judges(arguments: Any) -> Iterator[Judges]:
    """Opens references and models; before sampling, so that a missing file fails early."""
    with contextlib.ExitStack() as stack:
        hull = potential = references = model = None
        if arguments.hull is not None:
            hull = matterform.open_hull(arguments.hull)
            references = None if arguments.references is None else matterform.load_references(arguments.references)
            potential = stack.enter_context(matterform.open_potential(arguments.potential))
            matterform.check_references(hull, references, potential)
        if arguments.property_path is not None:
            model = matterform.load_property(
                matterform.PropertyConfig(
                    property_path=arguments.property_path,
                    fidelity=arguments.fidelity,
                    device=arguments.potential.device,
                )
            )
        known = [matterform.parse_structure(record.text) for record in matterform.iterate_csv(arguments.training)]
        yield Judges(known, potential, hull, references, model)


def judge(
    groups: np.ndarray, built: Sequence[Structure | None], known: list[Structure]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Validity, symmetry, uniqueness and novelty, one row per sample (False without a crystal); and the protocol."""
    places = [index for index, structure in enumerate(built) if structure is not None]
    structures = [structure for structure in built if structure is not None]
    table, summary = matterform.evaluate(structures, groups[places], known, matterform.EvaluationConfig(strict=True))
    table = table.set_index(pd.Index(places)).reindex(range(len(built)))
    for name in JUDGED:
        table[name] = table[name].eq(True)
    return table.assign(structure=built), summary["protocol"]


def add_energies(
    table: pd.DataFrame, potential: Potential, hull: Hull, references: References | None, relax_steps: int
) -> pd.DataFrame:
    """Adds energies above the hull (eV/atom; NaN where there is none), and whether the hull contains the system."""
    places = np.flatnonzero(table["structure"].notna())
    structures = table["structure"][places].tolist()
    columns = {"e_above_hull": 0} | ({"e_above_hull_relaxed": relax_steps} if relax_steps else {})
    for name, steps in columns.items():
        found = matterform.above_hull(structures, potential, hull, references, steps)
        values, known, problems = np.full(len(table), np.nan), np.zeros(len(table), bool), ["not built"] * len(table)
        values[places], known[places] = found.e_above_hull, found.known_system
        for place, problem in zip(places, found.problems, strict=True):
            problems[place] = problem
        table = table.assign(**{name: values, f"{name}: problem": problems, "system_known": known})
    return table


def add_property(table: pd.DataFrame, model: PropertyModel) -> pd.DataFrame:
    """Adds a column with the property, NaN where there is none."""
    places = np.flatnonzero(table["structure"].notna())
    values = np.full(len(table), np.nan)
    values[places] = model.predict(table["structure"][places].tolist()).values
    return table.assign(property=values)
