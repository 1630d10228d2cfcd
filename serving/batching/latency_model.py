"""Estimate from past batches how many rows a model can process in time."""

from __future__ import annotations

import math

# Weights of past batches decay with this time constant, but by at most the factor _MIN_DECAY per batch.
_MEMORY_SECONDS = 1.0
_MIN_DECAY = 0.8
# The queue of a slow model may hold this many calls, even if they exceed `max_queue_seconds`.
_MIN_CALLS = 4
# Until the model has worked for this part of `max_queue_seconds`, no request can have waited for long, and a
# few slow first batches, as after a promotion, would look like an overload.
_MIN_OBSERVED_SHARE = 0.5


class BatchLatencyModel:
    """Models the seconds of a batch as `call + row * rows`, by weighted least squares over past batches.

    Until batches of different sizes have been observed, `row` is zero: many rows take as long as few.

    Args:
        max_queue_seconds: the longest time that a request should wait.
        processes: number of model processes that work in parallel.
    """

    def __init__(self, max_queue_seconds: float, processes: int) -> None:
        self._max_queue_seconds, self._processes = max_queue_seconds, processes
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        self.max_rows = math.inf
        """Maximum number of queued and running rows such that the last of them is processed in time."""

    def observe(self, rows: int, max_rows: int, seconds: float) -> None:
        """Update the estimate with a batch of `rows` rows (at most `max_rows`) that took `seconds`."""
        decay = max(_MIN_DECAY, math.exp(-seconds / _MEMORY_SECONDS))
        weight, n, t, nn, nt = (decay * total for total in self._sums)
        weight, n, t, nn, nt = weight + 1, n + rows, t + seconds, nn + rows * rows, nt + rows * seconds
        self._sums = weight, n, t, nn, nt
        if t < _MIN_OBSERVED_SHARE * min(self._max_queue_seconds, _MEMORY_SECONDS):
            return
        spread = nn / weight - (n / weight) ** 2
        row = (nt / weight - n * t / weight**2) / spread if spread > 1e-9 * nn / weight else 0.0
        row = min(max(row, 0.0), t / n)
        call = max(t - row * n, 0.0) / weight
        queue_seconds = max(self._max_queue_seconds, _MIN_CALLS * (call + row))
        self.max_rows = queue_seconds * self._processes / max(call / max_rows + row, 1e-9)
