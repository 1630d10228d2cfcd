"""What the status page tells of the last half hour is what was counted."""

from __future__ import annotations

from itertools import pairwise

import pytest

from serving.http.endpoints.status_data import STEP_SECONDS, RecentTraffic
from serving.observers.traffic_history import TrafficHistory
from serving.telemetry.metrics import Gauges, Metrics, VersionMetrics


class Watched:
    """Metrics, and a timeline of them whose clock goes on by a step at each look."""

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


def answer(version: VersionMetrics, *seconds: float, rows: int = 1) -> None:
    for each in seconds:
        version.succeeded.inc()
        version.seconds.observe(each)
        version.batch_rows.observe(rows)


def test_counts_are_rates_of_their_step(watched: Watched) -> None:
    iris = watched.of("iris")
    answer(iris, *[0.003] * 20)
    watched.metrics.count("iris", "1", 422)
    watched.metrics.count("iris", "1", 503)
    watched.metrics.count("iris", "1", 500)
    watched.tick()
    answer(iris, 0.003)
    watched.tick()
    series = watched.timeline.series("iris")
    assert series.times == [1_000_005.0, 1_000_010.0]
    assert series.requests == [23 / 5, 1 / 5]
    assert series.refused == [1 / 5, 0]
    assert series.failed == [2 / 5, 0]


def test_a_step_that_came_late_is_as_long_as_it_was(watched: Watched) -> None:
    answer(watched.of("iris"), *[0.003] * 20)
    watched.now += 15.0
    watched.tick()
    assert watched.timeline.series("iris").requests == [1.0]


def test_times_are_interpolated_within_their_bucket(watched: Watched) -> None:
    answer(watched.of("iris"), *[0.002] * 98, *[0.3] * 2)
    watched.tick()
    series = watched.timeline.series("iris")
    assert series.p50 == [pytest.approx(0.001 + 50 / 98 * 0.0015, abs=1e-6)]
    assert series.p99 == [0.375]


def test_times_above_every_bound_are_the_highest_bound(watched: Watched) -> None:
    answer(watched.of("iris"), 60.0)
    watched.tick()
    assert watched.timeline.series("iris").p50 == [10.0]


def test_nothing_is_told_of_times_where_nobody_was_answered(watched: Watched) -> None:
    watched.metrics.count("iris", "1", 503)
    watched.tick()
    series = watched.timeline.series("iris")
    assert (series.p50, series.p99, series.rows) == ([None], [None], [None])


def test_rows_are_the_mean_of_a_call(watched: Watched) -> None:
    iris = watched.of("iris")
    answer(iris, 0.003, rows=32)
    answer(iris, 0.003, rows=1)
    watched.tick()
    assert watched.timeline.series("iris").rows == [16.5]


def test_versions_of_a_model_are_one_and_models_are_apart(watched: Watched) -> None:
    answer(watched.of("iris"), *[0.003] * 5)
    answer(watched.of("iris", "2"), *[0.003] * 5)
    answer(watched.of("rose"), *[0.003] * 15)
    watched.metrics.count("", "", 404)
    watched.tick()
    assert watched.timeline.series("iris").requests == [2.0]
    assert watched.timeline.series("rose").requests == [3.0]
    assert watched.timeline.series("tulip").requests == [0.0]
    assert watched.timeline.recent()[0].requests == 5.2


def test_a_version_that_was_forgotten_and_came_back_counts_from_nothing(watched: Watched) -> None:
    iris = watched.of("iris")
    answer(iris, *[0.003] * 10)
    watched.tick()
    iris.retire()
    for number in range(20):
        watched.of("other", str(number)).retire()
    answer(watched.of("iris"), *[0.003] * 5)
    watched.tick()
    assert watched.timeline.series("iris").requests == [2.0, 1.0]


def test_the_last_minute_is_the_last_minute(watched: Watched) -> None:
    iris = watched.of("iris")
    answer(iris, *[4.0] * 600)
    watched.tick()
    answer(iris, *[0.003] * 60, rows=4)
    watched.tick(12)
    lately, _ = watched.timeline.recent("iris")
    assert lately == RecentTraffic(1.0, 0.0, 0.0, pytest.approx(0.00375), pytest.approx(0.004975), 4.0)


def test_before_the_first_look_nothing_is_known(watched: Watched) -> None:
    assert watched.timeline.recent() == (RecentTraffic(0.0, 0.0, 0.0, None, None, None), [])
    assert watched.timeline.series("iris").times == []


def test_only_half_an_hour_is_kept(watched: Watched) -> None:
    answer(watched.of("iris"), *[0.003] * 5)
    watched.tick(360)
    assert watched.timeline.series("iris").requests[0] == 1.0
    assert watched.timeline.recent("iris")[1][0] == pytest.approx(1 / 6, abs=0.01)
    watched.tick()
    series = watched.timeline.series("iris")
    assert len(series.times) == 360
    assert set(series.requests) == {0.0}
    assert series.times == sorted(series.times)
    assert watched.timeline.recent("iris")[1] == []


def test_a_trend_moves_on_and_does_not_flicker(watched: Watched) -> None:
    iris = watched.of("iris")
    trends = []
    for number in range(400):
        answer(iris, *[0.003] * (number % 7))
        watched.tick()
        trends.append(watched.timeline.recent("iris")[1])
    for before, after in pairwise(trends[370:]):
        # All but the ends are as they were, or one place further on.
        inner = after[1:-2]
        assert inner in (before[1:][: len(inner)], before[2:][: len(inner)])
    assert len(trends[-1]) in (60, 61)
