"""Sums over the outcomes of two versions, which one feature needs and another one records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from serving.version import Version


@dataclass(frozen=True, slots=True)
class OutcomeQuery:
    """Selects the outcomes of two versions.

    Args:
        new: the first version.
        old: the second version.
        since: the time of the earliest prediction whose outcome counts.
        max_error: the absolute error of a number from which on its loss is 1; None derives it from the
            earlier outcomes of `old`.
    """

    new: Version
    old: Version
    since: datetime
    max_error: float | None = None


@dataclass(frozen=True, slots=True)
class LossSum:
    """The number of outcomes, and the sum of their losses, each between 0 and 1."""

    count: int = 0
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class OutcomeSums:
    """The outcomes of both versions; `max_error` is the bound of the error of numbers, if there are any."""

    new: LossSum = LossSum()
    old: LossSum = LossSum()
    max_error: float | None = None


class OutcomeBoard:
    """Passes queries to the feature that records outcomes, and its results back.

    Attributes:
        queries: by number, the queries that need results.
    """

    def __init__(self) -> None:
        self.queries: dict[int, OutcomeQuery] = {}
        self._results: dict[int, OutcomeSums] = {}
        self._on_change: Callable[[], None] | None = None
        self._number = 0

    @property
    def is_recorded(self) -> bool:
        """Return whether a feature records outcomes."""
        return self._on_change is not None

    def provide(self, on_change: Callable[[], None]) -> None:
        """Register the feature that records outcomes; it is called when the queries change."""
        self._on_change = on_change

    def open(self, query: OutcomeQuery) -> int:
        """Add a query; return its number."""
        self._number += 1
        self.queries[self._number] = query
        self._notify()
        return self._number

    def close(self, number: int) -> None:
        """Remove a query."""
        if self.queries.pop(number, None):
            self._results.pop(number, None)
            self._notify()

    def publish(self, number: int, sums: OutcomeSums) -> None:
        """Store the result of a query, unless it was closed meanwhile."""
        if number in self.queries:
            self._results[number] = sums

    def result(self, number: int) -> OutcomeSums:
        """Return the last result of a query; without one, sums of no outcomes."""
        return self._results.get(number, OutcomeSums())

    def _notify(self) -> None:
        if self._on_change:
            self._on_change()
