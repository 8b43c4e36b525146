"""How well predictions meet labels, on the host; missing labels (NaN) are left out and what is left is counted."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Atom3dTask(NamedTuple):
    """One task of ATOM3D (Townshend et al. 2021): how to fine-tune for it, and the metrics it is judged by."""

    title: str
    problem: str  # a key of METRICS
    num_labels: int  # outputs of the head: targets of a regression, classes, or the one logit of a binary task
    metrics: tuple[str, ...]


ATOM3D = {
    "SMP": Atom3dTask("small molecule properties", "regression", 20, ("mae",)),
    "RES": Atom3dTask("residue identity", "multiclass", 20, ("accuracy",)),
    "MSP": Atom3dTask("mutation stability prediction", "binary", 1, ("auroc",)),
    "LEP": Atom3dTask("ligand efficacy prediction", "binary", 1, ("auroc",)),
    "PPI": Atom3dTask("protein interface prediction", "binary", 1, ("auroc",)),
    "LBA": Atom3dTask("ligand binding affinity", "regression", 1, ("rmse", "pearson", "spearman")),
    "PSR": Atom3dTask("protein structure ranking", "regression", 4, ("spearman",)),
    "RSR": Atom3dTask("RNA structure ranking", "regression", 1, ("spearman",)),
}


def mae(predictions: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> float:
    """Mean absolute error, in the unit of the labels."""
    predictions, labels = _labelled(predictions, labels)
    return float(np.abs(predictions - labels).mean())


def rmse(predictions: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> float:
    """Root of the mean squared error, in the unit of the labels."""
    predictions, labels = _labelled(predictions, labels)
    return float(np.sqrt(np.square(predictions - labels).mean()))


def pearson(predictions: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> float:
    """Linear correlation; NaN where either side is constant, as an untrained head's predictions are."""
    predictions, labels = _labelled(predictions, labels)
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return float("nan")
    return float(np.corrcoef(predictions, labels)[0, 1])


def spearman(predictions: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> float:
    """Correlation of ranks, equal values sharing their mean rank; NaN where either side is constant."""
    from scipy.stats import rankdata

    predictions, labels = _labelled(predictions, labels)
    return pearson(rankdata(predictions), rankdata(labels))


def accuracy(classes: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> float:
    """Share of right classes."""
    classes, labels = _labelled(classes, labels)
    return float((classes == labels).mean())


def auroc(scores: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> float:
    """Probability that a random positive scores above a random negative, a tie counting half.

    Raises:
        ValueError: the labels are of one class only, or not 0 and 1.
    """
    from scipy.stats import rankdata

    scores, labels = _labelled(scores, labels)
    _check_classes(labels, 2)
    positive = labels == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        raise ValueError(f"AUROC needs both classes: found {positives} labels 1 and {negatives} labels 0")
    # Mann and Whitney: the rank sum of the positives, less what they would have among themselves, counts the pairs won.
    wins = rankdata(scores)[positive].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def _binary_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return accuracy((logits > 0).astype(np.float64), labels)


Metric = Callable[[np.ndarray, np.ndarray], float]
METRICS: dict[str, dict[str, Metric]] = {
    "regression": {"mae": mae, "rmse": rmse, "pearson": pearson, "spearman": spearman},
    "binary": {"accuracy": _binary_accuracy, "auroc": auroc},
    "multiclass": {"accuracy": accuracy},
}


def task_metrics(
    problem: str,
    predictions: Float[np.ndarray, " m"] | Float[np.ndarray, "m outputs"],
    labels: Float[np.ndarray, " m"] | Float[np.ndarray, "m targets"],
    names: Sequence[str],
    metrics: Sequence[str] | None = None,
) -> dict[str, float]:
    """Metrics of every target as "name/metric", and as "name/count" how many labels they rest on.

    Args:
        problem: "regression", "binary" (predictions are logits, labels 0 and 1) or "multiclass" (predictions are one
            score for each class, labels the class; one target).
        names: one for every target, that is, column of the labels.
        metrics: those wanted, such as `ATOM3D["LBA"].metrics`; None gives all of the problem.
    """
    if problem not in METRICS:
        raise ValueError(f"unknown problem {problem!r}: expected {', '.join(METRICS)}")
    functions = METRICS[problem]
    wanted = tuple(functions) if metrics is None else tuple(metrics)
    if unknown := [name for name in wanted if name not in functions]:
        raise ValueError(f"{problem} has no metric {unknown[0]!r}: expected some of {', '.join(functions)}")
    labels = labels.reshape(len(labels), -1).astype(np.float64)
    predictions = predictions.reshape(len(predictions), -1).astype(np.float64)
    if problem == "multiclass":
        _check_finite(predictions)
        _check_classes(labels[~np.isnan(labels)], predictions.shape[1])
        predictions = predictions.argmax(axis=1, keepdims=True).astype(np.float64)
    if predictions.shape != labels.shape or labels.shape[1] != len(names):
        raise ValueError(
            f"{problem}: predictions of {predictions.shape[1]} targets for {len(predictions)} structures, labels of "
            f"{labels.shape[1]} for {len(labels)}, and {len(names)} names; expected as many of each"
        )
    found = {}
    for name, predicted, given in zip(names, predictions.T, labels.T, strict=True):
        count = float((~np.isnan(given)).sum())
        if count == 0:
            raise ValueError(f"{name}: all {len(given)} labels are missing, so nothing can be measured")
        if problem == "binary":
            _check_classes(given[~np.isnan(given)], 2)
        found |= {f"{name}/{metric}": functions[metric](predicted, given) for metric in wanted}
        found[f"{name}/count"] = count
    return found


def _labelled(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, where there is a label."""
    known = ~np.isnan(labels)
    if not known.any():
        raise ValueError(f"all {len(labels)} labels are missing, so nothing can be measured")
    _check_finite(predictions)
    return predictions[known].astype(np.float64), labels[known].astype(np.float64)


def _check_finite(predictions: np.ndarray) -> None:
    if len(broken := np.argwhere(~np.isfinite(predictions))):
        value = predictions[tuple(broken[0])]
        raise ValueError(f"prediction {broken[0][0]} is {value}; expected finite numbers: has training diverged?")


def _check_classes(labels: np.ndarray, count: int) -> None:
    """Refuses known labels that are no classes."""
    if len(wrong := labels[(labels != np.round(labels)) | (labels < 0) | (labels >= count)]):
        raise ValueError(f"label {wrong[0]:g} is no class: expected whole numbers from 0 to {count - 1}")
