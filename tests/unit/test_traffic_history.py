"""Traffic of the last half hour on the status page equals the counted traffic."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import pytest

from serving.http.endpoints.status_data import STEP_SECONDS, RecentTraffic
from serving.observers.traffic_history import TrafficHistory
from serving.telemetry.metrics import Gauges, Metrics, VersionMetrics


class Watched:
    """Metrics and their traffic history, with a clock that advances one step per tick."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.now = 1_000_000.0
        self.timeline = TrafficHistory(self.metrics, lambda: self.now)

    def of(self, model: str, version: str = "1") -> VersionMetrics:
        return self.metrics.for_version(model, version, Gauges(lambda: 0, lambda: 0, list))

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += STEP_SECONDS
            self.timeline.tick()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def record(version: VersionMetrics, *seconds: float, rows: int = 1) -> None:
    for latency in seconds:
        version.succeeded.inc()
        version.seconds.observe(latency)
        version.batch_rows.observe(rows)


def test_counts_are_rates_per_step(watched: Watched) -> None:
    iris = watched.of("iris")
    record(iris, *[0.003] * 20)
    watched.metrics.count("iris", "1", 422)
    watched.metrics.count("iris", "1", 503)
    watched.metrics.count("iris", "1", 500)
    watched.tick()
    record(iris, 0.003)
    watched.tick()
    series = watched.timeline.series("iris")
    assert series.times == [1_000_005.0, 1_000_010.0]
    assert series.requests == [23 / 5, 1 / 5]
    assert series.refused == [1 / 5, 0]
    assert series.failed == [2 / 5, 0]


def test_late_step_uses_its_real_length(watched: Watched) -> None:
    record(watched.of("iris"), *[0.003] * 20)
    watched.now += 15.0
    watched.tick()
    assert watched.timeline.series("iris").requests == [1.0]


def test_latencies_are_interpolated_within_their_bucket(watched: Watched) -> None:
    record(watched.of("iris"), *[0.002] * 98, *[0.3] * 2)
    watched.tick()
    series = watched.timeline.series("iris")
    assert series.p50 == [pytest.approx(0.001 + 50 / 98 * 0.0015, abs=1e-6)]
    assert series.p99 == [0.375]


def test_latencies_above_all_bounds_use_the_highest_bound(watched: Watched) -> None:
    record(watched.of("iris"), 60.0)
    watched.tick()
    assert watched.timeline.series("iris").p50 == [10.0]


def test_latencies_are_unknown_without_successes(watched: Watched) -> None:
    watched.metrics.count("iris", "1", 503)
    watched.tick()
    series = watched.timeline.series("iris")
    assert (series.p50, series.p99, series.rows) == ([None], [None], [None])


def test_rows_are_the_mean_per_call(watched: Watched) -> None:
    iris = watched.of("iris")
    record(iris, 0.003, rows=32)
    record(iris, 0.003, rows=1)
    watched.tick()
    assert watched.timeline.series("iris").rows == [16.5]


def test_traffic_is_summed_per_model(watched: Watched) -> None:
    record(watched.of("iris"), *[0.003] * 5)
    record(watched.of("iris", "2"), *[0.003] * 5)
    record(watched.of("rose"), *[0.003] * 15)
    watched.metrics.count("", "", 404)
    watched.tick()
    assert watched.timeline.series("iris").requests == [2.0]
    assert watched.timeline.series("rose").requests == [3.0]
    assert watched.timeline.series("tulip").requests == [0.0]
    assert watched.timeline.recent()[0].requests == 5.2


def test_returning_version_counts_from_zero(watched: Watched) -> None:
    iris = watched.of("iris")
    record(iris, *[0.003] * 10)
    watched.tick()
    iris.retire()
    for number in range(20):
        watched.of("other", str(number)).retire()
    record(watched.of("iris"), *[0.003] * 5)
    watched.tick()
    assert watched.timeline.series("iris").requests == [2.0, 1.0]


def test_recent_traffic_covers_one_minute(watched: Watched) -> None:
    iris = watched.of("iris")
    record(iris, *[4.0] * 600)
    watched.tick()
    record(iris, *[0.003] * 60, rows=4)
    watched.tick(12)
    recent, _ = watched.timeline.recent("iris")
    median, high = cast("list[float]", [pytest.approx(0.00375), pytest.approx(0.004975)])
    assert recent == RecentTraffic(1.0, 0.0, 0.0, median, high, 4.0)


def test_history_is_empty_before_the_first_tick(watched: Watched) -> None:
    assert watched.timeline.recent() == (RecentTraffic(0.0, 0.0, 0.0, None, None, None), [])
    assert watched.timeline.series("iris").times == []


def test_history_covers_half_an_hour(watched: Watched) -> None:
    record(watched.of("iris"), *[0.003] * 5)
    watched.tick(360)
    assert watched.timeline.series("iris").requests[0] == 1.0
    assert watched.timeline.recent("iris")[1][0] == pytest.approx(1 / 6, abs=0.01)
    watched.tick()
    series = watched.timeline.series("iris")
    assert len(series.times) == 360
    assert set(series.requests) == {0.0}
    assert series.times == sorted(series.times)
    assert watched.timeline.recent("iris")[1] == []


def test_trend_moves_without_flicker(watched: Watched) -> None:
    iris = watched.of("iris")
    trends = []
    for number in range(400):
        record(iris, *[0.003] * (number % 7))
        watched.tick()
        trends.append(watched.timeline.recent("iris")[1])
    for before, after in pairwise(trends[370:]):
        # All values but the ends stay in place or move by one.
        inner = after[1:-2]
        assert inner in (before[1:][: len(inner)], before[2:][: len(inner)])
    assert len(trends[-1]) in (60, 61)
