"""Bounds of a mean that hold at all times at once, so that checking after every outcome costs nothing.

For values from 0 to 1 with mean p, sum S and count n, the ratio of the beta-mixed likelihood to that of p,
B(a + S, a + n - S) / (B(a, a) p^S (1 - p)^(n - S)), is a supermartingale that starts at 1: its expectation is
exactly 1 for values of 0 and 1, and the ratio is convex in each value. By Ville's inequality it ever exceeds
1 / alpha with a probability of at most alpha (H. Robbins, "Statistical methods related to the law of the
iterated logarithm", Annals of Mathematical Statistics 41, 1970). The bounds need only count and sum, so they
survive restarts, and all fronts that read the same outcomes compute the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, lgamma, log

_PRIOR = 0.5
_STEPS = 50
"""Bisections of the interval: more than the precision of the bounds needs."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of a number."""

    low: float
    high: float


def mean_bounds(count: int, total: float, alpha: float) -> Bounds:
    """Return bounds that contain the mean, at all counts at once, with a probability of `1 - alpha`.

    Args:
        count: the number of values so far.
        total: their sum; each value is between 0 and 1.
        alpha: the probability that the mean is ever outside the bounds.
    """
    if not count:
        return Bounds(0.0, 1.0)
    mean = min(1.0, max(0.0, total / count))
    threshold = _log_mixture(count, mean) + log(alpha)

    def contains(p: float) -> bool:
        return _log_likelihood(count, mean, p) > threshold

    return Bounds(_edge(contains, mean, 0.0), _edge(contains, mean, 1.0))


def difference_bounds(new: tuple[int, float], old: tuple[int, float], alpha: float) -> Bounds:
    """Return bounds of the difference of two means, from count and sum of both.

    The values of the two are not paired. Each mean is bounded with half of `alpha`, so that both bounds hold
    together with a probability of `1 - alpha`, whichever of the two receives the next value.
    """
    of_new, of_old = mean_bounds(*new, alpha / 2), mean_bounds(*old, alpha / 2)
    return Bounds(of_new.low - of_old.high, of_new.high - of_old.low)


def _log_mixture(count: int, mean: float) -> float:
    high, low = _PRIOR + count * mean, _PRIOR + count * (1 - mean)
    prior = lgamma(2 * _PRIOR) - 2 * lgamma(_PRIOR)
    return lgamma(high) + lgamma(low) - lgamma(high + low) + prior


def _log_likelihood(count: int, mean: float, p: float) -> float:
    if not 0 < p < 1:
        return 0.0 if p == mean else -inf
    ones = mean * log(p) if mean else 0.0
    zeros = (1 - mean) * log(1 - p) if mean < 1 else 0.0
    return count * (ones + zeros)


def _edge(contains: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the edge of an interval between a point inside and the end of the range; it errs outwards."""
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if contains(middle):
            inside = middle
        else:
            outside = middle
    return outside
