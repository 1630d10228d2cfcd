"""The last live requests, kept in memory, and how a candidate answers them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import orjson

from serving.codecs.model_input import Rows
from serving.codecs.predictions import LazyPredictions
from serving.errors import ModelFailed
from serving.protocols.mlflow_scoring_output import predictions_json

_SAME = 0.01
_MOST_ROWS = 100


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request that the live version answered, and the seconds that its batch took."""

    rows: Rows
    params: Mapping[str, Any]
    answer: bytes | LazyPredictions
    """The predictions' objects, each with a comma behind it, or what they can be made of."""
    seconds: float

    def told(self) -> bytes | None:
        """The predictions' objects, or one output for all rows; None where JSON can't say one of them."""
        try:
            if isinstance(self.answer, bytes):
                return self.answer
            if self.answer.is_one_per_row(len(self.rows)):
                return self.answer.materialize().json()
            return b"".join(predictions_json((), self.answer.table)) + b","
        except ModelFailed:
            return None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a candidate answered what the live version had answered before.

    `agreement` is the share of rows with the same answer, numbers within one percent; `latency` the ratio of
    the candidate's median time to the live version's.
    """

    requests: int
    agreement: float
    latency: float

    def __str__(self) -> str:
        return (
            f"on the last {self.requests} live requests it agrees with the live version in "
            f"{self.agreement:.0%} of rows and takes {self.latency:.1f} times as long"
        )


class RequestRecorder:
    """Keeps the last `most` requests; large ones are passed over, so that memory stays bounded."""

    def __init__(self, most: int) -> None:
        self._kept: deque[RecordedRequest] = deque(maxlen=most)

    def add(self, recorded: RecordedRequest) -> None:
        """Keep a request."""
        if len(recorded.rows) <= _MOST_ROWS:
            self._kept.append(recorded)

    def last(self) -> tuple[RecordedRequest, ...]:
        """What is kept, the oldest first."""
        return tuple(self._kept)


def compare(
    recorded: Sequence[RecordedRequest], answers: Sequence[bytes], seconds: Sequence[float]
) -> Comparison:
    """Compare a candidate's answers to all that was recorded, and its seconds for some of it."""
    pairs = [
        predictions_match(old, new)
        for each, answer in zip(recorded, answers, strict=True)
        for old, new in zip(_read(each.told() or b""), _read(answer), strict=True)
    ]
    before = median(each.seconds for each in recorded)
    ratio = median(seconds) / before if before else math.inf
    return Comparison(len(recorded), sum(pairs) / len(pairs), ratio)


def _read(answer: bytes) -> list[Any]:
    predictions: list[Any] = orjson.loads(b"[" + answer[:-1] + b"]")
    return predictions


def predictions_match(old: Any, new: Any) -> bool:
    """Whether two predictions say the same: the same class, or numbers within one percent."""
    if isinstance(old, dict) and isinstance(new, dict):
        if "label" in old:
            return bool(old["label"] == new.get("label"))
        return old.keys() == new.keys() and all(predictions_match(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(predictions_match, old, new))
    if isinstance(old, float) and isinstance(new, int | float):
        return math.isclose(old, new, rel_tol=_SAME, abs_tol=1e-9)
    return bool(old == new)
