"""The last live requests, kept in memory to be repeated on the next candidate."""

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

_REL_TOLERANCE, _ABS_TOLERANCE = 0.01, 1e-9
_MAX_ROWS = 100


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request that the live version has served, and the seconds that its batch took."""

    rows: Rows
    params: Mapping[str, Any]
    output: bytes | LazyPredictions
    """The items of the JSON array of predictions, or what they can be rendered from."""
    seconds: float

    def predictions(self) -> bytes | None:
        """Return the items of the JSON array of predictions; None where JSON cannot represent them.

        An output that is not one result per row is a single item.
        """
        try:
            if isinstance(self.output, bytes):
                return self.output
            if self.output.is_one_per_row(len(self.rows)):
                return self.output.materialize().items_json()
            return b"".join(predictions_json((), self.output.table))
        except ModelFailed:
            return None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the predictions of a candidate compare with those of the live version.

    `agreement` is the share of rows with a matching prediction (see `predictions_match`). `latency` is the
    ratio of the candidate's median seconds to those of the live version.
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
    """Keeps the last `max_requests` requests. Large requests are skipped, which bounds the memory."""

    def __init__(self, max_requests: int) -> None:
        self._requests: deque[RecordedRequest] = deque(maxlen=max_requests)

    def add(self, recorded: RecordedRequest) -> None:
        """Keep a request, unless it is large."""
        if len(recorded.rows) <= _MAX_ROWS:
            self._requests.append(recorded)

    def last(self) -> tuple[RecordedRequest, ...]:
        """Return the kept requests, oldest first."""
        return tuple(self._requests)


def compare(
    recorded: Sequence[RecordedRequest], outputs: Sequence[Sequence[bytes]], seconds: Sequence[float]
) -> Comparison:
    """Compare the predictions of a candidate with the recorded ones.

    Args:
        recorded: at least one request; JSON can represent the predictions of each.
        outputs: the JSON texts of the candidate's predictions, for each request.
        seconds: the seconds that the candidate took for some of the requests.
    """
    matches = [
        predictions_match(old, orjson.loads(new))
        for request, texts in zip(recorded, outputs, strict=True)
        for old, new in zip(orjson.loads(b"[%s]" % (request.predictions() or b"")), texts, strict=True)
    ]
    live_seconds = median(request.seconds for request in recorded)
    ratio = median(seconds) / live_seconds if live_seconds else math.inf
    return Comparison(len(recorded), sum(matches) / len(matches), ratio)


def predictions_match(old: Any, new: Any) -> bool:
    """Return whether two predictions name the same class or have numbers within one percent."""
    if isinstance(old, dict) and isinstance(new, dict):
        if "label" in old:
            return bool(old["label"] == new.get("label"))
        return old.keys() == new.keys() and all(predictions_match(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(predictions_match, old, new))
    if isinstance(old, float) and isinstance(new, int | float):
        return math.isclose(old, new, rel_tol=_REL_TOLERANCE, abs_tol=_ABS_TOLERANCE)
    return bool(old == new)
