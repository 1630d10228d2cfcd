"""The requests of the client, without input and output: both clients send the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx

from serving.client import results
from serving.client.encoding import ARROW, JSON, is_table, to_arrow, to_json, to_query
from serving.client.results import (
    BatchResult,
    Feedback,
    ModelInfo,
    PredictionResult,
    Readiness,
    ScoringResult,
)

T = TypeVar("T")
Query = Sequence[tuple[str, str]]


class Options(TypedDict, total=False):
    """Options of one prediction.

    Attributes:
        model: The name of a served model, or a reference such as `iris@champion`, `iris/Production` or
            `iris/3`; the client's own model if absent.
        version: The number of a loaded version of the model.
        params: Parameters of the model, as its signature declares them.
        deadline: The seconds until the caller gives up, retry and waiting included; for a stream, the
            seconds until the next chunk. The service stops working on the request then.
    """

    model: str
    version: str | int
    params: Mapping[str, Any]
    deadline: float


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request of the API, and the function that parses its response."""

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    deadline: float
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Query = ()
    accepts: Sequence[int] = ()
    """Statuses of 400 and more whose responses are results."""


class Requests:
    """Builds the requests of a client with its default model and deadline."""

    def __init__(self, model: str | None, deadline: float) -> None:
        self._model, self._deadline = model, _checked(deadline)

    def predict(self, row: Mapping[str, Any], **options: Unpack[Options]) -> Call[PredictionResult]:
        """Return the request for one row."""
        return self._row("predict", results.prediction, row, options)

    def stream(self, row: Mapping[str, Any], **options: Unpack[Options]) -> Call[httpx.Response]:
        """Return the request for the streamed prediction of one row."""
        return self._row("predict/stream", results.stream, row, options)

    def batch(self, rows: Any, **options: Unpack[Options]) -> Call[BatchResult]:
        """Return the request for rows or a table: a table is sent as Arrow, without a detour by JSON."""
        params = options.get("params") or {}
        if is_table(rows):
            return self._predict(
                "predict/batch", results.batch, to_arrow(rows), options, ARROW, to_query(params)
            )
        body = {"rows": [*rows]} | ({"params": params} if params else {})
        return self._predict("predict/batch", results.batch, to_json(body), options)

    def score(
        self, body: Any, *, model: str | None = None, deadline: float | None = None
    ) -> Call[ScoringResult]:
        """Return the request for a body or a table in MLflow's scoring protocol."""
        model = self._name(model)
        content, media_type = (to_arrow(body), ARROW) if is_table(body) else (to_json(body), JSON)
        return Call(
            "POST",
            "/invocations",
            results.scoring,
            self._seconds(deadline),
            content,
            {"Content-Type": media_type},
            [("model", model)] if model else [],
        )

    def models(self) -> Call[list[ModelInfo]]:
        """Return the request for the served models."""
        return Call("GET", "/models", results.models, self._deadline)

    def model(self, name: str) -> Call[ModelInfo]:
        """Return the request for one served model."""
        return Call("GET", f"/models/{quote(name, safe='')}", results.model, self._deadline)

    def ready(self) -> Call[Readiness]:
        """Return the request for the readiness."""
        return Call("GET", "/ready", results.readiness, self._deadline, accepts=(503,))

    def feedback(self, outcomes: Iterable[Feedback]) -> Call[int]:
        """Return the request that records outcomes."""
        items = [
            {"prediction_id": item.prediction_id, "outcome": item.outcome, "row": item.row}
            for item in outcomes
        ]
        body = to_json({"feedback": items})
        return Call("POST", "/feedback", results.recorded, self._deadline, body, {"Content-Type": JSON})

    def _row(
        self,
        endpoint: str,
        parse: Callable[[httpx.Response], T],
        row: Mapping[str, Any],
        options: Options,
    ) -> Call[T]:
        query = to_query(options.get("params") or {})
        return self._predict(endpoint, parse, to_json(row), options, query=query)

    def _predict(
        self,
        endpoint: str,
        parse: Callable[[httpx.Response], T],
        content: bytes,
        options: Options,
        media_type: str = JSON,
        query: Query = (),
    ) -> Call[T]:
        if unknown := options.keys() - Options.__annotations__.keys():
            raise TypeError(f"No option of a prediction: {', '.join(sorted(unknown))}.")
        path, headers = _target(endpoint, self._name(options.get("model")), options.get("version"))
        headers["Content-Type"] = media_type
        return Call("POST", path, parse, self._seconds(options.get("deadline")), content, headers, query)

    def _name(self, model: str | None) -> str | None:
        if model == "":  # another model would predict
            raise ValueError("The name of the model is empty.")
        return self._model if model is None else model

    def _seconds(self, deadline: float | None) -> float:
        return self._deadline if deadline is None else _checked(deadline)


def _checked(deadline: float) -> float:
    if not (deadline > 0 and math.isfinite(deadline)):
        raise ValueError(f"The deadline should be a positive number of seconds, not {deadline}.")
    return deadline


def _target(endpoint: str, model: str | None, version: str | int | None) -> tuple[str, dict[str, str]]:
    """Return path and headers that address a model; a reference with a stage has no path."""
    if version is not None:
        if not model or "/" in model:
            raise ValueError("A version needs the name of its model.")
        return f"/models/{quote(model, safe='')}/versions/{quote(str(version), safe='')}/{endpoint}", {}
    if not model:
        return f"/{endpoint}", {}
    if "/" not in model:
        return f"/models/{quote(model, safe='@')}/{endpoint}", {}
    if not model.isascii():
        raise ValueError(f"A header carries ASCII only: address {model} by its name or alias.")
    return f"/{endpoint}", {"X-Model": model}
