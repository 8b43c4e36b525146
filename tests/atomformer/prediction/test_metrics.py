"""Metrics: numbers worked by hand, scikit-learn and SciPy, missing labels, refusals."""

import numpy as np
import pytest
import scipy.stats

from atomformer.prediction.metrics import ATOM3D, METRICS, accuracy, auroc, mae, pearson, rmse, spearman, task_metrics

NAN = float("nan")


def array(*values):
    return np.array(values, np.float32)


def test_errors_are_those_worked_by_hand():
    predictions, labels = array(1, 2, 6), array(1, 4, 3)  # errors 0, -2, 3
    assert mae(predictions, labels) == pytest.approx(5 / 3)
    assert rmse(predictions, labels) == pytest.approx((13 / 3) ** 0.5)


def test_correlations_are_those_worked_by_hand():
    # Deviations (-1, 0, 1) and (-2, 1, 1): 3 / sqrt(2 * 6). Ranks (1, 2, 3) and (1, 2.5, 2.5): 1.5 / sqrt(2 * 1.5).
    predictions, labels = array(1, 2, 3), array(0, 3, 3)
    assert pearson(predictions, labels) == pytest.approx(3 / 12**0.5)
    assert spearman(predictions, labels) == pytest.approx(1.5 / 3**0.5)
    assert spearman(np.exp(predictions), predictions) == pytest.approx(1)


def test_auroc_counts_won_pairs_and_ties_half():
    # Positives 0.8 and 0.5, negatives 0.5 and 0.2: three pairs won, one tied.
    assert auroc(array(0.8, 0.5, 0.5, 0.2), array(1, 1, 0, 0)) == pytest.approx(3.5 / 4)
    assert auroc(array(1, 1, 1), array(0, 1, 0)) == 0.5
    assert auroc(array(1, 2, 3), array(1, 0, 0)) == 0


def test_accuracy_is_the_share_of_right_classes():
    assert accuracy(array(0, 2, 1, 1), array(0, 2, 2, 1)) == 0.75


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_agree_with_scikit_learn_and_scipy(rng, ties):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    predictions, labels = rng.normal(size=(2, 200))
    if ties:
        predictions, labels = np.round(predictions), np.round(labels)
    classes = (labels + rng.normal(size=200) > 0).astype(float)
    assert mae(predictions, labels) == pytest.approx(sklearn_metrics.mean_absolute_error(labels, predictions))
    assert rmse(predictions, labels) == pytest.approx(sklearn_metrics.root_mean_squared_error(labels, predictions))
    assert pearson(predictions, labels) == pytest.approx(scipy.stats.pearsonr(labels, predictions)[0])
    assert spearman(predictions, labels) == pytest.approx(scipy.stats.spearmanr(labels, predictions)[0])
    assert auroc(labels, classes) == pytest.approx(sklearn_metrics.roc_auc_score(classes, labels))


@pytest.mark.parametrize("metric", [mae, rmse, pearson, spearman, accuracy, auroc])
def test_missing_labels_change_nothing(metric):
    predictions, labels = array(0, 1, 1, 0, 1), array(0, 1, 0, 0, 1)
    with_missing = metric(array(0, 1, 7, 1, 0, 1), array(0, 1, NAN, 0, 0, 1))
    assert with_missing == metric(predictions, labels)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_correlation_with_a_constant_is_not_a_number(correlation):
    assert np.isnan(correlation(array(1, 1, 1), array(1, 2, 3)))
    assert np.isnan(correlation(array(1, 2, 3), array(NAN, 2, NAN)))


def test_regression_measures_every_target_on_its_own_labels():
    predictions, labels = np.array([[1.0, 0], [2, 4], [3, 9]]), np.array([[2.0, NAN], [2, 1], [4, 5]])
    found = task_metrics("regression", predictions, labels, ["gap", "dipole"])
    assert found["gap/mae"] == pytest.approx(2 / 3)
    assert found["gap/count"] == 3
    assert found["dipole/mae"] == pytest.approx(3.5)
    assert found["dipole/rmse"] == pytest.approx(12.5**0.5)
    assert found["dipole/pearson"] == pytest.approx(1)
    assert found["dipole/count"] == 2


