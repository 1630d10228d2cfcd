"""References that share a model by weight: routing, compatibility and the analysis of a canary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from serving.codecs.prediction_schema import prediction_schema_of
from serving.contract.contract import Contract
from serving.errors import InvalidReference
from serving.models.probation import RequestCounts
from serving.models.slot import Slot
from serving.models.traffic_split import TrafficSplit, hash_bucket, primary
from serving.reference import Reference
from serving.rollout.canary_analysis import RequestStats, TrafficWindow, failure_reason
from serving.settings.rollout import RolloutSettings
from serving.settings.settings import Settings, format_errors
from serving.types.columns import Column

CALLERS = [f"caller {number}" for number in range(2000)]


def contract(*names: str) -> Contract:
    columns = tuple(Column(name, "double", required=True) for name in names)
    return Contract("actor", columns, (), prediction_schema_of([{"type": "double"}], None, ()), 10)


@dataclass(eq=False)
class Live:
    """A loaded version reduced to what a traffic split and a traffic window use."""

    contract: Contract = field(default_factory=lambda: contract("x"))
    request_counts: RequestCounts = field(default_factory=RequestCounts)


def split(*weights: float) -> tuple[TrafficSplit, list[Slot]]:
    slots = [
        Slot(Reference.parse_weighted(f"models:/actor@a{number}={weight}"))
        for number, weight in enumerate(weights)
    ]
    for slot in slots:
        slot.live = Live()  # type: ignore[assignment]
    return TrafficSplit(slots), slots


def shares(traffic: TrafficSplit, slots: list[Slot]) -> list[float]:
    """Return the shares of the clients that the references serve."""
    chosen = Counter(traffic.route(hash_bucket("actor", caller)) for caller in CALLERS)
    return [chosen[slot] / len(CALLERS) for slot in slots]


@pytest.mark.parametrize("weights", [(95, 5), (50, 50), (1, 1, 2), (0, 1), (7, 0)])
def test_requests_are_distributed_by_weight(weights: tuple[float, ...]) -> None:
    traffic, slots = split(*weights)
    assert shares(traffic, slots) == pytest.approx([weight / sum(weights) for weight in weights], abs=0.03)


def test_client_keeps_its_bucket_while_share_grows() -> None:
    traffic, slots = split(95, 5)
    before = {caller for caller in CALLERS if traffic.route(hash_bucket("actor", caller)) is slots[1]}
    traffic.set_weight(slots[1], 0.25)
    after = {caller for caller in CALLERS if traffic.route(hash_bucket("actor", caller)) is slots[1]}
    assert before < after
    assert shares(traffic, slots) == pytest.approx([0.75, 0.25], abs=0.03)


def test_new_live_version_receives_nothing_before_its_weight() -> None:
    traffic, slots = split(0, 100)
    traffic.set_weight(slots[1], 1.0)
    assert shares(traffic, slots) == [0.0, 1.0]
    slots[1].live = Live()  # type: ignore[assignment]
    assert shares(traffic, slots) == [1.0, 0.0]
    traffic.set_weight(slots[1], 0.25)
    assert shares(traffic, slots) == pytest.approx([0.75, 0.25], abs=0.03)


def test_full_share_leaves_primary_nothing() -> None:
    traffic, slots = split(90, 10)
    for share in (0.1, 0.7, 1.0):
        traffic.set_weight(slots[1], share)
    assert traffic.share(slots[0]) == 0.0


def test_reference_that_is_not_live_is_skipped() -> None:
    traffic, slots = split(50, 50)
    slots[1].live = None
    assert shares(traffic, slots) == [1.0, 0.0]
    assert traffic.route(primary()) is slots[0]


def test_secondary_serves_while_primary_is_not_live() -> None:
    traffic, slots = split(50, 25, 25)
    slots[0].live = None
    assert shares(traffic, slots) == pytest.approx([0.0, 0.25, 0.75], abs=0.03)


def test_primary_is_selected_if_nothing_is_live() -> None:
    traffic, slots = split(50, 50)
    slots[0].live = slots[1].live = None
    assert traffic.route(0.9) is slots[0]


def test_incompatible_reference_is_skipped() -> None:
    traffic, slots = split(50, 50)
    slots[1].live = Live(contract("x", "y"))  # type: ignore[assignment]
    assert not traffic.is_compatible(slots[1])
    assert shares(traffic, slots) == [1.0, 0.0]


# -- analysis

LIMITS = RolloutSettings(canary_max_error_rate=0.01, canary_max_latency_ratio=2.0)
GOOD = RequestStats(1000, 10, 0.020)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (GOOD, None),
        (RequestStats(1000, 19, 0.020), None),
        (RequestStats(1000, 21, 0.020), "21 of 1000 requests failed on it"),
        (RequestStats(4, 4, 0.020), None),  # too few requests to be significant
        (RequestStats(5, 5, 0.020), "5 of 5 requests failed on it"),
        (RequestStats(1000, 0, 0.039), None),
        (RequestStats(1000, 0, 0.041), "its 95th percentile is 41 ms, as against 20 ms"),
        (RequestStats(99, 0, 0.5), None),
    ],
)
def test_version_is_compared_with_primary(new: RequestStats, reason: str | None) -> None:
    assert failure_reason(new, GOOD, LIMITS) == reason


def test_latency_is_not_compared_with_failing_primary() -> None:
    assert failure_reason(GOOD, RequestStats(1000, 1000, 0.0), LIMITS) is None


def test_primary_with_few_requests_uses_previous_window() -> None:
    live = Live()
    watch = TrafficWindow(live)  # type: ignore[arg-type]
    before = (97, 3)

    def measured(answered: int, failed: int, has_traffic: bool = True) -> tuple[int, int]:
        live.request_counts.succeeded += answered
        live.request_counts.failed += failed
        stats = watch.baseline(has_traffic=has_traffic)
        return stats.requests - stats.failed, stats.failed

    assert measured(*before) == before
    watch.begin()
    assert measured(0, 0) == before
    assert measured(19, 1) == (19, 1)  # a worse baseline: both may fail for the same reason
    assert measured(0, 0, has_traffic=False) == before
    assert measured(79, 0) == before
    assert measured(1, 0) == (99, 1)
    watch.begin()
    assert measured(0, 0) == (99, 1)


def test_difference_of_a_millisecond_is_ignored() -> None:
    assert failure_reason(RequestStats(1000, 0, 0.005), RequestStats(1000, 0, 0.001), LIMITS) is None


# -- settings


@pytest.mark.parametrize(
    ("text", "weight"),
    [("models:/iris@a=95", 95.0), (" models:/iris/Staging=0.5 ", 0.5), ("models:/a=1/2", None)],
)
def test_weight_follows_reference(text: str, weight: float | None) -> None:
    traffic = Reference.parse_weighted(text)
    assert traffic.weight == weight
    assert traffic.uri == (text.strip() if weight is None else text.strip().rpartition("=")[0])


@pytest.mark.parametrize(
    "text", ["models:/iris@a=", "models:/iris@a=x", "models:/iris=5", "models:/iris@a=-1"]
)
def test_invalid_weight_is_rejected(text: str) -> None:
    with pytest.raises(InvalidReference):
        Reference.parse_weighted(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": "models:/a@x=1"}, "set a weight for all of its references"),
        ({"models": "models:/a@x=1,models:/a@y"}, "set a weight for all of its references"),
        ({"models": "models:/a@x=0,models:/a@y=0"}, "needs a weight above 0"),
        ({"models": "models:/a@x=1,models:/a@y=1,models:/a@z=1", "canary_steps": "5"}, "exactly two of its"),
        ({"canary_steps": "50,5"}, "rising percentages"),
        ({"canary_steps": "5,101"}, "rising percentages"),
        ({"models": "models:/a/1=9,models:/a@y=1", "canary_promote": True}, "models:/a/1: only a stage"),
        ({"canary_min_outcomes": 1}, "without SERVING_JOURNAL_URL no outcomes arrive"),
        ({"quality_slices": "a,b,c,d,e,f"}, "name at most 5 columns"),
        ({"models": "models:/a/1", "shadow": "models:/b/2"}, "no such model in SERVING_MODELS"),
        ({"models": "models:/a/1", "shadow": "models:/a/1"}, "also in SERVING_MODELS"),
    ],
)
def test_invalid_setting_is_reported(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        Settings(**wrong)
    (line,) = format_errors(caught.value)  # type: ignore[arg-type]
    assert message in line
    assert line.startswith("SERVING_")


def test_steps_are_parsed() -> None:
    assert Settings(canary_steps="5, 25,50").canary_steps == (5.0, 25.0, 50.0)
