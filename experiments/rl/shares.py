"""Means and shares of samples with their standard errors."""

from typing import Any

import numpy as np
import pandas as pd

from crystalformer.rl import describe_problems
from experiments.rl.judges import JUDGED
from matterform import METASTABLE_EV, stability_shares


def measure(table: pd.DataFrame, target: float | None, tolerance: float) -> dict[str, dict[str, Any]]:
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
        if target is not None:
            numbers["distance to the target"] = mean(np.abs(values - target))
            near = np.abs(values - target) <= tolerance
            numbers["near the target"] = share(near)
            numbers["near the target, valid, unique and novel"] = share(
                near & table["valid"].to_numpy() & table["unique"].to_numpy() & table["novel"].to_numpy()
            )
    return numbers


def share(values: np.ndarray) -> dict[str, float]:
    """The share of true values with its standard error; NaN if there are no values."""
    return error_of_share(float(values.mean()) if len(values) else float("nan"), len(values))


def error_of_share(value: float, number: int) -> dict[str, float]:
    """A share with its binomial standard error."""
    error = float(np.sqrt(value * (1 - value) / number)) if number else float("nan")
    return {"value": value, "error": error, "number": number}


def mean(values: np.ndarray) -> dict[str, float]:
    """Mean and median over the samples that have a value, and the number of these."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return {"value": float("nan"), "error": float("nan"), "median": float("nan"), "number": len(known)}
    error = float(known.std(ddof=1) / len(known) ** 0.5)
    return {"value": float(known.mean()), "error": error, "median": float(np.median(known)), "number": len(known)}
