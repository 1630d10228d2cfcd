"""Confidence bounds of metrics: they seldom accept a worse version, and accept a good one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from serving.evaluation.rules import parse_rules
from serving.evaluation.samples import OutputKind, Sample, VersionSample
from serving.evaluation.verdict import Decision, RuleResult, judge

LEVEL, TRIALS = 0.95, 200
MAX_WRONG = 0.05 + 1.645 * np.sqrt(0.05 * 0.95 / TRIALS)
"""The nominal share of wrong acceptances, and the error of the simulation."""
Integers = npt.NDArray[np.intp]
Make = Callable[[np.random.Generator], Sample]


def soft(predicted: Integers, classes: int = 2) -> npt.NDArray[np.float64]:
    """Return probabilities with these predicted classes, which are never certain."""
    return np.eye(classes)[predicted] * 0.8 + 0.2 / classes


def version(matrix: npt.NDArray[np.float64]) -> VersionSample:
    """Return a version with these probabilities of the classes a, b, c and so on."""
    names = "abcdefgh"[: matrix.shape[1]]
    return VersionSample(OutputKind.PROBABILITIES, [pa.array(column) for column in matrix.T], [*names])


def sample(
    labels: Integers, new: npt.NDArray[np.float64], old: npt.NDArray[np.float64] | None = None
) -> Sample:
    return Sample(pa.array(labels), {}, version(new), None if old is None else version(old))


def results(rules: str, of: Sample) -> list[RuleResult]:
    return judge(parse_rules(rules), of, LEVEL)


def holds(rule: str, of: Sample) -> bool:
    return results(rule, of)[0].decision is Decision.HOLDS


def share_accepted(rule: str, make: Make) -> float:
    """Return the share of seeded samples on which a rule holds."""
    random = np.random.default_rng(20)
    return sum(holds(rule, make(random)) for _ in range(TRIALS)) / TRIALS


def imprecise(random: np.random.Generator) -> Sample:
    """Return a version with a precision of 0.8 that predicts the class b for 5 of 1,000 rows."""
    predicted = np.arange(1000) < 5
    labels = np.where(predicted, random.random(1000) < 0.8, random.random(1000) < 0.5)
    return sample(labels.astype(int), soft(predicted.astype(int)))


def unbalanced(random: np.random.Generator) -> Sample:
    """Return a version with a recall of 0.995 for 1,000 rows, and of 0.7 for 4 rows."""
    labels = (np.arange(1004) >= 1000).astype(int)
    right = random.random(1004) < np.where(labels, 0.7, 0.995)
    return sample(labels, soft(np.where(right, labels, 1 - labels)))


def ranked(
    random: np.random.Generator, positives: int = 3, rows: int = 100, distance: float = 1.8124
) -> Sample:
    """Return a version with an area under the ROC curve of 0.9."""
    labels = (np.arange(rows) < positives).astype(int)
    chance = 1 / (1 + np.exp(-random.normal(size=rows) - 1.8124 * labels))
    return sample(labels, np.column_stack([1 - chance, chance]))


def worse_than_a_perfect_champion(random: np.random.Generator) -> Sample:
    labels = random.integers(0, 2, 60)
    new = np.where(random.random(60) < 0.99, labels, 1 - labels)
    return sample(labels, soft(new), soft(labels))


def certain(random: np.random.Generator) -> Sample:
    """Return a version that is wrong in 3 % of the rows, and always certain."""
    labels = random.integers(0, 2, 60)
    return sample(labels, np.eye(2)[np.where(random.random(60) < 0.97, labels, 1 - labels)])


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        ("accuracy >= 0.999 * champion", worse_than_a_perfect_champion),
        ("precision >= 0.95", imprecise),
        ("balanced_accuracy >= 0.95", unbalanced),
        ("roc_auc >= 0.95", ranked),
        ("log_loss <= 0.1", certain),
        ("brier_score <= 0.01", certain),
    ],
)
def test_worse_versions_are_seldom_accepted(rule: str, make: Make) -> None:
    assert share_accepted(rule, make) <= MAX_WRONG


def test_few_rows_of_a_class_are_no_proof() -> None:
    random = np.random.default_rng(0)
    separated = (np.arange(50) < 2).astype(int)
    chance = np.where(separated, 0.9, 0.1) + random.uniform(-0.05, 0.05, 50)
    rare = np.repeat([0, 1, 2], [500, 500, 3])
    few = (np.arange(1000) < 4).astype(int)
    minority = (np.arange(1004) < 4).astype(int)
    almost = np.where(np.arange(1004) >= 999, 1, minority)
    of = {
        "roc_auc >= 0.99": sample(separated, np.column_stack([1 - chance, chance])),
        "precision[b] >= 0.95": sample((np.arange(1000) < 500).astype(int), soft(few)),
        "balanced_accuracy >= 0.95": sample(minority, soft(almost)),
        "recall >= 0.95": sample(rare, soft(rare, 3)),
        "f1 >= 0.9": sample(rare, soft(rare, 3)),
    }
    assert {rule: results(rule, rows)[0].decision for rule, rows in of.items()} == dict.fromkeys(
        of, Decision.UNDECIDED
    )


def test_few_rows_without_error_are_no_proof() -> None:
    labels = np.arange(50) % 2
    of = sample(labels, np.eye(2)[labels], np.eye(2)[labels])
    rules = (
        "log_loss <= 0.01; brier_score <= 0.001; calibration_error <= 0.001; accuracy >= 0.9999 * champion; "
        "roc_auc >= 0.999; f1 >= 0.999 * champion; precision >= champion - 0.01"
    )
    assert {result.rule: result.decision for result in results(rules, of)} == {
        rule.text: Decision.UNDECIDED for rule in parse_rules(rules)
    }


def test_precision_has_the_exact_bounds_of_the_predicted_rows() -> None:
    labels, few = (np.arange(1000) < 500).astype(int), (np.arange(1000) < 4).astype(int)
    (result,) = results("precision[b] >= 0.95", sample(labels, soft(few)))
    assert result.low == pytest.approx(0.05 ** (1 / 4))
    assert result.high == 1


@pytest.mark.parametrize("classes", [2, 4])
def test_bounds_stay_within_the_range_of_the_metric(classes: int) -> None:
    labels = np.arange(60) % classes
    rules = "balanced_accuracy >= 0; roc_auc >= 0; log_loss <= 99; brier_score <= 2; calibration_error <= 1"
    for matrix in (np.eye(classes)[labels], np.eye(classes)[labels - 1]):
        for result in results(rules, sample(labels, matrix)):
            highest = {"log_loss <= 99": np.inf, "brier_score <= 2": 1 if classes == 2 else 2}
            assert result.low is not None
            assert result.high is not None
            assert 0 <= result.low <= result.high <= highest.get(result.rule, 1)


def pair(random: np.random.Generator) -> Sample:
    """Return two versions on 5,000 rows that are right in 90 % of them, and differ in about 1 %."""
    labels = random.integers(0, 2, 5000)
    right = random.random(5000) < 0.9
    changed = random.random(5000) < np.where(right, 0.005, 0.045)
    old, new = (np.where(each, labels, 1 - labels) for each in (right, right ^ changed))
    return sample(labels, soft(new), soft(old))


@pytest.mark.parametrize(
    "rule",
    [
        "accuracy >= 0.99 * champion",
        "precision >= champion - 0.015",
        "recall >= champion - 0.015",
        "f1 >= champion - 0.01",
        "balanced_accuracy >= champion - 0.01",
        "roc_auc >= champion - 0.015",
        "log_loss <= champion + 0.03",
        "brier_score <= champion + 0.02",
    ],
)
def test_equal_versions_meet_a_margin(rule: str) -> None:
    random = np.random.default_rng(21)
    assert sum(holds(rule, pair(random)) for _ in range(20)) >= 19


def test_good_versions_meet_rules_on_thousands_of_rows() -> None:
    random = np.random.default_rng(22)
    labels = random.integers(0, 3, 3000)
    new = np.where(random.random(3000) < 0.9, labels, (labels + 1) % 3)
    rules = (
        "accuracy >= 0.88; balanced_accuracy >= 0.88; precision >= 0.88; recall >= 0.88; f1 >= 0.88; "
        "precision[b] >= 0.87; f1[b] >= 0.87; log_loss <= 0.5; brier_score <= 0.3; calibration_error <= 0.1"
    )
    assert [
        result.sentence
        for result in results(rules, sample(labels, soft(new, 3)))
        if result.decision is not Decision.HOLDS
    ] == []
    assert holds("roc_auc >= 0.88", ranked(random, 1000, 4000))
