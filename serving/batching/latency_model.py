"""How fast a model answers, learnt from its batches: how many rows it can be given and be done in time."""

from __future__ import annotations

import math

# The estimate forgets batches over this time, but looks at a few at least.
_MEMORY_SECONDS = 1.0
_MIN_SAMPLES = 0.8
# A model that takes long for one request may have as many of them waiting, whatever the patience.
_MIN_CALLS = 4


class BatchLatencyModel:
    """Estimates the seconds of a batch as `call + row * rows`, by weighted least squares over the last ones.

    Until batches of different sizes have shown otherwise, a model is taken to need as long for many rows as
    for few.

    Args:
        patience: seconds that a request should have to wait at most.
        processes: how many model processes answer side by side.
    """

    def __init__(self, patience: float, processes: int) -> None:
        self._patience, self._processes = patience, processes
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        self.most_rows = math.inf
        """Rows that may wait or be under way, so that the last of them is answered in time."""

    def observe(self, rows: int, most_rows: int, seconds: float) -> None:
        """Learn from a batch of so many rows, of at most `most_rows`, that took so many seconds."""
        kept = max(_MIN_SAMPLES, math.exp(-seconds / _MEMORY_SECONDS))
        weight, n, t, nn, nt = (kept * total for total in self._sums)
        weight, n, t, nn, nt = weight + 1, n + rows, t + seconds, nn + rows * rows, nt + rows * seconds
        self._sums = weight, n, t, nn, nt
        spread = nn / weight - (n / weight) ** 2
        row = (nt / weight - n * t / weight**2) / spread if spread > 1e-9 * nn / weight else 0.0
        row = min(max(row, 0.0), t / n)
        call = max(t - row * n, 0.0) / weight
        patience = max(self._patience, _MIN_CALLS * (call + row))
        self.most_rows = patience * self._processes / max(call / most_rows + row, 1e-9)
