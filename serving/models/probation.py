"""Decide whether a version that has just gone live is rolled back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.batching.pending_request import PendingRequest

MAX_DEATHS = 3
MIN_FAILURES = 5
MAX_FAILURE_RATE = 0.1
_MAX_KEPT = 32
_MAX_KEPT_ROWS = 100


@dataclass(slots=True)
class RequestCounts:
    """Counts of the requests to a version since it went live, and the last failed ones."""

    succeeded: int = 0
    failed: int = 0
    deaths: int = 0
    excused: int = 0
    """Failed requests that fail on another version too."""
    excused_deaths: int = 0
    last_failure: str = ""
    """Class of the exception of the last failed request, or a short description."""
    raised: deque[PendingRequest] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT))
    """Last requests on which the model raised, or whose output violates the contract."""
    fatal: deque[PendingRequest] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT))
    """Last requests during which a process died."""

    def fail(self, failure: str, requests: Sequence[PendingRequest] = (), *, died: bool = False) -> None:
        """Count a failed request and keep its parts (`requests`), except for large ones."""
        self.failed += 1
        self.last_failure = failure
        kept = self.fatal if died else self.raised
        kept.extend(request for request in requests if len(request.rows) <= _MAX_KEPT_ROWS)

    @property
    def own_failed(self) -> int:
        """The number of failed requests that are not excused."""
        return max(0, self.failed - self.excused)

    @property
    def own_deaths(self) -> int:
        """The number of process deaths that are not excused."""
        return max(0, self.deaths - self.excused_deaths)

    def warning(self, version: str) -> str:
        """Return a warning if every request has failed; otherwise an empty string."""
        if self.succeeded or not self.failed:
            return ""
        return (
            f"every request to {version} since it went live has failed, the last with {self.last_failure}: "
            "see the log"
        )

    @property
    def failing(self) -> float:
        """The share of failed requests among the requests that are not excused."""
        return self.own_failed / max(1, self.succeeded + self.own_failed)


def rollback_reason(new: RequestCounts, old: RequestCounts) -> str | None:
    """Return why the new version must be rolled back to the old one; None if it stays.

    A rollback is due if its processes die repeatedly, or if more than a tenth of its requests fail and that
    is more than twice the share on the old version.
    """
    if new.own_deaths >= MAX_DEATHS:
        return f"its process died {new.own_deaths} times"
    if new.own_failed >= MIN_FAILURES and new.failing > max(MAX_FAILURE_RATE, 2 * old.failing):
        return f"{new.own_failed} of {new.succeeded + new.own_failed} requests failed on it"
    return None
