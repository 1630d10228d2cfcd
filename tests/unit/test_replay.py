"""Recorded live requests, and the comparison of their predictions."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from serving.models.replay import Comparison, RecordedRequest, RequestRecorder, compare, predictions_match


def recorded(*predictions: Any, seconds: float = 0.001) -> RecordedRequest:
    return RecordedRequest([{}] * len(predictions), {}, orjson.dumps(predictions)[1:-1], seconds)


def texts(*predictions: Any) -> list[bytes]:
    return [*map(orjson.dumps, predictions)]


def test_last_requests_are_kept() -> None:
    recorder = RequestRecorder(2)
    kept = [recorded(number) for number in range(5)]
    for request in kept:
        recorder.add(request)
    assert recorder.last() == tuple(kept[-2:])


def test_large_request_is_skipped() -> None:
    recorder = RequestRecorder(10)
    recorder.add(recorded(*range(101)))
    assert recorder.last() == ()


def test_recorder_of_size_zero_keeps_nothing() -> None:
    recorder = RequestRecorder(0)
    recorder.add(recorded(1))
    assert recorder.last() == ()


@pytest.mark.parametrize(
    ("old", "new", "agree"),
    [
        ({"prediction": 1, "label": "b", "confidence": 0.9}, {"prediction": 1, "label": "b"}, True),
        ({"prediction": 1, "label": "b"}, {"prediction": 0, "label": "a"}, False),
        ({"prediction": 100.0}, {"prediction": 100.9}, True),
        ({"prediction": 100.0}, {"prediction": 102.0}, False),
        ({"prediction": 0.0}, {"prediction": 0.0}, True),
        ({"prediction": [1.0, 2.0]}, {"prediction": [1.0, 2.001]}, True),
        ({"prediction": [1.0]}, {"prediction": [1.0, 2.0]}, False),
        ({"prediction": {"a": 1.0}}, {"prediction": {"b": 1.0}}, False),
        ({"prediction": "x"}, {"prediction": "x"}, True),
        ({"prediction": None}, {"prediction": 1.0}, False),
    ],
)
def test_predictions_match_by_class_or_within_a_percent(old: Any, new: Any, agree: bool) -> None:
    assert predictions_match(old, new) is agree


def test_agreement_is_over_rows_and_latency_over_requests() -> None:
    before = [recorded("a", "b", seconds=0.002), recorded("c", seconds=0.004)]
    comparison = compare(before, [texts("a", "x"), texts("c")], [0.006, 0.012])
    assert comparison == Comparison(requests=2, agreement=2 / 3, latency=pytest.approx(3.0))  # type: ignore[arg-type]  # it compares as a float


def test_comparison_is_formatted_as_a_sentence() -> None:
    text = str(Comparison(requests=100, agreement=0.981, latency=1.23))
    assert text == (
        "on the last 100 live requests it agrees with the live version in 98% of rows "
        "and takes 1.2 times as long"
    )
