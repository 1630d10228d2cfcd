"""Replicas of one service: agreement on versions, admission, and merged metrics."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from serving.cluster import ClusterView, InstanceState, divergence, is_consistent, majority_versions
from serving.telemetry.multi_front_collector import MultiInstanceCollector

IRIS, ROSE = "models:/iris/Production", "models:/rose@champion"


def seen(*models: Mapping[str, str], silent: int = 0) -> ClusterView:
    return ClusterView(
        [InstanceState(id=str(n), node="a", models={**each}, since=None) for n, each in enumerate(models)],
        silent,
    )


@pytest.mark.parametrize(
    ("found", "agreed"),
    [
        (seen({IRIS: "1"}), True),
        (seen({IRIS: "1"}, {IRIS: "1"}), True),
        (seen({IRIS: "1"}, {IRIS: "2"}), False),
        (seen({IRIS: "1"}, {}), False),
        (seen({IRIS: "1"}, {IRIS: "1"}, silent=1), False),
        (seen({IRIS: "1", ROSE: "4"}, {IRIS: "1"}), True),
    ],
    ids=["one", "same", "differ", "one has none", "one tells nothing", "on demand"],
)
def test_replicas_with_the_same_required_versions_agree(found: ClusterView, agreed: bool) -> None:
    assert is_consistent(found, [IRIS]) is agreed


def test_common_version_is_that_of_the_majority() -> None:
    common = seen({IRIS: "1"}, {IRIS: "2", ROSE: "4"}, {IRIS: "2"})
    assert majority_versions(common) == {IRIS: "2", ROSE: "4"}
    assert majority_versions(ClusterView()) == {}


@pytest.mark.parametrize(
    "others", [ClusterView(), seen({}), seen({IRIS: "1"}), seen({IRIS: "1"}, {IRIS: "2"})]
)
def test_replica_with_a_shared_version_may_join(others: ClusterView) -> None:
    assert divergence({IRIS: "1", ROSE: "4"}, others) is None


def test_replica_with_another_version_waits_with_a_reason() -> None:
    others = seen({IRIS: "2"}, {IRIS: "3"})
    assert divergence({IRIS: "1"}, others) == f"{IRIS} is version 1 here and 2 or 3 on the other replicas"


def exposition(count: int) -> str:
    registry = CollectorRegistry()
    Counter("asked", "Requests.", ["model"], registry=registry).labels("iris").inc(count)
    Histogram("took", "Seconds.", registry=registry, buckets=(1, 2)).observe(count)
    return generate_latest(registry).decode()


def test_merged_metrics_are_labelled_by_replica() -> None:
    text = generate_latest(MultiInstanceCollector({"a": exposition(1), "b": exposition(2)})).decode()
    assert text.count("# TYPE asked_total counter") == text.count("# TYPE took histogram") == 1
    assert 'asked_total{model="iris",replica="a"} 1.0' in text
    assert 'asked_total{model="iris",replica="b"} 2.0' in text
    assert 'took_bucket{le="1.0",replica="a"} 1.0' in text
    assert 'took_bucket{le="1.0",replica="b"} 0.0' in text
    assert 'took_count{replica="b"} 1.0' in text
