"""Compare the predictions of two versions row by row: agreement, and the distribution of differences."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel, Field, ValidationError

from serving.models.replay import predictions_match

BOUNDS = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper bounds of the buckets in which differences are counted."""
TAG, STATS_TAG = "serving.shadow", "serving.shadow.stats"
"""Tags of the shadow's version: a sentence for people, and JSON for the fronts."""
_MAX_KEPT = 2000
_MAX_COUNT = 10**15


def difference(old: Any, new: Any) -> float:
    """Return the distance of two predictions: 0 if they are equal, 1 if they have nothing in common.

    For probabilities, it is the total variation distance: half the sum of the differences of all classes.
    For numbers, it is |new - old| / max(|new|, |old|), which exceeds 1 if the signs differ. Other values that
    differ have nothing in common.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        before, after = old.get("probabilities"), new.get("probabilities")
        if isinstance(before, Mapping) and isinstance(after, Mapping) and before.keys() == after.keys():
            return float(sum(abs(before[name] - after[name]) for name in before) / 2)
        old, new = old.get("prediction"), new.get("prediction")
    if _is_number(old) and _is_number(new):
        larger = max(abs(old), abs(new))
        return float(abs(new - old) / larger) if larger else 0.0
    return 0.0 if old == new else 1.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class ShadowStats(BaseModel):
    """The comparison of a shadow with a live version on one front, as the fronts exchange it."""

    live: str
    rows: int = Field(ge=0, le=_MAX_COUNT)
    failed: int = Field(ge=0, le=_MAX_COUNT)


@dataclass(slots=True)
class ComparisonStats:
    """The comparison of a shadow with a live version."""

    rows: int = 0
    """Rows for which both versions returned a prediction."""
    agreeing: int = 0
    """Rows with the same class, or with numbers within one percent."""
    failed: int = 0
    """Rows on which the shadow failed."""
    dropped: int = 0
    """Rows that were not sent to the shadow, for lack of time or space."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0
    """The sum of all differences."""
    last: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT))
    """The last differences."""
    seconds: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT))
    """The durations of the last calls: of the live version, and of the shadow."""

    def compare(self, old: bytes, new: bytes) -> None:
        """Count a row: its predictions as two JSON objects."""
        self.rows += 1
        if old == new:
            self._count(0.0, agrees=True)
            return
        before, after = orjson.loads(old), orjson.loads(new)
        self._count(difference(before, after), agrees=predictions_match(before, after))

    def _count(self, distance: float, *, agrees: bool) -> None:
        self.agreeing += agrees
        self.total += distance
        self.last.append(distance)
        self.buckets[bisect_left(BOUNDS, distance)] += 1

    @property
    def agreement(self) -> float | None:
        """Return the share of rows with the same prediction; None without rows."""
        return self.agreeing / self.rows if self.rows else None

    @property
    def latency(self) -> float | None:
        """Return the ratio of the median durations of a call, the shadow's to the live version's."""
        if not self.seconds:
            return None
        live, shadow = np.median(np.array(self.seconds), axis=0)
        return float(shadow / live) if live else None

    def quantile(self, share: float) -> float | None:
        """Return the difference that this share of the last two thousand rows does not exceed."""
        return float(np.quantile(self.last, share)) if self.last else None

    def summary(self, live: str) -> str:
        """Return a sentence on how the shadow compares with the version `live`."""
        return (
            f"agrees with {live} in {self.agreement or 0:.1%} of {self.rows} rows; 95 % differ by "
            f"{self.quantile(0.95) or 0:.3g} or less; takes {self.latency or 0:.2g} times as long; "
            f"failed on {self.failed}, left out {self.dropped}"
        )

    def tags(self, live: str, present: Mapping[str, str]) -> dict[str, str | None]:
        """Return the tags to write; none if another front has compared more rows with the same version.

        Anyone may have written the present tags: an invalid one is replaced.
        """
        own = ShadowStats(live=live, rows=self.rows, failed=self.failed)
        try:
            other = ShadowStats.model_validate_json(present.get(STATS_TAG, ""))
        except ValidationError:
            other = None
        if other and other.live == live and other.rows + other.failed > self.rows + self.failed:
            return {}
        return {TAG: self.summary(live), STATS_TAG: own.model_dump_json()}
