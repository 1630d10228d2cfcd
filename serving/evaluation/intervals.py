"""Confidence bounds of metrics and of paired differences between two versions.

Rates of rows (accuracy, recall of a class) use exact or score intervals, which stay valid for few rows and
few errors: Clopper-Pearson for one rate, and Tango's score interval (Statistics in Medicine 17, 1998) for the
difference of two rates on the same rows. Quantiles of times use order statistics. All other metrics use the
bootstrap over rows, widened by a margin for events that no row shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, betaincinv, ndtri  # scipy.stats would take a second to import

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_RESAMPLES = 2000
_PRECISION = 1e-9
_MIN_BOOTSTRAP_ROWS = 50
"""The bootstrap over fewer rows is too optimistic."""
_MAX_GROUPS = 1000
"""Above this number of rows, the bootstrap resamples groups of rows, which gives the same variance."""
_SEED = 20261128
"""Fixed, so that every front that evaluates a version gets the same result."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its one-sided confidence bounds.

    Each bound holds on its own at the level; together they hold at `2 * level - 1`.
    """

    value: float
    low: float
    high: float
    method: str


def rate_interval(successes: int, rows: int, level: float) -> Interval:
    """Return the exact (Clopper-Pearson) bounds of a rate.

    Args:
        successes: rows that count as successes.
        rows: all rows, at least 1.
        level: the one-sided confidence level, for example 0.95.
    """
    alpha = 1 - level
    low = float(betaincinv(successes, rows - successes + 1, alpha)) if successes else 0.0
    high = float(betaincinv(successes + 1, rows - successes, level)) if successes < rows else 1.0
    return Interval(successes / rows, low, high, "exact")


def paired_rate_interval(only_new: int, only_old: int, rows: int, level: float) -> Interval:
    """Return Tango's score bounds of the difference of two rates on the same rows.

    Args:
        only_new: rows on which only the new version succeeds.
        only_old: rows on which only the old version succeeds.
        rows: all rows, at least 1.
        level: the one-sided confidence level.
    """
    z = float(ndtri(level))
    value = (only_new - only_old) / rows

    def excess(delta: float) -> float:
        return _tango_z(only_new, only_old, rows, delta)

    def bound(target: float, end: float) -> float:
        if (excess(end) - target) * (excess(value) - target) >= 0:
            return end
        inside, outside = value, end
        while abs(outside - inside) > _PRECISION:
            middle = (inside + outside) / 2
            if (excess(middle) - target) * (excess(value) - target) > 0:
                inside = middle
            else:
                outside = middle
        return inside

    margin = 1e-12
    return Interval(value, bound(z, -1 + margin), bound(-z, 1 - margin), "Tango's score interval")


def _tango_z(only_new: int, only_old: int, rows: int, delta: float) -> float:
    """Return the standardized distance of the observed difference from `delta`."""
    distance = only_new - only_old - rows * delta
    if distance == 0:
        return 0.0
    quadratic = 2 * rows
    linear = -only_new - only_old + (2 * rows - only_new + only_old) * delta
    constant = -only_old * delta * (1 - delta)
    discordant = (math.sqrt(max(0.0, linear**2 - 4 * quadratic * constant)) - linear) / (2 * quadratic)
    variance = rows * (2 * discordant + delta * (1 - delta))
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def bootstrap_interval(
    sums: Floats,
    statistic: Callable[[Floats], Floats],
    level: float,
    *,
    rows: int,
    margins: tuple[float, float] = (0.0, 0.0),
) -> Interval:
    """Return the percentile bootstrap bounds of a statistic of sums over rows.

    Args:
        sums: the sums of each group of rows; shape (groups, terms). The groups are those of `group`.
        statistic: maps sums of shape (n, terms) to values of shape (n,).
        level: the one-sided confidence level.
        rows: number of rows.
        margins: how much an event that no row shows may lower and raise the value. A margin and the distance
            of the bootstrap bound add up as the root of the sum of their squares.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
        values = statistic(_weights(len(sums)) @ sums)
    values = values[np.isfinite(values)]
    if len(values) < _RESAMPLES / 2 or rows < _MIN_BOOTSTRAP_ROWS or not math.isfinite(value):
        return Interval(value, -math.inf, math.inf, "bootstrap")
    low, high = np.quantile(values, [1 - level, level])
    below, above = math.hypot(max(value - low, 0), margins[0]), math.hypot(max(high - value, 0), margins[1])
    return Interval(value, value - below, value + above, "bootstrap")


def group(rows: int) -> tuple[Indices, int]:
    """Return the group of each row, and the number of groups.

    The groups are random and of equal size; up to 1,000 rows, each row is a group.
    """
    if rows <= _MAX_GROUPS:
        return np.arange(rows), rows
    places = np.random.default_rng(_SEED).permutation(rows)
    return places * _MAX_GROUPS // rows, _MAX_GROUPS


def quantile_interval(values: Floats, share: float, level: float) -> Interval:
    """Return a quantile with bounds that are order statistics, valid for any distribution.

    Args:
        values: the sample.
        share: the share of values below the quantile, such as 0.95.
        level: the one-sided confidence level.
    """
    ordered, count = np.sort(values), len(values)
    below = bdtr(np.arange(count), count, share)  # P(at most k values are below the quantile)
    above = np.flatnonzero(below >= level)
    under = np.flatnonzero(below <= 1 - level)
    return Interval(
        float(np.quantile(values, share)),
        float(ordered[under[-1]]) if len(under) else -math.inf,
        float(ordered[above[0]]) if len(above) else math.inf,
        "order statistics",
    )


def quantile_difference_interval(
    new: Floats, old: Floats, factor: float, share: float, level: float, seed: int = _SEED
) -> Interval:
    """Return the percentile bootstrap bounds of a quantile of `new` minus `factor` times that of `old`."""
    generator = np.random.default_rng(seed)
    resampled = [
        np.quantile(generator.choice(values, (_RESAMPLES, len(values))), share, axis=1)
        for values in (new, old)
    ]
    value = float(np.quantile(new, share) - factor * np.quantile(old, share))
    low, high = np.quantile(resampled[0] - factor * resampled[1], [1 - level, level])
    if min(len(new), len(old)) < _MIN_BOOTSTRAP_ROWS:
        low, high = -math.inf, math.inf
    return Interval(value, float(low), float(high), "bootstrap")


@lru_cache(maxsize=1)
def _weights(groups: int) -> Floats:
    """Return how often each group occurs in each resample; shape (resamples, groups)."""
    generator = np.random.default_rng(_SEED)
    return generator.multinomial(groups, np.full(groups, 1 / groups), size=_RESAMPLES).astype(np.float64)
