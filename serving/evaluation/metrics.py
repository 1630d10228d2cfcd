"""Metrics of labelled rows as sums over rows, so that values and bounds need one pass over the rows.

The values equal those of the functions of scikit-learn with the same name; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from serving.evaluation import probability_metrics, unseen
from serving.evaluation.intervals import Floats, Indices
from serving.evaluation.outcomes import Mask, NotComputable, Outcomes, Statistic, Terms, mean_of, of_columns
from serving.evaluation.rules import RANGES

MAX_CLASSES = 1000
"""Means over more classes are not computed: their bounds would take minutes and gigabytes."""


def terms(metric: str, label: str | None, outcomes: Outcomes) -> Terms:
    """Return a metric as a function of sums over rows.

    Raises:
        NotComputable: the metric does not fit the predictions, or a class does not exist.
        NoEvidence: the rows do not define it.
    """
    if metric in _REGRESSION:
        return _REGRESSION[metric](_numbers(outcomes))
    if metric not in _CLASSIFICATION:
        raise NotComputable(f"{metric} is not computed from rows")
    if not outcomes.is_classification:
        raise NotComputable(f"{metric} needs a classifier, but the model predicts numbers")
    scored = outcomes.classes[: len(outcomes.scored)]
    if label is not None and label not in scored:
        raise NotComputable(f"there is no class {label}; the classes are {', '.join(scored[:20])}")
    return _CLASSIFICATION[metric](outcomes, label)


@dataclass(frozen=True)
class Rate:
    """A metric that is a function of the rate of one kind of rows.

    Args:
        counted: the rows that count.
        correct: those that succeed.
        link: the metric of the rate; it increases.
        is_paired: whether the same rows count for each version.
    """

    counted: Mask
    correct: Mask
    link: Statistic
    is_paired: bool


def rate(metric: str, label: str | None, outcomes: Outcomes) -> Rate | None:
    """Return which rows count for a metric and which succeed; None for other metrics."""
    if metric == "accuracy":
        return Rate(np.ones(len(outcomes), bool), outcomes.correct, _identity, is_paired=True)
    index = outcomes.index(label)
    if metric not in ("precision", "recall", "f1") or index is None:
        return None
    actual, predicted = outcomes.labels == index, outcomes.predicted == index
    counted = {"recall": actual, "precision": predicted, "f1": actual | predicted}[metric]
    return Rate(counted, outcomes.correct & counted, _SCORES[metric].link, is_paired=metric == "recall")


def limits(metric: str, outcomes: Outcomes) -> tuple[float, float]:
    """Return the lowest and the highest value that a metric can have."""
    if metric == "brier_score" and outcomes.is_binary:
        return 0.0, 1.0
    return RANGES[metric]


# -- regression


@dataclass(frozen=True)
class _Numbers:
    truth: Floats
    predicted: Floats


def _numbers(outcomes: Outcomes) -> _Numbers:
    if outcomes.is_classification:
        raise NotComputable("the metric needs numbers, but the model predicts classes")
    return _Numbers(outcomes.labels.astype(np.float64), outcomes.predicted.astype(np.float64))


def _rmse(numbers: _Numbers) -> Terms:
    mean = mean_of((numbers.truth - numbers.predicted) ** 2)
    return Terms(mean.sums, lambda sums: np.sqrt(mean.statistic(sums)), mean.margins, mean.rows)


def _r2(numbers: _Numbers) -> Terms:
    shifted = numbers.truth - numbers.truth.mean()  # for precision; it does not change the value
    columns = [np.ones(len(shifted)), shifted, shifted**2, (numbers.truth - numbers.predicted) ** 2]
    return of_columns(
        lambda: iter(columns), lambda s: 1 - s[:, 3] / (s[:, 2] - s[:, 1] ** 2 / s[:, 0]), len(shifted)
    )


_REGRESSION: Mapping[str, Callable[[_Numbers], Terms]] = {
    "mae": lambda numbers: mean_of(np.abs(numbers.truth - numbers.predicted)),
    "mse": lambda numbers: mean_of((numbers.truth - numbers.predicted) ** 2),
    "rmse": _rmse,
    "r2": _r2,
}


REGRESSION_METRICS = frozenset(_REGRESSION)


# -- classification


def _accuracy(outcomes: Outcomes, label: str | None) -> Terms:
    correct = outcomes.correct.astype(np.float64)
    margins = partial(unseen.of_rates, np.array([correct.mean()]), np.array([len(correct)]))
    return mean_of(correct, margins)


def _identity(rates: Floats) -> Floats:
    return rates


@dataclass(frozen=True)
class _Score:
    """A score of a class: a function of the rate of true positives among some rows.

    Args:
        trials: returns the number of these rows from the true positives, predicted and actual rows.
        link: the score of the rate.
        only_actual: whether the mean is over the classes of the labels only, also if there are two.
    """

    trials: Callable[[Floats, Floats, Floats], Floats]
    link: Statistic = _identity
    only_actual: bool = False


_SCORES = {
    "balanced_accuracy": _Score(lambda hits, predicted, actual: actual, only_actual=True),
    "precision": _Score(lambda hits, predicted, actual: predicted),
    "recall": _Score(lambda hits, predicted, actual: actual),
    "f1": _Score(lambda hits, predicted, actual: predicted + actual - hits, lambda r: 2 * r / (1 + r)),
}


def _per_class(score: _Score, outcomes: Outcomes, label: str | None) -> Terms:
    """Return the score of one class; of two classes the positive one's; else the mean over the classes."""
    index = None if score.only_actual else outcomes.index(label)
    classes = outcomes.scored if index is None else range(index, index + 1)
    if len(classes) > MAX_CLASSES:
        raise NotComputable(f"the mean over more than {MAX_CLASSES:,} classes is not computed")

    def rates(sums: Floats) -> tuple[Floats, Floats, Floats]:
        """Return by class the rate, the number of its rows, and the weight of the class in the mean."""
        hits, predicted, actual = sums.reshape(-1, 3, len(classes)).swapaxes(0, 1)
        trials = score.trials(hits, predicted, actual)
        seen = (actual if score.only_actual else predicted + actual) > 0
        fallback = np.nan if index is not None else 0.0
        weights = np.where(seen, 1 / np.maximum(seen.sum(axis=1, keepdims=True), 1), fallback)
        return _ratio(hits, trials), trials, weights

    def statistic(sums: Floats) -> Floats:
        values, _, weights = rates(sums)
        mean: Floats = (weights * score.link(values)).sum(axis=1)
        return mean

    def margins(alpha: float) -> unseen.Margins:
        values, trials, weights = (part[0] for part in rates(counts(np.zeros(len(outcomes), np.intp), 1)))
        return unseen.of_rates(values, trials, alpha, link=score.link, weights=np.nan_to_num(weights))

    counts = partial(_counts, outcomes, classes)
    return Terms(counts, statistic, margins, len(outcomes))


def _counts(outcomes: Outcomes, classes: range, groups: Indices, count: int) -> Floats:
    """Return by group and class the true positives, predicted and actual rows; shape (count, 3 · classes)."""
    parts = []
    for codes, rows in (
        (outcomes.labels, outcomes.correct),
        (outcomes.predicted, True),
        (outcomes.labels, True),
    ):
        counted = rows & (codes >= classes.start) & (codes < classes.stop)
        cells = groups[counted] * len(classes) + (codes[counted] - classes.start)
        parts.append(np.bincount(cells, minlength=count * len(classes)).reshape(count, len(classes)))
    return np.concatenate(parts, axis=1).astype(np.float64)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """Return a ratio, 0 where the divisor is 0, as scikit-learn does."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


_CLASSIFICATION: dict[str, Callable[[Outcomes, str | None], Terms]] = {"accuracy": _accuracy}
_CLASSIFICATION |= {name: partial(_per_class, score) for name, score in _SCORES.items()}
_CLASSIFICATION |= probability_metrics.METRICS
