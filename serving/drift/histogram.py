"""How the last values of a column are distributed, beside how they were when its model was trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from serving.contract.reference_profile import Distribution

_MAX_ROWS = 10_000
_MIN_SHARE = 1e-4
_CHANCE = 1e-4

Array = np.ndarray[Any, np.dtype[np.float64]]


class DecayedHistogram:
    """Counts of values in the bins of a reference, the older the less they weigh.

    All counts are halved when there are ten thousand, so that they tell of about the last ten thousand rows
    and take no more room for more.

    Args:
        reference: The distribution among the rows that the model was trained on.
        rows: How many those were.
        threshold: The PSI that chance alone should not reach.
    """

    def __init__(self, reference: Distribution, rows: int, threshold: float) -> None:
        self.counts: Array = np.zeros(len(reference.shares) + 1)
        self._reference, self._reference_rows = reference, rows
        self._expected: Array = np.array([*reference.shares, reference.missing])
        self._least_rows = min_rows(self._expected, rows, threshold)
        self._edges: Array = np.array(reference.edges or (), float)
        categories = reference.categories or ()
        self._places: dict[Any, int] = {value: index for index, value in enumerate(categories)}

    @property
    def rows(self) -> int:
        """How many rows it tells of."""
        return round(float(self.counts.sum()))

    def count(self, values: Sequence[Any]) -> None:
        """Count values; what is None, or of another kind than the reference's, is missing."""
        bins = self._in_categories(values) if self._reference.edges is None else self._between_edges(values)
        self.counts += np.bincount(bins, minlength=len(self.counts))
        while self.counts.sum() > _MAX_ROWS:
            self.counts /= 2

    @property
    def psi(self) -> float:
        """The population stability index."""
        return float(self._contributions().sum())

    @property
    def is_significant(self) -> bool:
        """Whether there are enough rows for a PSI above the threshold to be no chance."""
        return self.rows >= self._least_rows

    def describe_shift(self) -> str:
        """What there is more of than there was, as a person would say it."""
        now = self.counts / self.counts.sum()
        most = int(np.where(now > self._expected, self._contributions(), 0).argmax())
        then = self._expected[most]
        return f"{now[most]:.0%} of its values are {self._told(most)}, as against {then:.0%} in training"

    def _contributions(self) -> Array:
        return psi_terms(self._expected, self._reference_rows, self.counts)

    def _between_edges(self, values: Sequence[Any]) -> Any:
        found = np.array([value if isinstance(value, int | float) else math.nan for value in values], float)
        bins = np.searchsorted(self._edges, found, side="right")
        return np.where(np.isnan(found), len(self.counts) - 1, bins)

    def _in_categories(self, values: Sequence[Any]) -> list[int]:
        places, missing = self._places, len(self.counts) - 1
        return [
            places.get(value, missing - 1) if isinstance(value, str | int | float) else missing
            for value in values
        ]

    def _told(self, bin: int) -> str:
        """The values of a bin."""
        edges, categories = self._reference.edges or (), self._reference.categories
        if bin == len(self.counts) - 1:
            return "missing"
        if categories is not None:
            return repr(categories[bin])[:100] if bin < len(categories) else "none of the frequent ones"
        bounds = [f"{edge:.4g}" for edge in edges[max(0, bin - 1) : bin + 1]]
        if len(bounds) == 2:
            return f"from {bounds[0]} to {bounds[1]}"
        if not bounds:
            return "numbers"
        return f"below {bounds[0]}" if bin == 0 else f"{bounds[0]} or more"


def psi_terms(expected: Array, expected_rows: int, counts: Array) -> Array:
    """What each bin adds to the population stability index, Σ (a - e) ln(a / e), of its shares e and a.

    N. Siddiqi, Credit Risk Scorecards, Wiley 2006, has the formula, and 0.25 as a major change. An empty
    share is taken for half a row of the smaller sample, and for no less than 0.0001: the logarithm has no
    end there, though a bin that happens to be empty is not known to stay so.

    Args:
        expected: The shares of the reference.
        expected_rows: The rows that those were found in.
        counts: The rows in each bin now, at least one in all.
    """
    rows = counts.sum()
    least = max(_MIN_SHARE, 0.5 / min(expected_rows, rows))
    then, now = np.maximum(expected, least), np.maximum(counts / rows, least)
    found: Array = (now - then) * np.log(now / then)
    return found


def min_rows(expected: Array, expected_rows: int, threshold: float) -> float:
    """The rows from which on chance alone lifts the index over `threshold` once in ten thousand times.

    Of rows without any drift, n now and m of the reference in k bins, it is distributed as χ² with k - 1
    degrees of freedom, times 1/n + 1/m: B. Yurdakul and J. Naranjo, Statistical properties of the population
    stability index, Journal of Risk Model Validation 14 (2020). Infinite where the reference is of too few.
    """
    freedom = max(1, int(np.count_nonzero(expected)) - 1)
    left = threshold / _chi_square(freedom) - 1 / expected_rows
    return 1 / left if left > 0 else math.inf


def _chi_square(freedom: int) -> float:
    """What χ² exceeds by chance once in ten thousand times, within some percent.

    E. B. Wilson and M. M. Hilferty, The distribution of chi-square, PNAS 17 (1931).
    """
    z = NormalDist().inv_cdf(1 - _CHANCE)
    variance = 2 / (9 * freedom)
    return float(freedom * (1 - variance + z * math.sqrt(variance)) ** 3)
