"""Bounds of a mean that hold at all times at once, so that checking after every outcome costs nothing.

The empirical Bernstein confidence sequence with predictable bets, theorem 2 of I. Waudby-Smith and A. Ramdas,
"Estimating means of bounded random variables by betting", JRSS B 86, 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_MAX_BET = 0.5


@dataclass(slots=True)
class ConfidenceSequence:
    """Two-sided bounds of the mean of values between 0 and 1.

    With a probability of at least `1 - alpha`, the mean lies within the bounds after every value.

    Args:
        alpha: the probability that the mean is ever outside the bounds.
    """

    alpha: float
    count: int = 0
    low: float = 0.0
    high: float = 1.0
    _sum: float = 0.0
    _squares: float = 0.0
    _bets: float = 0.0
    _weighted: float = 0.0
    _penalty: float = 0.0

    def add(self, value: float) -> None:
        """Take the next value into account; values outside 0 and 1 are clipped."""
        value = min(1.0, max(0.0, value))
        self.count += 1
        previous_mean = (0.5 + self._sum) / self.count
        variance = (0.25 + self._squares) / self.count
        log_term = math.log(2 / self.alpha)
        bet = min(_MAX_BET, math.sqrt(2 * log_term / (variance * self.count * math.log(1 + self.count))))
        self._sum += value
        mean = (0.5 + self._sum) / (self.count + 1)
        self._squares += (value - mean) ** 2
        self._bets += bet
        self._weighted += bet * value
        self._penalty += (value - previous_mean) ** 2 * (-math.log1p(-bet) - bet)
        center, radius = self._weighted / self._bets, (log_term + self._penalty) / self._bets
        self.low = max(self.low, center - radius)
        self.high = min(self.high, center + radius)
