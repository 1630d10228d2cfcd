"""The quality metrics of recorded outcomes equal those of scikit-learn on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from serving.codecs.prediction_schema import ClassLabels, GenericOutput, Probabilities, Regression
from serving.journal.outcome_rows import ClassRows, NumberRows, Pair, to_arrays
from serving.journal.quality import QualityWindow
from serving.journal.quality_metrics import MAX_CLASSES, MAX_SLICES_PER_COLUMN, Measured, measure
from serving.journal.quality_runs import metrics_of

ROWS = 600
COLORS = ("red", "green", "blue")


def class_rows(classes: Sequence[str], seed: int = 1) -> ClassRows:
    """Return random probabilities and outcomes that they predict better than chance."""
    chance = np.random.default_rng(seed)
    scores = chance.normal(size=(ROWS, len(classes)))
    actual = (scores + chance.normal(size=scores.shape)).argmax(axis=1)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return ClassRows(classes, actual, probabilities.argmax(axis=1), probabilities)


def overall(measured: Sequence[Measured]) -> dict[str, float]:
    """Return the metrics of all rows."""
    return {each.metric: each.value for each in measured if not each.label and not each.where}


def test_metrics_of_two_classes_equal_scikit_learn() -> None:
    rows = class_rows(("no", "yes"))
    actual, predicted = rows.actual, rows.predicted
    assert rows.probabilities is not None
    positive = rows.probabilities[:, 1]
    assert overall(measure(rows)) == pytest.approx(
        {
            "rows": ROWS,
            "accuracy": metrics.accuracy_score(actual, predicted),
            "precision": metrics.precision_score(actual, predicted),
            "recall": metrics.recall_score(actual, predicted),
            "f1": metrics.f1_score(actual, predicted),
            "roc_auc": metrics.roc_auc_score(actual, positive),
            "log_loss": metrics.log_loss(actual, rows.probabilities),
            "brier_score": metrics.brier_score_loss(actual, positive),
            "calibration_error": expected_calibration_error(rows),
        }
    )


def expected_calibration_error(rows: ClassRows) -> float:
    """Return the calibration error from the bins of scikit-learn's calibration curve."""
    assert rows.probabilities is not None
    confidence, correct = rows.probabilities.max(axis=1), rows.actual == rows.predicted
    accuracies, confidences = calibration_curve(correct, confidence, n_bins=10)
    counts = np.histogram(confidence, np.linspace(0, 1, 11))[0]
    return float((np.abs(accuracies - confidences) * counts[counts > 0]).sum() / len(rows))


def test_metrics_of_many_classes_equal_scikit_learn() -> None:
    rows = class_rows(COLORS)
    actual, predicted, probabilities = rows.actual, rows.predicted, rows.probabilities
    assert overall(measure(rows)) == pytest.approx(
        {
            "rows": ROWS,
            "accuracy": metrics.accuracy_score(actual, predicted),
            "precision": metrics.precision_score(actual, predicted, average="macro"),
            "recall": metrics.recall_score(actual, predicted, average="macro"),
            "f1": metrics.f1_score(actual, predicted, average="macro"),
            "roc_auc": metrics.roc_auc_score(actual, probabilities, multi_class="ovr"),
            "log_loss": metrics.log_loss(actual, probabilities),
            "brier_score": metrics.brier_score_loss(actual, probabilities),
            "calibration_error": expected_calibration_error(rows),
        }
    )


def test_metrics_of_each_class_equal_scikit_learn() -> None:
    rows = class_rows(COLORS)
    assert rows.probabilities is not None
    measured = {(each.label, each.metric): each.value for each in measure(rows) if each.label}
    for index, name in enumerate(COLORS):
        actual, predicted = rows.actual == index, rows.predicted == index
        assert measured[name, "rows"] == actual.sum()
        assert measured[name, "precision"] == pytest.approx(metrics.precision_score(actual, predicted))
        assert measured[name, "recall"] == pytest.approx(metrics.recall_score(actual, predicted))
        assert measured[name, "f1"] == pytest.approx(metrics.f1_score(actual, predicted))
        area = metrics.roc_auc_score(actual, rows.probabilities[:, index])
        assert measured[name, "roc_auc"] == pytest.approx(area)


def test_metrics_of_numbers_equal_scikit_learn() -> None:
    chance = np.random.default_rng(2)
    actual = chance.normal(10, 3, ROWS)
    rows = NumberRows(actual, actual + chance.normal(1, 2, ROWS))
    assert overall(measure(rows)) == pytest.approx(
        {
            "rows": ROWS,
            "mae": metrics.mean_absolute_error(rows.actual, rows.predicted),
            "rmse": metrics.root_mean_squared_error(rows.actual, rows.predicted),
            "r2": metrics.r2_score(rows.actual, rows.predicted),
        }
    )


def test_metrics_that_rows_do_not_define_are_absent() -> None:
    labels_only = class_rows(COLORS)
    labels_only = ClassRows(COLORS, labels_only.actual, labels_only.predicted)
    assert overall(measure(labels_only)).keys() == {"rows", "accuracy", "precision", "recall", "f1"}
    rows = class_rows(COLORS)
    one_class = overall(measure(rows.where(rows.actual == 1)))
    assert "roc_auc" not in one_class
    assert one_class["log_loss"] > 0
    assert overall(measure(NumberRows(np.ones(3), np.zeros(3)))).keys() == {"rows", "mae", "rmse"}
    assert measure(rows.where(rows.actual == 7)) == []


