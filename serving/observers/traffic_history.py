"""The traffic of the last half hour for each model, sampled from the metrics every few seconds.

It costs requests nothing. Ring buffers of a fixed size hold the increase of each count from one sample to the
next; rates and latencies are computed on demand.
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
_STEPS_PER_MINUTE = 12
_STEPS_PER_TREND_POINT = 6
_SUCCEEDED, _REFUSED, _FAILED, _BATCHES, _ROWS = range(5)
_BOUNDS = np.array(SECONDS, float)
_WIDTH = _ROWS + 1 + len(SECONDS) + 1
"""Columns of a ring: those five, then the successful requests within each bound, and all of them."""


_NO_TRAFFIC = RecentTraffic(0.0, 0.0, 0.0, None, None, None)


class TrafficHistory:
    """Samples the metrics every few seconds; `tick()` takes one sample.

    Args:
        metrics: The metrics to sample.
        clock: Returns Unix time.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self._metrics, self._clock = metrics, clock
        self._codes: dict[tuple[str, str, str], float] = {}
        self._measured: dict[tuple[str, str], Floats] = {}
        self._rings: dict[str | None, Floats] = {}
        """The counts of each model, and of all models under None: a row for each step, in a circle."""
        self._times, self._lengths = np.zeros(_POINTS), np.zeros(_POINTS)
        self._sampled_at = clock()
        self.ticks = 0
        """The number of samples so far; the results change only with it."""
        self._recent: dict[str | None, tuple[RecentTraffic, list[float]]] = {}

    async def run(self) -> None:
        """Sample until cancelled; requests are handled between the steps of a sample."""
        while True:
            await asyncio.sleep(STEP_SECONDS)
            for _ in self._sample():
                await asyncio.sleep(0)

    def tick(self) -> None:
        """Record the increase of all counts since the last sample."""
        for _ in self._sample():
            pass

    def _sample(self) -> Iterator[None]:
        """Take a sample, with a pause after each version; it becomes visible as a whole."""
        grown: defaultdict[str | None, Floats] = defaultdict(lambda: np.zeros(_WIDTH))
        for model, version in self._collect_status_counts(grown):
            if (model, version) in self._metrics.versions:
                grown[model][_BATCHES:] += self._collect_histograms(model, version)
            yield
        grown[None] = sum(grown.values(), np.zeros(_WIDTH))
        self._store(grown)

    def _collect_status_counts(self, grown: Mapping[str | None, Floats]) -> set[tuple[str, str]]:
        """Add the new requests by status; return the versions that received any."""
        counts: dict[tuple[str, str, str], float] = {}
        active = set()
        for model, version, code, count in self._metrics.requests():
            counts[model, version, code] = count
            # A version that was unloaded and loaded again counts from zero.
            before = self._codes.get((model, version, code), 0.0)
            if more := count - before if count >= before else count:
                grown[model][_column(code)] += more
                active.add((model, version))
        self._codes = counts
        self._measured = {
            key: values for key, values in self._measured.items() if key in self._metrics.versions
        }
        return active

    def _collect_histograms(self, model: str, version: str) -> Floats:
        """Return the increase of a version's histograms: batches, rows in them, and requests by latency."""
        metrics = self._metrics.versions[model, version]
        rows = {sample.name: sample.value for sample in _samples(metrics.batch_rows)}
        buckets = [sample.value for sample in _samples(metrics.seconds) if sample.name.endswith("_bucket")]
        now = np.array([rows["serving_batch_rows_count"], rows["serving_batch_rows_sum"], *buckets])
        before = self._measured.get((model, version), np.zeros(1))
        self._measured[model, version] = now
        return now - before if (now >= before).all() else now

    def _store(self, grown: Mapping[str | None, Floats]) -> None:
        now, position = self._clock(), self.ticks % _POINTS
        self._times[position], self._lengths[position] = now, max(now - self._sampled_at, 1e-3)
        self._sampled_at = now
        for model in grown.keys() | self._rings.keys():
            ring = self._rings.setdefault(model, np.zeros((_POINTS, _WIDTH)))
            ring[position] = grown.get(model, 0.0)
        self._rings = {model: ring for model, ring in self._rings.items() if ring.any()}
        self.ticks += 1
        self._recent = {}

    def recent(self, model: str | None = None) -> tuple[RecentTraffic, list[float]]:
        """Return the last minute of a model, or of all models, and the trend of its requests per second.

        The trend has a point for each half minute of the last half hour; it is empty without requests.
        """
        if not self._recent:
            self._recent = dict(self._compute_recent())
        return self._recent.get(model, (_NO_TRAFFIC, []))

    def _compute_recent(self) -> Iterator[tuple[str | None, tuple[RecentTraffic, list[float]]]]:
        """Yield the recent traffic of all models: this takes hardly longer than for one."""
        order, rings = self._order(), self._rings.values()
        if not rings:
            return
        seconds, minute = self._lengths[order], order[-_STEPS_PER_MINUTE:]
        columns = _columns(
            np.array([ring[minute].sum(axis=0) for ring in rings]), seconds[-_STEPS_PER_MINUTE:].sum()
        )
        requests = np.array([ring[:, _SUCCEEDED : _FAILED + 1].sum(axis=1) for ring in rings])[:, order]
        # Points begin at the same steps in each sample, so that a chart moves on and does not flicker.
        first = self.ticks - len(order)
        starts = np.unique(
            np.maximum(
                np.arange(first, self.ticks) // _STEPS_PER_TREND_POINT * _STEPS_PER_TREND_POINT - first, 0
            )
        )
        trends = np.add.reduceat(requests, starts, axis=1) / np.add.reduceat(seconds, starts)
        for model, trend, *values in zip(self._rings, _to_list(trends, 2), *columns, strict=True):
            yield model, (RecentTraffic(*values), trend)

    def series(self, model: str) -> Series:
        """Return each step of the last half hour of a model."""
        order = self._order()
        columns = _columns(self._ring(model)[order], self._lengths[order])
        return Series(_to_list(self._times[order], 1), *columns)

    def _order(self) -> NDArray[np.intp]:
        """Return the positions of the steps in the rings, the oldest first."""
        return np.arange(max(0, self.ticks - _POINTS), self.ticks) % _POINTS

    def _ring(self, model: str | None) -> Floats:
        ring = self._rings.get(model)
        return np.zeros((_POINTS, _WIDTH)) if ring is None else ring


