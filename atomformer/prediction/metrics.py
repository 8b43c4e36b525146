"""Metrics of regression and classification; missing labels (NaN) are left out, and the remaining ones are counted."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Atom3dTask(NamedTuple):
    """A task of ATOM3D (Townshend et al. 2021, arXiv:2012.04035): the problem to fine-tune for, and its metrics."""

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
    """Mean absolute error, in the unit of the labels.

    Raises:
        ValueError: all labels are missing, or a prediction is not finite.
    """
    predictions, labels = _labelled(predictions, labels)
    return float(np.abs(predictions - labels).mean())


def rmse(predictions: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> float:
    """Root of the mean squared error, in the unit of the labels.

    Raises:
        ValueError: all labels are missing, or a prediction is not finite.
    """
    predictions, labels = _labelled(predictions, labels)
    return float(np.sqrt(np.square(predictions - labels).mean()))


def pearson(predictions: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> float:
    """Pearson's linear correlation; NaN if either side is constant, e.g. for predictions of an untrained head.

    Raises:
        ValueError: all labels are missing, or a prediction is not finite.
    """
    from scipy.stats import pearsonr

    predictions, labels = _labelled(predictions, labels)
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return float("nan")
    return float(pearsonr(predictions, labels).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def spearman(predictions: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> float:
    """Spearman's correlation of ranks, with the mean rank for equal values; NaN if either side is constant.

    Raises:
        ValueError: all labels are missing, or a prediction is not finite.
    """
    from scipy.stats import spearmanr

    predictions, labels = _labelled(predictions, labels)
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return float("nan")
    return float(spearmanr(predictions, labels).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def accuracy(classes: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> float:
    """Share of predictions with the correct class.

    Raises:
        ValueError: all labels are missing, or a prediction is not finite.
    """
    classes, labels = _labelled(classes, labels)
    return float((classes == labels).mean())


def auroc(scores: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> float:
    """Area under the ROC curve: probability that a random positive scores above a random negative; ties count half.

    Raises:
        ValueError: all labels are of one class, or a label is neither 0 nor 1.
    """
    from scipy.stats import mannwhitneyu

    scores, labels = _labelled(scores, labels)
    _check_classes(labels, 2)
    positive = labels == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        raise ValueError(f"AUROC needs both classes: found {positives} labels 1 and {negatives} labels 0")
    # Mann and Whitney's U counts the pairs in which the positive scores higher; its p-value is not needed.
    wins = mannwhitneyu(scores[positive], scores[~positive], method="asymptotic").statistic
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
    """Metrics of every target as "name/metric", and the number of its labels as "name/count".

    Args:
        problem: "regression", "binary" (predictions are logits, labels 0 and 1) or "multiclass" (predictions are one
            score per class, labels the class; one target).
        names: one per target, that is, per column of the labels.
        metrics: the metrics to compute, such as `ATOM3D["LBA"].metrics`; None computes all of the problem.

    Raises:
        ValueError: the problem or a metric is unknown, shapes do not match, a target has no labels, a label is not a
            class, or a prediction is not finite.
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
    """Predictions and labels as float64, without those that have no label."""
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
    """Checks that known labels are classes from 0 to count - 1."""
    if len(wrong := labels[(labels != np.round(labels)) | (labels < 0) | (labels >= count)]):
        raise ValueError(f"label {wrong[0]:g} is no class: expected whole numbers from 0 to {count - 1}")
