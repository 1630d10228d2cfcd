"""Exponential back-off between attempts."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double from `first_seconds` up to `max_seconds`, each varied by `jitter` (a share)."""

    first_seconds: float
    max_seconds: float
    jitter: float = 0.0

    def delay(self, failures: int) -> float:
        """Return the delay in seconds after a number of earlier failures."""
        # The exponent is bounded, as a float overflows after some thousand failures.
        seconds = min(self.max_seconds, self.first_seconds * 2.0 ** min(failures, 32))
        return seconds * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311 — no secret

    def following(self, previous: float) -> float:
        """Return the delay in seconds that follows another, without jitter."""
        return min(max(2 * previous, self.first_seconds), self.max_seconds)
