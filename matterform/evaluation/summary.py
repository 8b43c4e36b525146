"""Evaluation of a set of crystals: a table with one row per crystal, and a summary with its protocol."""

import dataclasses
import importlib.metadata
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from matterform.evaluation.composition import OXIDATION_STATES, compositional_validity
from matterform.evaluation.geometry import MIN_VOLUME_ANG3, cell_volume, defect
from matterform.evaluation.matching import MatcherConfig, is_novel, is_unique
from matterform.evaluation.symmetry import ANGLE_TOLERANCE_DEG, SYMPREC_ANG, find_symmetry, is_requested
from matterform.evaluation.validity import MIN_DISTANCE_ANG, strict_validity, structural_validity

if TYPE_CHECKING:
    import pandas as pd
    import pymatgen.core

TIGHT_SYMPREC_ANG = 0.01

# Column of the table -> meaning of True. The shares in the summary are fractions of all structures.
MEANINGS = {
    "valid": f"no distance below {MIN_DISTANCE_ANG} Å, own periodic images included; volume >= {MIN_VOLUME_ANG3} Å³",
    "valid_between_sites": "the same, own periodic images ignored (CDVAE)",
    "valid_strict": "every distance >= 0.5 (0.7 Å + covalent radii), densities of a solid, CIF round trip",
    "valid_composition": "one element, only metals, or charge-balanced and Pauling's test passed (SMACT)",
    "space_group_kept": f"space group found within {SYMPREC_ANG} Å is the requested one",
    "space_group_kept_tight": f"space group found within {TIGHT_SYMPREC_ANG} Å is the requested one",
    "unique": "matches no earlier structure of the set",
    "novel": "matches no structure of the reference",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluations in addition to structural validity. `composition` needs SMACT (extra `eval`)."""

    strict: bool = True
    composition: bool = False
    unique: bool = True
    matcher: MatcherConfig = MatcherConfig()


class Evaluation(NamedTuple):
    """`table` has one row per structure, in the given order; `summary` can be written as JSON."""

    table: "pd.DataFrame"
    summary: dict[str, Any]


def evaluate(
    structures: Sequence["pymatgen.core.Structure"],
    requested: Sequence[int] | np.ndarray | None = None,
    reference: Sequence["pymatgen.core.Structure"] | None = None,
    config: EvaluationConfig = EvaluationConfig(),
) -> Evaluation:
    """Evaluates crystals without relaxing them.

    Args:
        requested: requested space group (1 to 230) of each structure; None: not compared.
        reference: known crystals, usually the training set, to define novelty; None: novelty is not evaluated.

    Raises:
        ValueError: there are no structures, or not one requested space group per structure.
        ImportError: `config.composition` is set, but SMACT is not installed.
    """
    if not structures:
        raise ValueError("structures: expected at least one to evaluate, found none")
    table = tabulate(structures)
    columns: dict[str, Any] = structural_validity(structures)._asdict()
    if config.strict:
        columns["valid_strict"], columns["reason_strict"] = strict_validity(structures)
    if config.composition:
        columns["valid_composition"] = compositional_validity(structures)
    if requested is not None:
        tight = find_symmetry(structures, TIGHT_SYMPREC_ANG).space_group
        columns["space_group_requested"] = np.asarray(requested)
        columns["space_group_kept"] = is_requested(table["space_group"].to_numpy(), requested)
        columns["space_group_kept_tight"] = is_requested(tight, requested)
    if config.unique:
        columns["unique"] = is_unique(structures, config.matcher)
    if reference is not None:
        columns["novel"] = is_novel(structures, reference, config.matcher)
    table = table.assign(**columns)
    return Evaluation(table, _summary(table, None if reference is None else len(reference), config))


def tabulate(structures: Sequence["pymatgen.core.Structure"]) -> "pd.DataFrame":
    """Formula, atoms, density (g/cm³; NaN without a usable cell) and space group (0 if not found) of each crystal."""
    import pandas as pd

    rows = []
    symmetry = find_symmetry(structures)
    for structure, space_group, num_atoms_primitive in zip(structures, *symmetry, strict=True):
        rows.append(
            {
                "formula": structure.composition.reduced_formula if len(structure) else "",
                "num_atoms": len(structure),
                "num_atoms_primitive": int(num_atoms_primitive),
                "volume_ang3": cell_volume(structure),
                "density_g_cm3": np.nan if defect(structure) else float(structure.density),
                "space_group": int(space_group),
            }
        )
    return pd.DataFrame(rows)


def describe(summary: dict[str, Any]) -> str:
    """Formats the shares of a summary as text, one line each: value, name and meaning."""
    lines = [f"{summary['structures']} crystals, not relaxed"]
    lines += [
        f"{100 * entry['share']:6.1f} %  {name}: {entry['meaning']}" for name, entry in summary["metrics"].items()
    ]
    lines += [f"{count:6d}    not valid: {reason}" for reason, count in summary["reasons"].items()]
    return "\n".join(lines)


def _summary(table: "pd.DataFrame", num_reference: int | None, config: EvaluationConfig) -> dict[str, Any]:
    metrics = {
        name: {"share": float(table[name].mean()), "meaning": meaning}
        for name, meaning in MEANINGS.items()
        if name in table
    }
    # Reasons are counted by their text before the first number.
    faults = [re.split(r"[0-9]", reason)[0].strip(" :") for reason in table["reason"] if reason]
    return {
        "structures": len(table),
        "metrics": metrics,
        "reasons": {fault: faults.count(fault) for fault in sorted(set(faults))},
        "protocol": {
            "relaxed": False,
            "min_distance_ang": MIN_DISTANCE_ANG,
            "min_volume_ang3": MIN_VOLUME_ANG3,
            "symprec_ang": [SYMPREC_ANG, TIGHT_SYMPREC_ANG],
            "angle_tolerance_deg": ANGLE_TOLERANCE_DEG,
            "matcher": dataclasses.asdict(config.matcher),
            "reference_structures": num_reference,
            "oxidation_states": OXIDATION_STATES if config.composition else None,
            "versions": _versions(("matterform", "pymatgen", "spglib", *(["smact"] if config.composition else []))),
        },
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
