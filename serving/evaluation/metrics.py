"""Metrics of labelled rows as column sums, so that values and bootstrap bounds need one pass over the rows.

The values equal those of the functions of scikit-learn with the same name; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from serving.errors import ServingError
from serving.evaluation.intervals import Floats

Statistic: TypeAlias = Callable[[Floats], Floats]
"""Maps column sums of shape (n, terms) to values of shape (n,)."""
CALIBRATION_BINS = 10
_EPSILON = float(np.finfo(np.float64).eps)


class NotComputable(ServingError):
    """A metric cannot be computed from these rows and predictions."""


@dataclass(frozen=True)
class Outcomes:
    """Labels and one version's predictions of the same rows.

    Args:
        labels: the true values, shape (rows,): class names for a classifier, numbers for a regressor.
        predicted: the predicted values of the same form.
        classes: the class names in the order of the columns of `probabilities`; empty for a regressor.
        probabilities: shape (rows, classes); None if the model returns none.
    """

    labels: npt.NDArray[Any]
    predicted: npt.NDArray[Any]
    classes: Sequence[str] = ()
    probabilities: Floats | None = None

    @property
    def is_classification(self) -> bool:
        """Check whether the predictions are classes."""
        return bool(self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: npt.NDArray[np.bool_]) -> Outcomes:
        """Return the outcomes of some rows."""
        probabilities = None if self.probabilities is None else self.probabilities[mask]
        return Outcomes(self.labels[mask], self.predicted[mask], self.classes, probabilities)


def terms(metric: str, label: str | None, outcomes: Outcomes) -> tuple[Floats, Statistic]:
    """Return the additive terms of a metric, of shape (rows, terms), and the function of their sums.

    Raises:
        NotComputable: the metric does not fit the predictions, or a class does not exist.
    """
    if metric in _REGRESSION:
        return _REGRESSION[metric](_numbers(outcomes))
    if metric not in _CLASSIFICATION:
        raise NotComputable(f"{metric} is not computed from rows")
    if not outcomes.is_classification:
        raise NotComputable(f"{metric} needs a classifier, but the model predicts numbers")
    if label is not None and label not in outcomes.classes:
        raise NotComputable(f"there is no class {label}; the classes are {', '.join(outcomes.classes[:20])}")
    return _CLASSIFICATION[metric](outcomes, label)


def is_success(
    metric: str, label: str | None, outcomes: Outcomes
) -> tuple[npt.NDArray[np.bool_], ...] | None:
    """Return for a rate of rows which rows count and which succeed; None for other metrics."""
    correct = outcomes.labels == outcomes.predicted
    if metric == "accuracy":
        return np.ones(len(outcomes), bool), correct
    if metric == "recall" and (label := label or _positive(outcomes)) is not None:
        return outcomes.labels == label, correct
    return None


def support(outcomes: Outcomes, metric: str, label: str | None) -> int:
    """Return the number of rows of the rarest class of a score that is a mean of rates; 0 for others."""
    if metric not in ("precision", "recall", "f1", "balanced_accuracy"):
        return 0
    label = label or _positive(outcomes)
    counts = [int((outcomes.labels == name).sum()) for name in ([label] if label else outcomes.classes)]
    return min([count for count in counts if count], default=1)


# -- regression


@dataclass(frozen=True)
class _Numbers:
    truth: Floats
    predicted: Floats


def _numbers(outcomes: Outcomes) -> _Numbers:
    if outcomes.is_classification:
        raise NotComputable("the metric needs numbers, but the model predicts classes")
    return _Numbers(outcomes.labels.astype(np.float64), outcomes.predicted.astype(np.float64))


def _mean_of(values: Floats) -> tuple[Floats, Statistic]:
    return np.column_stack([values, np.ones(len(values))]), lambda sums: sums[:, 0] / sums[:, 1]


def _rmse(numbers: _Numbers) -> tuple[Floats, Statistic]:
    sums, mean = _mean_of((numbers.truth - numbers.predicted) ** 2)
    return sums, lambda totals: np.sqrt(mean(totals))


def _r2(numbers: _Numbers) -> tuple[Floats, Statistic]:
    shifted = numbers.truth - numbers.truth.mean()  # for precision; it does not change the value
    columns = [np.ones(len(shifted)), shifted, shifted**2, (numbers.truth - numbers.predicted) ** 2]
    return np.column_stack(columns), lambda s: 1 - s[:, 3] / (s[:, 2] - s[:, 1] ** 2 / s[:, 0])


_REGRESSION: Mapping[str, Callable[[_Numbers], tuple[Floats, Statistic]]] = {
    "mae": lambda numbers: _mean_of(np.abs(numbers.truth - numbers.predicted)),
    "mse": lambda numbers: _mean_of((numbers.truth - numbers.predicted) ** 2),
    "rmse": _rmse,
    "r2": _r2,
}


REGRESSION_METRICS = frozenset(_REGRESSION)


# -- classification


def _positive(outcomes: Outcomes) -> str | None:
    """Return the positive class of two, which is the second; None for more classes."""
    return outcomes.classes[1] if len(outcomes.classes) == 2 else None


def _accuracy(outcomes: Outcomes, label: str | None) -> tuple[Floats, Statistic]:
    return _mean_of((outcomes.labels == outcomes.predicted).astype(np.float64))


def _counts(outcomes: Outcomes, classes: Sequence[str]) -> Floats:
    """Return per class the terms of true positives, predicted and actual rows; shape (rows, 3 · classes)."""
    columns = []
    for name in classes:
        actual, predicted = outcomes.labels == name, outcomes.predicted == name
        columns += [actual & predicted, predicted, actual]
    return np.column_stack(columns).astype(np.float64)


def _per_class(
    score: Statistic, outcomes: Outcomes, label: str | None, *, only_actual: bool = False
) -> tuple[Floats, Statistic]:
    """Return the score of one class; of two classes the positive one's; else the mean over the classes."""
    label = label if label is not None or only_actual else _positive(outcomes)
    classes = [label] if label is not None else list(outcomes.classes)

    def statistic(sums: Floats) -> Floats:
        scores = np.stack([score(sums[:, 3 * i : 3 * i + 3]) for i in range(len(classes))])
        seen = np.stack([sums[:, 3 * i + 1] + sums[:, 3 * i + 2] > 0 for i in range(len(classes))])
        if only_actual:
            seen = np.stack([sums[:, 3 * i + 2] > 0 for i in range(len(classes))])
        if label is not None:
            return np.where(seen[0], scores[0], np.nan)
        mean: Floats = np.where(seen, scores, 0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
        return mean

    return _counts(outcomes, classes), statistic


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """Return a ratio, 0 where the divisor is 0, as scikit-learn does."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


def _need_probabilities(outcomes: Outcomes, metric: str) -> Floats:
    if outcomes.probabilities is None:
        raise NotComputable(f"{metric} needs probabilities, which the model does not return")
    return outcomes.probabilities


def _indicators(outcomes: Outcomes) -> Floats:
    return np.column_stack([outcomes.labels == name for name in outcomes.classes]).astype(np.float64)


def _log_loss(outcomes: Outcomes, label: str | None) -> tuple[Floats, Statistic]:
    probabilities = np.clip(_need_probabilities(outcomes, "log_loss"), _EPSILON, 1 - _EPSILON)
    return _mean_of(-(np.log(probabilities) * _indicators(outcomes)).sum(axis=1))


def _brier(outcomes: Outcomes, label: str | None) -> tuple[Floats, Statistic]:
    distances = (_need_probabilities(outcomes, "brier_score") - _indicators(outcomes)) ** 2
    return _mean_of(distances[:, 1] if len(outcomes.classes) == 2 else distances.sum(axis=1))


def _calibration(outcomes: Outcomes, label: str | None) -> tuple[Floats, Statistic]:
    """Return the expected calibration error of the predicted class, in bins of equal width."""
    confidence = _need_probabilities(outcomes, "calibration_error").max(axis=1)
    correct = (outcomes.labels == outcomes.predicted).astype(np.float64)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.intp), CALIBRATION_BINS - 1)
    columns = np.zeros((len(outcomes), CALIBRATION_BINS + 1))
    columns[np.arange(len(outcomes)), bins] = confidence - correct
    columns[:, -1] = 1
    return columns, lambda sums: np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1]


def _roc_auc(outcomes: Outcomes, label: str | None) -> tuple[Floats, Statistic]:
    """Return the terms of the area under the ROC curve, linear in the rows (DeLong's components).

    For more than two classes it is the mean over the classes, each against the others.
    """
    probabilities = _need_probabilities(outcomes, "roc_auc")
    two = len(outcomes.classes) == 2
    chosen = [1] if two else range(len(outcomes.classes))
    columns, areas = [], []
    for index in chosen:
        positive = outcomes.labels == outcomes.classes[index]
        if not positive.any() or positive.all():
            raise NotComputable(f"roc_auc needs rows of {outcomes.classes[index]} and rows of other classes")
        component, area = _placements(probabilities[:, index], positive)
        columns += [positive * component, positive, ~positive * component, ~positive]
        areas.append(area)

    def statistic(sums: Floats) -> Floats:
        values = [
            sums[:, 4 * i] / sums[:, 4 * i + 1] + sums[:, 4 * i + 2] / sums[:, 4 * i + 3] - area
            for i, area in enumerate(areas)
        ]
        mean: Floats = np.mean(values, axis=0)
        return mean

    return np.column_stack(columns).astype(np.float64), statistic


def _placements(scores: Floats, positive: npt.NDArray[np.bool_]) -> tuple[Floats, float]:
    """Return per row the share of rows of the other class that it is ordered rightly with, and the mean."""
    ranks = _ranks(scores)
    component = np.empty(len(scores))
    count, rest = int(positive.sum()), int((~positive).sum())
    component[positive] = (ranks[positive] - _ranks(scores[positive])) / rest
    component[~positive] = 1 - (ranks[~positive] - _ranks(scores[~positive])) / count
    return component, float(component[positive].mean())


def _ranks(scores: Floats) -> Floats:
    """Return the ranks from 1; equal scores have their mean rank. `scipy.stats` takes a second to import."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts - 1) / 2)[inverse]
    return ranks


_CLASSIFICATION: Mapping[str, Callable[[Outcomes, str | None], tuple[Floats, Statistic]]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": partial(_per_class, lambda s: _ratio(s[:, 0], s[:, 2]), only_actual=True),
    "precision": partial(_per_class, lambda s: _ratio(s[:, 0], s[:, 1])),
    "recall": partial(_per_class, lambda s: _ratio(s[:, 0], s[:, 2])),
    "f1": partial(_per_class, lambda s: _ratio(2 * s[:, 0], s[:, 1] + s[:, 2])),
    "log_loss": _log_loss,
    "brier_score": _brier,
    "calibration_error": _calibration,
    "roc_auc": _roc_auc,
}
