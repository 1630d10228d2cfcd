"""Labels and predictions of classes, which may be names, numbers or indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics

from serving.evaluation.rules import parse_rules
from serving.evaluation.samples import OutputKind, Sample, VersionSample
from serving.evaluation.verdict import Decision, RuleResult, confusion, judge

ROWS = 200
TRUTH = np.arange(ROWS) % 2
PREDICTED = np.where(np.arange(ROWS) % 10 == 0, 1 - TRUTH, TRUTH)
"""Nine of ten predictions are right."""


def chances(predicted: np.ndarray, classes: Sequence[str], dtype: type = np.float64) -> VersionSample:
    """Return a version with probabilities."""
    count = len(classes)
    matrix = (np.eye(count)[predicted] * 0.8 + 0.2 / count).astype(dtype)
    return VersionSample(OutputKind.PROBABILITIES, [pa.array(column) for column in matrix.T], classes)


def plain(predicted: Any) -> VersionSample:
    """Return a version without metadata."""
    return VersionSample(OutputKind.VALUE, [pa.array(predicted)])


def results(
    rules: str, labels: Any, new: VersionSample, old: VersionSample | None = None
) -> list[RuleResult]:
    return judge(parse_rules(rules), Sample(pa.array(labels), {}, new, old), 0.95)


def value(rule: str, labels: Any, new: VersionSample, old: VersionSample | None = None) -> float | None:
    return results(rule, labels, new, old)[0].value


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (TRUTH, ["a", "b"]),
        (TRUTH.astype(float), ["a", "b"]),
        (TRUTH.astype(bool), ["a", "b"]),
        (TRUTH.astype(bool), ["0", "1"]),
        (TRUTH, ["False", "True"]),
        (TRUTH + 1, ["1", "2"]),
        (TRUTH + 1.0, ["1", "2"]),
        (TRUTH + 1, ["1.0", "2.0"]),
        ([f"{label + 1}.0" for label in TRUTH], ["1", "2"]),
        (TRUTH, ["1", "2"]),
        (TRUTH / 2, ["0.0", "0.5"]),
    ],
)
def test_labels_of_any_encoding_are_recognized(labels: Any, classes: Sequence[str]) -> None:
    assert value("accuracy >= 0", labels, chances(PREDICTED, classes)) == pytest.approx(0.9)


@pytest.mark.parametrize("labels", [TRUTH, TRUTH.astype(bool), TRUTH.astype(float)])
@pytest.mark.parametrize("predicted", [PREDICTED, PREDICTED.astype(bool), PREDICTED.astype(float)])
def test_values_of_any_type_are_compared_as_numbers(labels: np.ndarray, predicted: np.ndarray) -> None:
    accuracy, f1 = results("accuracy >= 0; f1 >= 0", labels, plain(predicted))
    assert accuracy.value == pytest.approx(0.9)
    assert f1.value == pytest.approx(metrics.f1_score(TRUTH, PREDICTED))


@pytest.mark.parametrize("unknown", [2, 9])
def test_only_the_row_with_an_unknown_index_is_wrong(unknown: int) -> None:
    labels = np.where(np.arange(ROWS) == 1, unknown, TRUTH)
    assert value("accuracy >= 0", labels, chances(TRUTH, ["a", "b"])) == pytest.approx(1 - 1 / ROWS)


def test_names_and_indices_may_be_mixed() -> None:
    labels = ["a", "1"] * (ROWS // 2)
    assert value("accuracy >= 0", labels, chances(TRUTH, ["a", "b"])) == 1


@pytest.mark.parametrize("new", [chances(TRUTH, ["a", "b"]), plain(["a", "b"] * (ROWS // 2))])
def test_labels_that_are_no_classes_are_no_evidence(new: VersionSample) -> None:
    (result,) = results("accuracy >= 0.5", ["no", "yes"] * (ROWS // 2), new)
    assert result.decision is Decision.UNDECIDED
    assert "the labels (no, yes) are none of the " in result.sentence
    assert "(a, b)" in result.sentence


def test_unknown_label_does_not_change_the_meaning_of_scores() -> None:
    """Test a typing error in one of the labels of a classifier of two classes."""
    names = np.array(["a", "b"], object)[TRUTH]
    rules = "precision >= 0; recall >= 0; f1 >= 0; brier_score <= 1; roc_auc >= 0"
    right = [result.value for result in results(rules, names, chances(PREDICTED, ["a", "b"]))]
    names[3] = "B"
    wrong = [result.value for result in results(rules, names, chances(PREDICTED, ["a", "b"]))]
    assert wrong == pytest.approx(right, abs=0.02)
    assert wrong[0] == pytest.approx(
        metrics.precision_score(np.where(np.arange(ROWS) == 3, 0, TRUTH), PREDICTED)
    )


def test_positive_class_of_numbers_is_the_greater_one() -> None:
    precision = metrics.precision_score(TRUTH, PREDICTED)
    assert value("precision >= 0", TRUTH + 9, plain(PREDICTED + 9)) == pytest.approx(precision)


@pytest.mark.parametrize(
    "champion",
    [
        chances(TRUTH, ["0", "1"]),
        chances(TRUTH, ["x", "y"]),
        chances(1 - TRUTH, ["b", "a"]),
        plain(TRUTH),
        plain(TRUTH.astype(bool)),
    ],
    ids=["numbers", "other names", "other order", "integers", "truth values"],
)
def test_champion_is_compared_by_its_own_classes(champion: VersionSample) -> None:
    worse = np.where(np.arange(ROWS) % 2, TRUTH, 1 - TRUTH)
    rules = "accuracy >= champion - 0.05; recall[b] >= champion - 0.05"
    for result in results(rules, TRUTH, chances(worse, ["a", "b"]), champion):
        assert result.champion == 1
    assert results(rules, TRUTH, chances(worse, ["a", "b"]), champion)[0].decision is Decision.FAILS


@pytest.mark.parametrize(
    "champion", [chances(TRUTH, ["x", "y"]), plain(["x", "y"] * (ROWS // 2)), plain(TRUTH)]
)
def test_champion_with_other_classes_than_the_labels_is_no_evidence(champion: VersionSample) -> None:
    labels = ["a", "b"] * (ROWS // 2)
    (result,) = results("accuracy >= champion - 0.05", labels, chances(1 - TRUTH, ["a", "b"]), champion)
    assert result.decision is Decision.UNDECIDED
    assert "the champion's predictions cannot be compared: the labels (a, b) are none of" in result.sentence


def test_champion_with_one_more_class_is_right_about_it() -> None:
    labels = np.array(["a", "b", "c", "a"])[np.arange(ROWS) % 4]
    known = np.arange(ROWS) % 4 % 3
    new, old = chances(np.minimum(known, 1), ["a", "b"]), chances(known, ["a", "b", "c"])
    accuracy, loss = results("accuracy >= champion; log_loss <= champion", labels, new, old)
    assert (accuracy.value, accuracy.champion) == (0.75, 1)
    assert loss.champion == pytest.approx(-np.log(0.8 + 0.2 / 3))


def test_confusion_counts_unknown_labels() -> None:
    names = np.array(["a", "b"], object)[TRUTH]
    names[3] = "B"
    classes, counts = confusion(Sample(pa.array(names), {}, chances(TRUTH, ["a", "b"]))) or ([], [])
    assert classes == ["a", "b", "B (unknown)"]
    assert counts == [[100, 0, 0], [0, 99, 0], [0, 1, 0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_loss_of_certain_errors_depends_on_the_precision(dtype: type) -> None:
    matrix: np.ndarray = np.eye(2)[PREDICTED].astype(dtype)
    new = VersionSample(OutputKind.PROBABILITIES, [pa.array(column) for column in matrix.T], ["a", "b"])
    expected = metrics.log_loss(TRUTH, matrix)
    assert value("log_loss <= 100", TRUTH, new) == pytest.approx(expected, rel=1e-6)