def test_slices_are_measured_on_their_rows_only() -> None:
    rows = class_rows(COLORS)
    regions = ["north" if index % 3 else "south" for index in range(ROWS)]
    measured = {(each.where, each.metric): each.value for each in measure(rows, {"region": regions})}
    is_south = np.arange(ROWS) % 3 == 0
    expected = metrics.accuracy_score(rows.actual[is_south], rows.predicted[is_south])
    assert measured["region=south", "accuracy"] == pytest.approx(expected)
    assert measured["region=south", "rows"] == is_south.sum()


def test_numbers_of_classes_and_slices_are_bounded() -> None:
    rows = class_rows([f"class {number}" for number in range(50)])
    cities = [f"city {number % 40}" for number in range(ROWS)]
    measured = measure(rows, {"city": cities})
    assert len({each.label for each in measured} - {""}) == MAX_CLASSES
    assert len({each.where for each in measured} - {""}) == MAX_SLICES_PER_COLUMN


def test_rows_without_a_value_and_rare_values_are_no_slice() -> None:
    rows = class_rows(COLORS)
    measured = measure(rows, {"region": ["", "rare", *[""] * (ROWS - 2)]})
    assert {each.where for each in measured} == {""}


@pytest.mark.parametrize("classes", [("no", "yes"), COLORS])
def test_probabilities_with_rounding_errors_are_used(classes: Sequence[str]) -> None:
    exact = class_rows(classes)
    assert exact.probabilities is not None
    exact.probabilities[0] = [1, *[0] * (len(classes) - 1)]
    rounded = exact.probabilities.copy()
    rounded[0, :2] += [1.2e-7, -1e-9]
    measured = overall(measure(replace(exact, probabilities=rounded)))
    assert measured == pytest.approx(overall(measure(exact)))
    assert {"log_loss", "brier_score", "roc_auc", "calibration_error"} <= measured.keys()


@pytest.mark.parametrize("wrong", [1.1, -0.1, np.nan, np.inf])
def test_wrong_probability_omits_only_metrics_of_probabilities(wrong: float) -> None:
    rows = class_rows(COLORS)
    assert rows.probabilities is not None
    expected = measure(replace(rows, probabilities=None))
    rows.probabilities[3, 1] = wrong
    assert measure(rows) == expected
    assert {"accuracy", "precision", "recall", "f1"} <= overall(expected).keys()


def test_probabilities_that_do_not_add_up_to_one_keep_the_other_metrics() -> None:
    rows = class_rows(COLORS)
    assert rows.probabilities is not None
    measured = overall(measure(replace(rows, probabilities=rows.probabilities * 0.9)))
    assert {"accuracy", "f1", "calibration_error"} <= measured.keys()


def test_recorded_predictions_become_arrays() -> None:
    certain = {"prediction": 1, "label": "b", "probabilities": {"a": 0.25, "b": 0.75}}
    pairs = [
        Pair(certain, "a", False, ()),
        Pair(certain, 1, False, ()),
        Pair({"prediction": None}, 0, False, ()),
    ]
    rows, used = to_arrays(Probabilities(("a", "b")), pairs)
    assert isinstance(rows, ClassRows)
    assert rows.probabilities is not None
    assert (rows.actual.tolist(), rows.predicted.tolist(), len(used)) == ([0, 1], [1, 1], 2)
    assert rows.probabilities.tolist() == [[0.25, 0.75]] * 2
    labels, _ = to_arrays(ClassLabels(("a", "b"), None), pairs)
    assert isinstance(labels, ClassRows)
    assert labels.probabilities is None
    texts = [Pair({"prediction": "x"}, "x", False, ()), Pair({"prediction": "x"}, "y", False, ())]
    words, _ = to_arrays(GenericOutput(()), texts)
    assert isinstance(words, ClassRows)
    assert (words.classes, words.actual.tolist(), words.predicted.tolist()) == (("x", "y"), [0, 1], [0, 0])
    numbers, _ = to_arrays(Regression(None), [Pair({"prediction": 2.5}, 3, True, ())])
    assert isinstance(numbers, NumberRows)
    assert (numbers.actual.tolist(), numbers.predicted.tolist()) == ([3.0], [2.5])


def test_names_in_mlflow_contain_only_characters_it_accepts() -> None:
    values = [
        ("f1", "", "", 0.5),
        ("f1", "très bien", "", 0.5),
        ("f1", "", "region=n=1", 0.5),
        ("rows", "", "", 9),
    ]
    window = QualityWindow("iris", "1", None, None, "", 0, 7, False, values)
    assert [*metrics_of(window)] == ["f1", "f1/class/tr_s bien", "f1/slice/region/n_1", "rows"]
    assert window.state(public=True).classes == {}
    assert window.state(public=False).slices == {"region=n=1": {"f1": 0.5}}
