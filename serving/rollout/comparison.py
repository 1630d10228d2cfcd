"""How far two versions' predictions are apart, row by row: agreement, and the distribution of differences."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from serving.models.replay import predictions_match

BOUNDS = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper bounds of the buckets in which differences are counted."""
_MAX_KEPT = 2000
_TOLD = re.compile(
    r"agrees with (?P<live>.+) in [\d.]+% of (?P<rows>\d{1,15}) rows; .*failed on (?P<failed>\d{1,15}), .*"
)
"""What `Tally.told` says."""


def difference(old: Any, new: Any) -> float:
    """How far a prediction is from another: 0 where they say the same, 1 where they have nothing in common.

    Of probabilities it is the total variation distance, half the sum of what each class differs by; of
    numbers |new - old| / max(|new|, |old|), which is over 1 where the signs differ. Whatever else differs
    has nothing in common.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        chances, others = old.get("probabilities"), new.get("probabilities")
        if isinstance(chances, Mapping) and isinstance(others, Mapping) and chances.keys() == others.keys():
            return float(sum(abs(chances[name] - others[name]) for name in chances) / 2)
        old, new = old.get("prediction"), new.get("prediction")
    if _is_number(old) and _is_number(new):
        most = max(abs(old), abs(new))
        return float(abs(new - old) / most) if most else 0.0
    return 0.0 if old == new else 1.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(slots=True)
class ComparisonStats:
    """What the comparison of two versions has come to."""

    rows: int = 0
    """Rows that both answered."""
    agreeing: int = 0
    """Rows with the same class, or numbers within one percent."""
    failed: int = 0
    """Rows that the other one failed on."""
    dropped: int = 0
    """Rows that were not asked for want of time, or room."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0
    """The sum of all differences."""
    last: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT))
    """The last differences."""
    seconds: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT))
    """What the last calls took: of the one, of the other."""

    def compare(self, old: bytes, new: bytes) -> None:
        """Count a row: its predictions as two JSON objects."""
        self.rows += 1
        if old == new:
            self._count(0.0, agrees=True)
            return
        one, other = orjson.loads(old), orjson.loads(new)
        self._count(difference(one, other), agrees=predictions_match(one, other))

    def _count(self, found: float, *, agrees: bool) -> None:
        self.agreeing += agrees
        self.total += found
        self.last.append(found)
        self.buckets[bisect_left(BOUNDS, found)] += 1

    @property
    def agreement(self) -> float | None:
        """The share of rows with the same answer; None before there are any."""
        return self.agreeing / self.rows if self.rows else None

    @property
    def latency(self) -> float | None:
        """The ratio of the median times of a call, the other's to the one's."""
        if not self.seconds:
            return None
        one, other = np.median(np.array(self.seconds), axis=0)
        return float(other / one) if one else None

    def quantile(self, share: float) -> float | None:
        """The difference that this share of the last two thousand rows does not exceed."""
        return float(np.quantile(self.last, share)) if self.last else None

    def told(self, live: str) -> str:
        """In a sentence, how the other one compares with what is `live`."""
        return (
            f"agrees with {live} in {self.agreement or 0:.1%} of {self.rows} rows; 95 % differ by "
            f"{self.quantile(0.95) or 0:.3g} or less; takes {self.latency or 0:.2g} times as long; "
            f"failed on {self.failed}, left out {self.dropped}"
        )


def prefer_larger_sample(told: str, said: str) -> str:
    """The sentence to keep: `told`, unless `said` is of the same live version and of more rows.

    Both are of one shadow; `said` may be whatever somebody has written.
    """
    new, old = _TOLD.fullmatch(told), _TOLD.fullmatch(said)
    if new and old and new["live"] == old["live"] and _asked(old) > _asked(new):
        return said
    return told


def _asked(told: re.Match[str]) -> int:
    return int(told["rows"]) + int(told["failed"])
