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
