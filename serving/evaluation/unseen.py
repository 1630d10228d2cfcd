"""Margins for events that the labelled rows do not show.

The bootstrap only repeats what the rows show: if all four rows of a class are right, each resample is
perfect. Yet an event that none of n rows shows may have the probability `1 - alpha ** (1 / n)`, the exact
(Clopper-Pearson) bound. A margin is the effect of such an event on a metric. Margins of independent parts,
such as the rows of different classes, add up as the root of the sum of their squares, and so do the margin
and the distance of the bootstrap bound from the value (the method MOVER of Zou and Donner, Statistics in
Medicine 27, 2008). With many rows the margin is small beside that distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from serving.evaluation.intervals import Floats

Margins: TypeAlias = Floats
"""The effects that lower and that raise a metric, by independent part; shape (2, parts)."""


def share(rows: npt.ArrayLike, alpha: float) -> Floats:
    """Return the greatest probability of an event that none of the rows shows; 1 without rows."""
    counts = np.asarray(rows, np.float64)
    return np.where(counts > 0, 1 - alpha ** (1 / np.maximum(counts, 1)), 1.0)


def none(alpha: float) -> Margins:
    """Return no margin: the metrics of regressors have no worst value."""
    return np.zeros((2, 1))


def of_rates(
    rates: Floats,
    rows: Floats,
    alpha: float,
    *,
    link: Callable[[Floats], Floats] = lambda rates: rates,
    weights: Floats | float = 1.0,
) -> Margins:
    """Return the margins of a weighted sum of functions of rates.

    Args:
        rates: one rate per class.
        rows: the number of rows of each rate.
        alpha: the error probability.
        link: the summand of a rate; it increases.
        weights: the weights of the sum.
    """
    event = share(rows, alpha)
    low, value, high = link(rates * (1 - event)), link(rates), link(rates + (1 - rates) * event)
    return np.stack([value - low, high - value]) * weights


def of_areas(areas: Floats, positives: Floats, negatives: Floats, alpha: float) -> Margins:
    """Return the margins of a mean of areas under ROC curves: an unseen row may have the worst rank.

    Args:
        areas: one area per class.
        positives: the rows of each class.
        negatives: the other rows.
        alpha: the error probability.
    """
    event = np.concatenate([share(positives, alpha), share(negatives, alpha)])
    both = np.concatenate([areas, areas])
    return np.stack([both * event, (1 - both) * event]) / len(areas)


def of_losses(losses: Sequence[Floats], alpha: float) -> Margins:
    """Return the margins of a mean loss: in the rows with most to lose, another class may be the true one.

    Args:
        losses: three losses per row: of the likeliest class, of the true one, and of the unlikeliest one.
        alpha: the error probability.
    """
    best, actual, worst = losses
    event = float(share(len(actual), alpha))
    count = math.ceil(len(actual) * event)
    changes = (np.partition(change, -count)[-count:] for change in (actual - best, worst - actual))
    return np.array([[event * change.mean()] for change in changes])


def combine(margins: Margins) -> tuple[float, float]:
    """Return the margins of all parts together."""
    low, high = np.sqrt((margins**2).sum(axis=1))
    return float(low), float(high)


def of_difference(new: Margins, old: Margins, factor: float) -> Margins:
    """Return the margins of a new value minus `factor` times an old one."""
    return new + factor * old[::-1]
