"""Confidence bounds of metrics and of paired differences between two versions.

Rates of rows (accuracy, recall of a class) use exact or score intervals, which stay valid for few rows and
few errors: Clopper-Pearson for one rate, and Tango's score interval (Statistics in Medicine 17, 1998) for the
difference of two rates on the same rows. All other metrics use the bootstrap over rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_RESAMPLES = 2000
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
    from scipy.stats import beta

    alpha = 1 - level
    low = float(beta.ppf(alpha, successes, rows - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - alpha, successes + 1, rows - successes)) if successes < rows else 1.0
    return Interval(successes / rows, low, high, "exact")


def paired_rate_interval(only_new: int, only_old: int, rows: int, level: float) -> Interval:
    """Return Tango's score bounds of the difference of two rates on the same rows.

    Args:
        only_new: rows on which only the new version succeeds.
        only_old: rows on which only the old version succeeds.
        rows: all rows, at least 1.
        level: the one-sided confidence level.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf(level))
    value = (only_new - only_old) / rows

    def excess(delta: float) -> float:
        return _tango_z(only_new, only_old, rows, delta)

    def bound(target: float, end: float) -> float:
        if (excess(end) - target) * (excess(value) - target) >= 0:
            return end
        return float(brentq(lambda delta: excess(delta) - target, min(value, end), max(value, end)))

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
    sums: Floats, statistic: Callable[[Floats], Floats], level: float, seed: int = _SEED
) -> Interval:
    """Return the percentile bootstrap bounds of a statistic of column sums.

    Args:
        sums: one line per row of data, with the additive terms of the statistic; shape (rows, terms).
        statistic: maps column sums of shape (n, terms) to values of shape (n,).
        level: the one-sided confidence level.
        seed: the seed of the resamples.
    """
    generator = np.random.default_rng(seed)
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    grouped = _group(sums, generator)
    groups = len(grouped)
    weights = generator.multinomial(groups, np.full(groups, 1 / groups), size=_RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(weights.astype(np.float64) @ grouped)
    values = values[np.isfinite(values)]
    if len(values) < _RESAMPLES / 2 or not math.isfinite(value):
        return Interval(value, -math.inf, math.inf, "bootstrap")
    low, high = np.quantile(values, [1 - level, level])
    return Interval(value, float(low), float(high), "bootstrap")


def _group(sums: Floats, generator: np.random.Generator) -> Floats:
    """Return the sums of at most `_MAX_GROUPS` random groups of rows of equal size."""
    rows = len(sums)
    if rows <= _MAX_GROUPS:
        return sums
    shuffled = sums[generator.permutation(rows)]
    starts = np.linspace(0, rows, _MAX_GROUPS, endpoint=False).astype(np.intp)
    grouped: Floats = np.add.reduceat(shuffled, starts, axis=0)
    return grouped
