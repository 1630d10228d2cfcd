"""The distribution of a column's last values, compared with its distribution in training.

The statistics take a few lines here: importing scipy would cost every front more time and memory.
"""

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
    """Counts values in the bins of a reference distribution; older values weigh less.

    All counts are halved when their sum reaches ten thousand, so they represent about the last ten thousand
    rows in constant memory.

    Args:
        reference: The distribution in the training data.
        rows: The number of rows in the training data.
        threshold: The PSI that random variation should not reach.
    """

    def __init__(self, reference: Distribution, rows: int, threshold: float) -> None:
        self.counts: Array = np.zeros(len(reference.shares) + 1)
        self._reference, self._reference_rows = reference, rows
        self._expected: Array = np.array([*reference.shares, reference.missing])
        self._min_rows = min_rows(self._expected, rows, threshold)
        self._edges: Array = np.array(reference.edges or (), float)
        categories = reference.categories or ()
        self._bins: dict[Any, int] = {value: index for index, value in enumerate(categories)}

    @property
    def rows(self) -> int:
        """Return the number of rows that the counts represent."""
        return round(float(self.counts.sum()))

    def count(self, values: Sequence[Any]) -> None:
        """Count values; None and values of another type than the reference's count as missing."""
        bins = self._in_categories(values) if self._reference.edges is None else self._between_edges(values)
        self.counts += np.bincount(bins, minlength=len(self.counts))
        while self.counts.sum() > _MAX_ROWS:
            self.counts /= 2

    @property
    def psi(self) -> float:
        """Return the population stability index."""
        return float(self._psi_terms().sum())

    @property
    def is_significant(self) -> bool:
        """Return whether there are enough rows for a PSI above the threshold not to be random variation."""
        return self.rows >= self._min_rows

    def describe_shift(self) -> str:
        """Return a phrase for people on the bin that grew most."""
        now = self.counts / self.counts.sum()
        most = int(np.where(now > self._expected, self._psi_terms(), 0).argmax())
        then = self._expected[most]
        return (
            f"{now[most]:.0%} of its values are {self._describe_bin(most)}, as against {then:.0%} in training"
        )

    def _psi_terms(self) -> Array:
        return psi_terms(self._expected, self._reference_rows, self.counts)

    def _between_edges(self, values: Sequence[Any]) -> Any:
        numbers = np.array([value if isinstance(value, int | float) else math.nan for value in values], float)
        bins = np.searchsorted(self._edges, numbers, side="right")
        return np.where(np.isnan(numbers), len(self.counts) - 1, bins)

    def _in_categories(self, values: Sequence[Any]) -> list[int]:
        bins, missing = self._bins, len(self.counts) - 1
        return [
            bins.get(value, missing - 1) if isinstance(value, str | int | float) else missing
            for value in values
        ]

    def _describe_bin(self, bin: int) -> str:
        """Return the values of a bin as text."""
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
    """Return the terms of the population stability index, Σ (a - e) ln(a / e), for each bin's shares e and a.

    The formula, and 0.25 as a major change, are from N. Siddiqi, Credit Risk Scorecards, Wiley 2006. An empty
    bin counts as half a row of the smaller sample, and at least as a share of 0.0001: the logarithm of zero
    is infinite, but a bin can be empty by chance.

    Args:
        expected: The shares of the reference.
        expected_rows: The number of rows of the reference.
        counts: The present rows in each bin, at least one in total.
    """
    rows = counts.sum()
    smallest = max(_MIN_SHARE, 0.5 / min(expected_rows, rows))
    then, now = np.maximum(expected, smallest), np.maximum(counts / rows, smallest)
    terms: Array = (now - then) * np.log(now / then)
    return terms


def min_rows(expected: Array, expected_rows: int, threshold: float) -> float:
    """Return the number of rows at which the index exceeds `threshold` by chance once in ten thousand times.

    Without drift, for n present rows and m rows of the reference in k bins, the index is distributed as χ²
    with k - 1 degrees of freedom, times 1/n + 1/m: B. Yurdakul and J. Naranjo, Statistical properties of the
    population stability index, Journal of Risk Model Validation 14 (2020). The result is infinite if the
    reference has too few rows.
    """
    freedom = max(1, int(np.count_nonzero(expected)) - 1)
    inverse = threshold / _chi_square(freedom) - 1 / expected_rows
    return 1 / inverse if inverse > 0 else math.inf


def _chi_square(freedom: int) -> float:
    """Return the value that χ² exceeds by chance once in ten thousand times, within a few percent.

    The approximation is by E. B. Wilson and M. M. Hilferty, The distribution of chi-square, PNAS 17 (1931).
    """
    z = NormalDist().inv_cdf(1 - _CHANCE)
    variance = 2 / (9 * freedom)
    return float(freedom * (1 - variance + z * math.sqrt(variance)) ** 3)
