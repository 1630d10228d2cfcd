"""Labels with predictions of the same rows, and metrics as functions of sums over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from serving.errors import ServingError
from serving.evaluation import unseen
from serving.evaluation.intervals import Floats, Indices

Mask: TypeAlias = npt.NDArray[np.bool_]
Statistic: TypeAlias = Callable[[Floats], Floats]
"""Maps sums of shape (n, terms) to values of shape (n,)."""
UNKNOWN_PREDICTION = -1
"""The code of a predicted value that is no class and no label."""


class NotComputable(ServingError):
    """A metric cannot be computed from these rows and predictions."""


class NoEvidence(ServingError):
    """These rows do not define a metric; others might."""


@dataclass(frozen=True)
class Outcomes:
    """Labels and one version's predictions of the same rows.

    Args:
        labels: the true values, shape (rows,): indices of `classes` of a classifier, numbers of a regressor.
        predicted: the predicted values of the same form.
        classes: the class names; empty for a regressor.
        probabilities: of shape (rows, n) for the first n classes; None if the model returns none.
        declared: scores of classes are about the first so many classes; None for all of them.
        epsilon: the log loss takes lower probabilities for this one.
    """

    labels: npt.NDArray[Any]
    predicted: npt.NDArray[Any]
    classes: Sequence[str] = ()
    probabilities: Floats | None = None
    declared: int | None = None
    epsilon: float = float(np.finfo(np.float64).eps)

    @property
    def is_classification(self) -> bool:
        """Check whether the predictions are classes."""
        return bool(self.classes)

    @property
    def correct(self) -> Mask:
        """The rows with the right prediction."""
        return np.asarray(self.labels == self.predicted)

    @property
    def scored(self) -> range:
        """The classes that scores are about."""
        return range(len(self.classes) if self.declared is None else self.declared)

    @property
    def is_binary(self) -> bool:
        """Check whether scores are about two classes, whose second one is the positive one."""
        return len(self.scored) == 2

    def index(self, label: str | None) -> int | None:
        """Return the index of a class, by default of the positive class; None if there is none."""
        if label is not None:
            return list(self.classes).index(label)
        return 1 if self.is_binary else None

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: Mask) -> Outcomes:
        """Return the outcomes of some rows."""
        probabilities = None if self.probabilities is None else self.probabilities[mask]
        labels, predicted = self.labels[mask], self.predicted[mask]
        return replace(self, labels=labels, predicted=predicted, probabilities=probabilities)


@dataclass(frozen=True)
class Terms:
    """A metric as a function of sums over rows.

    Args:
        sums: returns the sums by group of rows, from the group of each row and the number of groups; shape
            (groups, terms).
        statistic: the metric of the sums.
        margins: returns the margins for unseen events by `alpha`; see `unseen`.
        rows: number of rows.
    """

    sums: Callable[[Indices, int], Floats]
    statistic: Statistic
    margins: Callable[[float], unseen.Margins]
    rows: int

    def value(self) -> float:
        """Return the metric of all rows; NaN if they do not define it."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self.statistic(self.sums(np.zeros(self.rows, np.intp), 1))[0])


def of_columns(
    columns: Callable[[], Iterator[Floats]],
    statistic: Statistic,
    rows: int,
    margins: Callable[[float], unseen.Margins] = unseen.none,
) -> Terms:
    """Return a metric of sums of columns, which are computed one after the other to save memory."""

    def sums(groups: Indices, count: int) -> Floats:
        return np.column_stack([np.bincount(groups, column, count) for column in columns()])

    return Terms(sums, statistic, margins, rows)


def mean_of(values: Floats, margins: Callable[[float], unseen.Margins] = unseen.none) -> Terms:
    """Return the mean of a value of each row."""
    ones = np.ones(len(values))
    return of_columns(lambda: iter((values, ones)), lambda s: s[:, 0] / s[:, 1], len(values), margins)
