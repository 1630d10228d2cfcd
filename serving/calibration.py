"""Compute the calibration error of predicted classes."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

BINS = 10
Floats: TypeAlias = npt.NDArray[np.float64]


def bins(confidence: Floats) -> npt.NDArray[np.intp]:
    """Return the bin of each confidence, of ten bins of equal width; an edge belongs to the bin below it."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)


def calibration_error(gaps: Floats, rows: npt.ArrayLike) -> Floats:
    """Return the expected calibration error.

    It is the distance of the mean confidence from the accuracy in each bin, weighted by the share of the
    rows. scikit-learn has no such metric; its `calibration_curve` has the same bins.

    Args:
        gaps: the sums of the confidences less the number of right rows, by bin in the last dimension.
        rows: the number of rows.
    """
    return np.asarray(np.abs(gaps).sum(axis=-1) / rows)
