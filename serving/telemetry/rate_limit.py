"""Rate limiters: a token bucket for requests, and a fixed window for log lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenBucket:
    """Allows `rate` requests per second, and bursts of up to one second's requests, but at least one."""

    rate: float
    tokens: float = field(init=False)
    since: float = -math.inf

    def __post_init__(self) -> None:
        self.tokens = max(1.0, self.rate)

    def acquire(self, now: float) -> float:
        """Take a token, and return 0; if there is none, return the seconds until there is one."""
        self.tokens = min(max(1.0, self.rate), self.tokens + (now - self.since) * self.rate)
        self.since = now
        if self.tokens < 1:
            return (1 - self.tokens) / self.rate
        self.tokens -= 1
        return 0.0


class FixedWindow:
    """Allows `limit` units in each second of the clock."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit, clock
        self._since, self._left = clock(), limit

    def acquire(self, wanted: int = 1) -> int:
        """Return how many of the wanted units are allowed now."""
        if (now := self._clock()) - self._since >= 1.0:
            self._since, self._left = now, self._limit
        allowed = min(wanted, self._left)
        self._left -= allowed
        return allowed
