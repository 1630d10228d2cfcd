"""What went on in the last half hour, for each model: read now and then from metrics, which are kept anyway.

Requests pay nothing for it. All that is kept is how much each count grew from one look to the next, in rings
of a fixed size; rates and times are made of that when they are asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Histogram
from prometheus_client.samples import Sample

from serving.http.endpoints.status_data import STEP_SECONDS, RecentTraffic, Series
from serving.telemetry.metrics import SECONDS, Metrics

Floats = NDArray[np.float64]

_POINTS = 360
_LATELY = 12
"""So many steps are a minute."""
_GROUP = 6
"""So many steps are one point of a trend."""
_ANSWERED, _REFUSED, _FAILED, _BATCHES, _ROWS = range(5)
_BOUNDS = np.array(SECONDS, float)
_WIDTH = _ROWS + 1 + len(SECONDS) + 1
"""Columns of a ring: those five, then the requests that were answered within each bound, and in any time."""


_NOTHING = RecentTraffic(0.0, 0.0, 0.0, None, None, None)


class TrafficHistory:
    """Looks at the metrics every few seconds; `tick()` is one look.

    Args:
        metrics: what is looked at.
        clock: gives Unix time.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self._metrics, self._clock = metrics, clock
        self._codes: dict[tuple[str, str, str], float] = {}
        self._measured: dict[tuple[str, str], Floats] = {}
        self._rings: dict[str | None, Floats] = {}
        """What was counted, of each model and (by None) of all together: steps in a circle, by columns."""
        self._times, self._lengths = np.zeros(_POINTS), np.zeros(_POINTS)
        self._looked_at = clock()
        self.ticks = 0
        """Looks so far: what is told changes with it, and only then."""
        self._told: dict[str | None, tuple[RecentTraffic, list[float]]] = {}

    async def run(self) -> None:
        """Tick until cancelled, and let requests have their turn meanwhile."""
        while True:
            await asyncio.sleep(STEP_SECONDS)
            for _ in self._look():
                await asyncio.sleep(0)

    def tick(self) -> None:
        """Note how much was counted since the last look."""
        for _ in self._look():
            pass

    def _look(self) -> Iterator[None]:
        """One look, which may pause after each version; nothing of it is told before all of it is there."""
        grown: defaultdict[str | None, Floats] = defaultdict(lambda: np.zeros(_WIDTH))
        for model, version in self._look_at_codes(grown):
            if (model, version) in self._metrics.versions:
                grown[model][_BATCHES:] += self._look_at(model, version)
            yield
        grown[None] = sum(grown.values(), np.zeros(_WIDTH))
        self._note(grown)

    def _look_at_codes(self, grown: Mapping[str | None, Floats]) -> set[tuple[str, str]]:
        """Note how many more requests there were; gives the versions of which there were any."""
        found: dict[tuple[str, str, str], float] = {}
        asked = set()
        for model, version, code, count in self._metrics.requests():
            found[model, version, code] = count
            # What was forgotten and came back counts from nothing again.
            before = self._codes.get((model, version, code), 0.0)
            if more := count - before if count >= before else count:
                grown[model][_column(code)] += more
                asked.add((model, version))
        self._codes = found
        self._measured = {key: each for key, each in self._measured.items() if key in self._metrics.versions}
        return asked

    def _look_at(self, model: str, version: str) -> Floats:
        """How much a version's histograms have grown: batches, rows in them, and requests by their time."""
        of = self._metrics.versions[model, version]
        rows = {sample.name: sample.value for sample in _samples(of.batch_rows)}
        buckets = [sample.value for sample in _samples(of.seconds) if sample.name.endswith("_bucket")]
        now = np.array([rows["serving_batch_rows_count"], rows["serving_batch_rows_sum"], *buckets])
        before = self._measured.get((model, version), np.zeros(1))
        self._measured[model, version] = now
        return now - before if (now >= before).all() else now

    def _note(self, grown: Mapping[str | None, Floats]) -> None:
        now, place = self._clock(), self.ticks % _POINTS
        self._times[place], self._lengths[place] = now, max(now - self._looked_at, 1e-3)
        self._looked_at = now
        for model in grown.keys() | self._rings.keys():
            ring = self._rings.setdefault(model, np.zeros((_POINTS, _WIDTH)))
            ring[place] = grown.get(model, 0.0)
        self._rings = {model: ring for model, ring in self._rings.items() if ring.any()}
        self.ticks += 1
        self._told = {}

    def recent(self, model: str | None = None) -> tuple[RecentTraffic, list[float]]:
        """The last minute of a model, or of all together, and the trend of its requests a second.

        The trend has a point for each half minute; it is empty where nobody asked in all that time.
        """
        if not self._told:
            self._told = dict(self._tell())
        return self._told.get(model, (_NOTHING, []))

    def _tell(self) -> Iterator[tuple[str | None, tuple[RecentTraffic, list[float]]]]:
        """The same of all models at once, which takes hardly longer."""
        order, rings = self._order(), self._rings.values()
        if not rings:
            return
        seconds, minute = self._lengths[order], order[-_LATELY:]
        columns = _columns(np.array([ring[minute].sum(axis=0) for ring in rings]), seconds[-_LATELY:].sum())
        asked = np.array([ring[:, _ANSWERED : _FAILED + 1].sum(axis=1) for ring in rings])[:, order]
        # Points begin at the same steps at each look, so that a trend moves on and does not flicker.
        first = self.ticks - len(order)
        starts = np.unique(np.maximum(np.arange(first, self.ticks) // _GROUP * _GROUP - first, 0))
        trends = np.add.reduceat(asked, starts, axis=1) / np.add.reduceat(seconds, starts)
        for model, trend, *each in zip(self._rings, _listed(trends, 2), *columns, strict=True):
            yield model, (RecentTraffic(*each), trend)

    def series(self, model: str) -> Series:
        """Each step of the last half hour of a model."""
        order = self._order()
        columns = _columns(self._ring(model)[order], self._lengths[order])
        return Series(_listed(self._times[order], 1), *columns)

    def _order(self) -> NDArray[np.intp]:
        """The places of the steps in the rings, the oldest first."""
        return np.arange(max(0, self.ticks - _POINTS), self.ticks) % _POINTS

    def _ring(self, model: str | None) -> Floats:
        ring = self._rings.get(model)
        return np.zeros((_POINTS, _WIDTH)) if ring is None else ring


def _column(code: str) -> int:
    return {"2": _ANSWERED, "4": _REFUSED}.get(code[0], _FAILED)


def _samples(metric: Histogram) -> Iterator[Sample]:
    return (sample for each in metric.collect() for sample in each.samples)


def _columns(counts: Floats, seconds: Floats | float) -> list[list[Any]]:
    """What was counted in each step: requests, refused and failed a second, p50, p99, rows in a batch."""
    rates = counts[:, _ANSWERED : _FAILED + 1] / np.reshape(seconds, (-1, 1))
    cumulative = counts[:, _ROWS + 1 :]
    with np.errstate(invalid="ignore"):
        rows = counts[:, _ROWS] / counts[:, _BATCHES]
    return [
        _listed(rates.sum(axis=1), 2),
        _listed(rates[:, _REFUSED], 2),
        _listed(rates[:, _FAILED], 2),
        _listed(quantiles(cumulative, 0.5), 6),
        _listed(quantiles(cumulative, 0.99), 6),
        _listed(rows, 2),
    ]


def quantiles(cumulative: Floats, share: float) -> Floats:
    """The time within which this share of each line's requests was answered; NaN where there were none.

    Interpolated as Prometheus' `histogram_quantile` does: linearly within the bucket, and the highest finite
    bound for what is above it.
    """
    lines, wanted = np.arange(len(cumulative)), cumulative[:, -1] * share
    bucket = (cumulative >= wanted[:, None]).argmax(axis=1)
    inside = np.minimum(bucket, len(_BOUNDS) - 1)
    below = np.where(inside > 0, cumulative[lines, inside - 1], 0.0)
    low = np.where(inside > 0, _BOUNDS[inside - 1], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        part = (wanted - below) / (cumulative[lines, inside] - below)
    found = np.where(bucket < len(_BOUNDS), low + part * (_BOUNDS[inside] - low), _BOUNDS[-1])
    return np.where(cumulative[:, -1] > 0, found, np.nan)


def _listed(values: Floats, digits: int) -> list[Any]:
    """The values as JSON has them: what is not known is None."""
    listed: list[Any] = values.round(digits).tolist()
    return [None if value != value else value for value in listed]
