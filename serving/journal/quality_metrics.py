"""Compute the quality of predictions with known outcomes, with scikit-learn.

A metric that the rows do not define is absent: metrics of probabilities without probabilities, or with one
outside 0 to 1; the ROC AUC without rows of each class, or with probabilities that do not add up to 1; R² of
equal outcomes.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from serving import calibration
from serving.journal.outcome_rows import ClassRows, Floats, NumberRows, OutcomeRows, Pair

MAX_CLASSES = 20
MAX_SLICES_PER_COLUMN = 10
MIN_SLICE_ROWS = 10
"""A slice with fewer rows is not shown: its metrics would be noise."""
_MAX_ROUNDING = 1e-5
"""Probabilities outside 0 to 1 by at most this are rounding errors, such as those of float32."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The value of a metric, of all rows, of one class, or of the rows of a slice such as `region=north`."""

    metric: str
    value: float
    label: str = ""
    where: str = ""


def measure(rows: OutcomeRows, slices: Mapping[str, Sequence[str]] | None = None) -> list[Measured]:
    """Return the metrics of all rows, of each class, and of each slice.

    Args:
        rows: the predictions and their outcomes.
        slices: by input column, the value of each row.
    """
    if not len(rows):
        return []
    if isinstance(rows, ClassRows):
        rows = replace(rows, probabilities=_valid(rows.probabilities))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes without rows, and on probabilities rounded to a sum of 1
        measured = [Measured(name, value) for name, value in _overall(rows).items()]
        if isinstance(rows, ClassRows):
            measured += _by_class(rows)
        for where, part in _slices(rows, slices or {}):
            measured += [Measured(name, value, where=where) for name, value in _overall(part).items()]
    return [each for each in measured if np.isfinite(each.value)]


def _valid(probabilities: Floats | None) -> Floats | None:
    """Return probabilities without rounding errors; None if one is no probability."""
    if probabilities is None:
        return None
    clipped: Floats = np.clip(probabilities, 0, 1)
    is_close = np.abs(clipped - probabilities) <= _MAX_ROUNDING  # False for values that are missing
    return clipped if is_close.all() else None


def slices_of(columns: Sequence[str], pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """Return the values of columns by row."""
    return {column: [pair.slices[index] for pair in pairs] for index, column in enumerate(columns)}


def _slices(rows: OutcomeRows, slices: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, OutcomeRows]]:
    """Yield the most frequent slices of each column; rows without a value belong to none."""
    for column, values in slices.items():
        array = np.array(values, dtype=object)
        for value, count in Counter(filter(None, values)).most_common(MAX_SLICES_PER_COLUMN):
            if count >= MIN_SLICE_ROWS:
                yield f"{column}={value}", rows.where(array == value)


def _overall(rows: OutcomeRows) -> dict[str, float]:
    metrics = _of_numbers(rows) if isinstance(rows, NumberRows) else _of_classes(rows)
    return {"rows": float(len(rows))} | {name: float(value) for name, value in metrics.items()}


def _of_numbers(rows: NumberRows) -> dict[str, Any]:
    from sklearn import metrics

    values = {
        "mae": metrics.mean_absolute_error(rows.actual, rows.predicted),
        "rmse": metrics.root_mean_squared_error(rows.actual, rows.predicted),
    }
    if np.ptp(rows.actual) > 0:
        values["r2"] = metrics.r2_score(rows.actual, rows.predicted)
    return values


def _of_classes(rows: ClassRows) -> dict[str, Any]:
    """Return the metrics of all classes: of two, the second is the positive one; else the macro average."""
    from sklearn import metrics

    average = "binary" if len(rows.classes) == 2 else "macro"
    scores = metrics.precision_recall_fscore_support(
        rows.actual, rows.predicted, average=average, zero_division=0
    )
    values = {"accuracy": metrics.accuracy_score(rows.actual, rows.predicted)}
    values |= dict(zip(("precision", "recall", "f1"), scores[:3], strict=True))
    if rows.probabilities is not None:
        values |= _of_probabilities(rows, rows.probabilities)
    return values


def _of_probabilities(rows: ClassRows, probabilities: Floats) -> dict[str, Any]:
    from sklearn import metrics

    labels, is_binary = np.arange(len(rows.classes)), len(rows.classes) == 2
    scores = probabilities[:, 1] if is_binary else probabilities
    values: dict[str, Any] = {"calibration_error": calibration_error(rows, probabilities)}
    if len(rows.classes) > 1:
        values["log_loss"] = metrics.log_loss(rows.actual, probabilities, labels=labels)
        values["brier_score"] = metrics.brier_score_loss(rows.actual, scores, labels=labels)
        if len(np.unique(rows.actual)) == len(rows.classes) and np.allclose(probabilities.sum(axis=1), 1):
            values["roc_auc"] = metrics.roc_auc_score(rows.actual, scores, multi_class="ovr", labels=labels)
    return values


def calibration_error(rows: ClassRows, probabilities: Floats) -> float:
    """Return the expected calibration error of the predicted class."""
    confidence = probabilities[np.arange(len(rows)), rows.predicted]
    gaps = confidence - (rows.actual == rows.predicted)
    by_bin = np.bincount(calibration.bins(confidence), gaps, calibration.BINS).astype(np.float64)
    return float(calibration.calibration_error(by_bin, len(rows)))


def _by_class(rows: ClassRows) -> Iterator[Measured]:
    """Yield the metrics of each class against the others, for the classes with the most outcomes."""
    from sklearn import metrics

    counts = np.bincount(rows.actual, minlength=len(rows.classes))
    shown = [int(index) for index in np.argsort(-counts, kind="stable")[:MAX_CLASSES]]
    scores = metrics.precision_recall_fscore_support(
        rows.actual, rows.predicted, labels=shown, average=None, zero_division=0
    )
    for position, index in enumerate(shown):
        name = rows.classes[index]
        yield Measured("rows", float(counts[index]), name)
        for metric, values in zip(("precision", "recall", "f1"), scores[:3], strict=True):
            yield Measured(metric, float(values[position]), name)
        if rows.probabilities is not None and 0 < counts[index] < len(rows):
            is_class = rows.actual == index
            yield Measured(
                "roc_auc", float(metrics.roc_auc_score(is_class, rows.probabilities[:, index])), name
            )
