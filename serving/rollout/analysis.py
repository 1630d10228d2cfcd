"""What the requests to a version come to, and whether that is too bad beside another one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from serving.models.loaded_model import LoadedModel
from serving.settings.groups import RolloutSettings

_MIN_REQUESTS = 100
_MIN_FAILURES = 5
_MAX_FACTOR = 1000
_NO_MATTER_SECONDS = 0.005
"""A difference of so little is noise, whatever the ratio."""


@dataclass(frozen=True, slots=True)
class RequestStats:
    """What the requests to one version came to since a moment: how many, how many failed, and its times."""

    requests: int
    failed: int
    p95: float
    """The 95th percentile of the seconds that the last thousand took; 0 if there are none."""

    @property
    def failing(self) -> float:
        """The share that failed."""
        return self.failed / max(1, self.requests)

    @property
    def is_enough(self) -> bool:
        """Whether there were enough requests to judge by."""
        return self.requests >= _MIN_REQUESTS


def failure_reason(new: RequestStats, old: RequestStats, limits: RolloutSettings) -> str | None:
    """Why the new version should get no requests; None if it should."""
    if new.failed >= _MIN_FAILURES and new.failing > old.failing + limits.canary_max_error_rate:
        return f"{new.failed} of {new.requests} requests failed on it"
    if min(each.requests - each.failed for each in (new, old)) < _MIN_REQUESTS:
        return None  # what failed has no time
    slower = new.p95 - old.p95
    if slower > _NO_MATTER_SECONDS and new.p95 > limits.canary_max_latency_ratio * old.p95:
        return f"its 95th percentile is {new.p95 * 1e3:.3g} ms, as against {old.p95 * 1e3:.3g} ms"
    return None


@dataclass(slots=True)
class TrafficWindow:
    """A version's requests since a moment."""

    loaded: LoadedModel
    before: RequestStats = RequestStats(0, 0, 0.0)
    """What there was before that moment, when it was last enough to judge by."""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_FACTOR))
    _answered: int = 0
    _failed: int = 0

    def __post_init__(self) -> None:
        self._clear()

    def begin(self) -> None:
        """Count from now on."""
        if (now := self.sample()).is_enough:
            self.before = now
        self._clear()

    def _clear(self) -> None:
        counts = self.loaded.request_counts
        self._answered, self._failed = counts.answered, counts.own_failed
        self.seconds.clear()

    def sample(self) -> RequestStats:
        """What there was since."""
        answered = self.loaded.request_counts.answered - self._answered
        failed = max(0, self.loaded.request_counts.own_failed - self._failed)
        p95 = float(np.percentile(self.seconds, 95)) if self.seconds else 0.0
        return RequestStats(answered + failed, failed, p95)

    def baseline(self, *, is_asked: bool) -> RequestStats:
        """What others are measured by: what there was since, or before, as long as that is too little.

        Where it is asked, and fails more often than before, that counts at once: others then fail with it.
        """
        now = self.sample()
        worse = is_asked and now.failing > self.before.failing
        return now if now.is_enough or worse else self.before
