"""Whether a version that has just gone live does well enough to stay."""

from __future__ import annotations

from dataclasses import dataclass

MOST_DEATHS = 3
FEWEST_FAILURES = 5
MOST_FAILING = 0.1


@dataclass(slots=True)
class Tally:
    """What the requests to one version came to, since it went live."""

    answered: int = 0
    failed: int = 0
    deaths: int = 0
    last_failure: str = ""
    """How the last request failed: the class of the exception, or a few words."""

    def fail(self, failure: str) -> None:
        """Count a request that failed."""
        self.failed += 1
        self.last_failure = failure

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
        """The share of requests that failed."""
        return self.failed / max(1, self.answered + self.failed)


def verdict(new: Tally, old: Tally) -> str | None:
    """Why the new version should give way to the old one; None if it should not.

    It should where its processes die repeatedly, or where more than a tenth of the requests fail on it, and
    twice the share that failed on the old one.
    """
    if new.deaths >= MOST_DEATHS:
        return f"its process died {new.deaths} times"
    if new.failed >= FEWEST_FAILURES and new.failing > max(MOST_FAILING, 2 * old.failing):
        return f"{new.failed} of {new.answered + new.failed} requests failed on it"
    return None