def test_binary_predictions_are_logits():
    found = task_metrics("binary", array(-2, 0.5, 3, 1), array(0, 0, 1, NAN), ["active"])
    assert found == {"active/accuracy": pytest.approx(2 / 3), "active/auroc": 1, "active/count": 3}


def test_multiclass_predictions_are_scores_of_classes():
    scores = np.array([[0.1, 0.7, 0.2], [3, 1, 2], [-3, -2, -1], [0, 0, 9]], np.float32)
    found = task_metrics("multiclass", scores, array(1, 0, 0, NAN), ["residue"])
    assert found == {"residue/accuracy": pytest.approx(2 / 3), "residue/count": 3}


def test_only_the_metrics_asked_for_are_computed():
    # Both labels are of one class, for which there is no AUROC.
    assert task_metrics("binary", array(1, -1), array(1, 1), ["a"], ["accuracy"]) == {"a/accuracy": 0.5, "a/count": 2}


@pytest.mark.parametrize("name", ATOM3D)
def test_atom3d_tasks_can_be_measured_by_their_metrics(rng, name):
    task = ATOM3D[name]
    predictions = rng.normal(size=(50, task.num_labels))
    targets = task.num_labels if task.problem == "regression" else 1
    labels = rng.normal(size=(50, targets))
    if task.problem != "regression":
        labels = rng.integers(2, size=(50, 1)).astype(float)
    names = [f"target_{index}" for index in range(targets)]
    found = task_metrics(task.problem, predictions, labels, names, task.metrics)
    assert set(found) == {f"{name}/{metric}" for name in names for metric in (*task.metrics, "count")}


def test_atom3d_tasks_are_the_published_eight():
    assert {name: (task.problem, task.num_labels, *task.metrics) for name, task in ATOM3D.items()} == {
        "SMP": ("regression", 20, "mae"),
        "RES": ("multiclass", 20, "accuracy"),
        "MSP": ("binary", 1, "auroc"),
        "LEP": ("binary", 1, "auroc"),
        "PPI": ("binary", 1, "auroc"),
        "LBA": ("regression", 1, "rmse", "pearson", "spearman"),
        "PSR": ("regression", 4, "spearman"),
        "RSR": ("regression", 1, "spearman"),
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auroc(array(1, 2), array(1, 1)), "needs both classes: found 2 labels 1 and 0 labels 0"),
        (lambda: auroc(array(1, 2), array(0, 2)), "label 2 is no class: expected whole numbers from 0 to 1"),
        (lambda: mae(array(1, 2), array(NAN, NAN)), "all 2 labels are missing"),
        (lambda: mae(array(NAN, 2), array(1, 2)), "prediction 0 is nan"),
        (lambda: task_metrics("ranking", array(1), array(1), ["a"]), "unknown problem 'ranking': expected regression"),
        (lambda: task_metrics("binary", array(1), array(1), ["a"], ["mae"]), "binary has no metric 'mae'"),
        (lambda: task_metrics("regression", array(1), array(1), ["a", "b"]), "2 names"),
        (lambda: task_metrics("regression", array(1, 2), array(NAN, NAN), ["gap"]), "gap: all 2 labels are missing"),
        (lambda: task_metrics("binary", array(1, 2), array(0, -1), ["a"], ["accuracy"]), "label -1 is no class"),
        (lambda: task_metrics("multiclass", np.eye(3), array(0, 1, 3), ["a"]), "label 3 is no class.*0 to 2"),
        (lambda: task_metrics("multiclass", np.full((1, 3), NAN), array(0), ["a"]), "prediction 0 is nan"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_problem_has_metrics():
    assert set(METRICS) == {"regression", "binary", "multiclass"} >= {task.problem for task in ATOM3D.values()}
