"""Whether a version that has just gone live does well enough to stay."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.batching.pending import PendingRequest

MOST_DEATHS = 3
FEWEST_FAILURES = 5
MOST_FAILING = 0.1
_MAX_KEPT = 32
_MAX_KEPT_ROWS = 100


@dataclass(slots=True)
class RequestCounts:
    """What the requests to one version came to, since it went live."""

    answered: int = 0
    failed: int = 0
    deaths: int = 0
    excused: int = 0
    """Requests among those that failed which fail on another version as well."""
    excused_deaths: int = 0
    last_failure: str = ""
    """How the last request failed: the class of the exception, or a few words."""
    raised: deque[PendingRequest] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT))
    """The last requests on which the model raised, or returned what its contract does not allow."""
    fatal: deque[PendingRequest] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT))
    """The last requests under which its processes died."""

    def fail(self, failure: str, requests: Sequence[PendingRequest] = (), *, died: bool = False) -> None:
        """Count a request that failed, of which these are the parts; large ones are not kept."""
        self.failed += 1
        self.last_failure = failure
        kept = self.fatal if died else self.raised
        kept.extend(each for each in requests if len(each.rows) <= _MAX_KEPT_ROWS)

    @property
    def own_failed(self) -> int:
        """Return how many requests failed by a fault of the version, not of what was sent."""
        return max(0, self.failed - self.excused)

    @property
    def own_deaths(self) -> int:
        """Return how often its process died by a fault of the version, not of what was sent."""
        return max(0, self.deaths - self.excused_deaths)

    def warning(self, version: str) -> str:
        """Warn of a version on which every request has failed; empty if one was answered."""
        if self.answered or not self.failed:
            return ""
        return (
            f"every request to {version} since it went live has failed, the last with {self.last_failure}: "
            "see the log"
        )

    @property
    def failing(self) -> float:
        """The share of requests that failed by its own fault, of those that were not excused."""
        return self.own_failed / max(1, self.answered + self.own_failed)


def rollback_reason(new: RequestCounts, old: RequestCounts) -> str | None:
    """Why the new version should give way to the old one; None if it should not.

    It should where its processes die repeatedly, or where more than a tenth of the requests fail on it, and
    twice the share that failed on the old one.
    """
    if new.own_deaths >= MOST_DEATHS:
        return f"its process died {new.own_deaths} times"
    if new.own_failed >= FEWEST_FAILURES and new.failing > max(MOST_FAILING, 2 * old.failing):
        return f"{new.own_failed} of {new.answered + new.own_failed} requests failed on it"
    return None
