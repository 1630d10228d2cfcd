"""Canary analysis: count the requests to a version, and compare them with those to the primary."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from serving.models.loaded_model import LoadedModel
from serving.settings.rollout import RolloutSettings

_MIN_REQUESTS = 100
_MIN_FAILURES = 5
_MAX_TIMES = 1000
_NOISE_SECONDS = 0.005
"""A smaller difference in latency is noise, even if the ratio is large."""


@dataclass(frozen=True, slots=True)
class RequestStats:
    """The requests to one version since a moment."""

    requests: int
    failed: int
    p95: float
    """The 95th percentile of the last thousand latencies in seconds; 0 without any."""

    @property
    def failing(self) -> float:
        """Return the share of the requests that failed."""
        return self.failed / max(1, self.requests)

    @property
    def is_enough(self) -> bool:
        """Return whether there are enough requests to compare versions."""
        return self.requests >= _MIN_REQUESTS


def failure_reason(new: RequestStats, old: RequestStats, limits: RolloutSettings) -> str | None:
    """Return why the new version must receive no more requests; None if it may."""
    if new.failed >= _MIN_FAILURES and new.failing > old.failing + limits.canary_max_error_rate:
        return f"{new.failed} of {new.requests} requests failed on it"
    if min(stats.requests - stats.failed for stats in (new, old)) < _MIN_REQUESTS:
        return None  # failed requests have no latency
    slower = new.p95 - old.p95
    if slower > _NOISE_SECONDS and new.p95 > limits.canary_max_latency_ratio * old.p95:
        return f"its 95th percentile is {new.p95 * 1e3:.3g} ms, as against {old.p95 * 1e3:.3g} ms"
    return None


@dataclass(slots=True)
class TrafficWindow:
    """The requests to a version since a moment."""

    loaded: LoadedModel
    before: RequestStats = RequestStats(0, 0, 0.0)
    """The last window that had enough requests."""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_TIMES))
    _succeeded: int = 0
    _failed: int = 0

    def __post_init__(self) -> None:
        self._clear()

    def begin(self) -> None:
        """Start a new window."""
        if (now := self.sample()).is_enough:
            self.before = now
        self._clear()

    def _clear(self) -> None:
        counts = self.loaded.request_counts
        self._succeeded, self._failed = counts.succeeded, counts.own_failed
        self.seconds.clear()

    def sample(self) -> RequestStats:
        """Return the requests of this window."""
        succeeded = self.loaded.request_counts.succeeded - self._succeeded
        failed = max(0, self.loaded.request_counts.own_failed - self._failed)
        p95 = float(np.percentile(self.seconds, 95)) if self.seconds else 0.0
        return RequestStats(succeeded + failed, failed, p95)

    def baseline(self, *, has_traffic: bool) -> RequestStats:
        """Return the requests against which others are measured: this window, or the one before.

        The window before counts while this one has too few requests, or none at all. But if the version
        receives traffic and fails more often than before, this window counts at once: the other version may
        fail for the same reason.
        """
        now = self.sample()
        is_worse = has_traffic and now.failing > self.before.failing
        return now if now.is_enough or is_worse else self.before