def _column(code: str) -> int:
    return {"2": _SUCCEEDED, "4": _REFUSED}.get(code[0], _FAILED)


def _samples(metric: Histogram) -> Iterator[Sample]:
    return (sample for family in metric.collect() for sample in family.samples)


def _columns(counts: Floats, seconds: Floats | float) -> list[list[Any]]:
    """Return for each step: requests, 4xx and 5xx per second, p50, p99, and rows per batch."""
    rates = counts[:, _SUCCEEDED : _FAILED + 1] / np.reshape(seconds, (-1, 1))
    cumulative = counts[:, _ROWS + 1 :]
    with np.errstate(invalid="ignore"):
        rows = counts[:, _ROWS] / counts[:, _BATCHES]
    return [
        _to_list(rates.sum(axis=1), 2),
        _to_list(rates[:, _REFUSED], 2),
        _to_list(rates[:, _FAILED], 2),
        _to_list(quantiles(cumulative, 0.5), 6),
        _to_list(quantiles(cumulative, 0.99), 6),
        _to_list(rows, 2),
    ]


def quantiles(cumulative: Floats, share: float) -> Floats:
    """Return the latency in seconds that this share of the requests in each line does not exceed.

    It is NaN for a line without requests. It is interpolated like Prometheus' `histogram_quantile`: linearly
    within the bucket, and the highest finite bound for anything above it.
    """
    lines, rank = np.arange(len(cumulative)), cumulative[:, -1] * share
    bucket = (cumulative >= rank[:, None]).argmax(axis=1)
    inside = np.minimum(bucket, len(_BOUNDS) - 1)
    below = np.where(inside > 0, cumulative[lines, inside - 1], 0.0)
    low = np.where(inside > 0, _BOUNDS[inside - 1], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        part = (rank - below) / (cumulative[lines, inside] - below)
    latency = np.where(bucket < len(_BOUNDS), low + part * (_BOUNDS[inside] - low), _BOUNDS[-1])
    return np.where(cumulative[:, -1] > 0, latency, np.nan)


def _to_list(values: Floats, digits: int) -> list[Any]:
    """Return the values as a list for JSON, with None for NaN."""
    rounded: list[Any] = values.round(digits).tolist()
    return [None if value != value else value for value in rounded]
