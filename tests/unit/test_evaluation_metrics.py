"""Metrics of labelled rows equal those of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics

from serving.errors import ServingError
from serving.evaluation.metrics import terms
from serving.evaluation.outcomes import Outcomes
from serving.journal.outcome_rows import ClassRows
from serving.journal.quality_metrics import calibration_error


def value(name: str, outcomes: Outcomes, label: str | None = None) -> float:
    """Return a metric of all rows."""
    return terms(name, label, outcomes).value()


def classified(classes: list[str], rows: int = 500) -> Outcomes:
    """Return labels and imperfect predictions."""
    random = np.random.default_rng(7)
    truth = random.integers(len(classes), size=rows)
    scores = random.random((rows, len(classes))) + 0.7 * np.eye(len(classes))[truth]
    probabilities = np.round(scores / scores.sum(axis=1, keepdims=True), 2)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return Outcomes(truth, probabilities.argmax(axis=1), classes, probabilities)


TWO, THREE = classified(["no", "yes"]), classified(["setosa", "versicolor", "virginica"])


@pytest.mark.parametrize("outcomes", [TWO, THREE], ids=["two", "three"])
def test_metrics_of_classifiers_equal_those_of_scikit_learn(outcomes: Outcomes) -> None:
    classes = list(outcomes.classes)
    truth, predicted = np.array(classes)[outcomes.labels], np.array(classes)[outcomes.predicted]
    two = len(classes) == 2
    average = {"average": "binary", "pos_label": "yes"} if two else {"average": "macro"}
    assert outcomes.probabilities is not None
    scores = outcomes.probabilities[:, 1] if two else outcomes.probabilities
    expected = {
        "accuracy": metrics.accuracy_score(truth, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
        "precision": metrics.precision_score(truth, predicted, **average),
        "recall": metrics.recall_score(truth, predicted, **average),
        "f1": metrics.f1_score(truth, predicted, **average),
        "log_loss": metrics.log_loss(truth, outcomes.probabilities, labels=classes),
        "roc_auc": metrics.roc_auc_score(truth, scores, multi_class="ovr", labels=classes),
        "brier_score": metrics.brier_score_loss(
            truth, scores, **({"pos_label": "yes"} if two else {"labels": classes})
        ),
    }
    assert {name: value(name, outcomes) for name in expected} == pytest.approx(expected, rel=1e-9)


def test_calibration_error_equals_that_of_recorded_outcomes() -> None:
    """Test probabilities on the edges of bins, too."""
    random = np.random.default_rng(5)
    chance = random.integers(10, 21, 2000) / 20
    truth = (random.random(2000) < 0.75).astype(np.intp)
    matrix = np.column_stack([1 - chance, chance])
    predicted = matrix.argmax(axis=1)
    recorded = calibration_error(ClassRows(("a", "b"), truth, predicted, matrix), matrix)
    outcomes = Outcomes(truth, predicted, ("a", "b"), matrix)
    assert value("calibration_error", outcomes) == pytest.approx(recorded, rel=1e-12)


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_metrics_of_one_class_equal_those_of_scikit_learn(name: str) -> None:
    function = getattr(metrics, f"{name}_score")
    expected = function(THREE.labels, THREE.predicted, labels=[2], average=None)[0]
    assert value(name, THREE, "virginica") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("mae", metrics.mean_absolute_error),
        ("mse", metrics.mean_squared_error),
        ("rmse", metrics.root_mean_squared_error),
        ("r2", metrics.r2_score),
    ],
)
def test_metrics_of_regressors_equal_those_of_scikit_learn(name: str, function: Callable[..., float]) -> None:
    random = np.random.default_rng(3)
    truth = random.normal(1e6, 3, 400)
    outcomes = Outcomes(truth, truth + random.normal(0, 1, 400))
    assert value(name, outcomes) == pytest.approx(function(outcomes.labels, outcomes.predicted), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "label", "outcomes", "message"),
    [
        ("accuracy", None, Outcomes(np.ones(3), np.ones(3)), "needs a classifier"),
        ("mae", None, TWO, "needs numbers"),
        ("recall", "maybe", TWO, "no class maybe"),
        ("log_loss", None, Outcomes(TWO.labels, TWO.predicted, TWO.classes), "needs probabilities"),
        ("roc_auc", None, TWO.where(TWO.labels == 1), "needs rows of yes and rows of other classes"),
    ],
)
def test_metric_that_does_not_fit_is_reported(
    name: str, label: str | None, outcomes: Outcomes, message: str
) -> None:
    with pytest.raises(ServingError, match=message):
        terms(name, label, outcomes)
