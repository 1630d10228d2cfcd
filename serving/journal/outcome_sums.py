"""Sum the losses of two versions over the outcomes of their predictions since a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import sqrt
from typing import Any

from sqlalchemy import Connection, case, func, select

from serving.journal.feedback_sums import Sums
from serving.journal.schema import feedback, first_id, predictions, versions

_ERROR_FACTOR = 3.0
"""Without a bound of the error of numbers, it is this many root mean squared errors of the old version."""
_MIN_MEASURED = 30
"""Fewer earlier outcomes give no bound."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A query for the outcomes of two versions, by their ids in the journal; `since` is in Unix time."""

    number: int
    new: int
    old: int
    since: float
    max_error: float | None


def with_bound(connection: Connection, watch: Watch) -> Watch:
    """Return the watch with a bound of the error of numbers, if the old version has outcomes to derive it.

    Outcomes from which the bound is derived do not count: only predictions from now on do.
    """
    if watch.max_error is not None:
        return watch
    row = connection.execute(select(versions).where(versions.c.id == watch.old)).one_or_none()
    if row is None or (sums := Sums.of(row)).measured < _MIN_MEASURED or not sums.squared_errors:
        return watch
    bound = _ERROR_FACTOR * sqrt(sums.squared_errors / sums.measured)
    return replace(watch, max_error=bound, since=datetime.now(UTC).timestamp())


def summarize(connection: Connection, watch: Watch) -> dict[str, Any]:
    """Return the counts and the sums of losses of both versions, as the front reads them.

    The loss of a class is 0 or 1. That of a number is its absolute error as a share of the bound, at most 1;
    without a bound, numbers do not count.
    """
    wrong = func.sum(case((feedback.c.correct.is_(False), 1), else_=0))
    error = func.abs(feedback.c.error)
    share = case((error < watch.max_error, error / watch.max_error), else_=1.0) if watch.max_error else 0.0
    is_number = feedback.c.error.is_not(None)
    counted = (func.count(feedback.c.correct), wrong)
    measured = (func.count(feedback.c.error), func.sum(case((is_number, share), else_=0.0)))
    query = (
        select(predictions.c.version, *counted, *measured)
        .select_from(feedback.join(predictions, feedback.c.prediction == predictions.c.id))
        .where(
            # Not the predictions: of those, there may be many more.
            feedback.c.prediction >= first_id(datetime.fromtimestamp(watch.since, UTC)),
            predictions.c.version.in_((watch.new, watch.old)),
        )
        .group_by(predictions.c.version)
    )
    rows = [*connection.execute(query)]
    sums = {version: _loss(watch, *values) for version, *values in rows}
    has_numbers, none = any(numbers for _, _, _, numbers, _ in rows), (0, 0.0)
    return {
        "number": watch.number,
        "new": sums.get(watch.new, none),
        "old": sums.get(watch.old, none),
        "max_error": watch.max_error if has_numbers else None,
    }


def _loss(watch: Watch, classes: int, wrong: int, numbers: int, share: float) -> tuple[int, float]:
    counted = numbers if watch.max_error else 0
    return classes + counted, wrong + float(share)
