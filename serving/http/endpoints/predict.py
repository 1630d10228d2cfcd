"""The endpoint of one typed row, and what the endpoints of other protocols share.

It bypasses FastAPI: the contract of the leased version validates the body, and the response is bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException

from serving.auth.access_rules import PREDICT
from serving.batching.pending_request import Output, PendingRequest
from serving.codecs.model_input import Rows, lacks_values
from serving.codecs.predictions import LazyPredictions, row_response
from serving.contract.contract import Row
from serving.dataplane import DataPlane, Endpoint, Selector, Watch
from serving.errors import FieldError, ModelFailed, Unprocessable
from serving.http.http_context import Header, HttpContext
from serving.http.problem_details import respond
from serving.http.request_body import read_json
from serving.http.response_compression import MIN_COMPRESSED_BYTES, compress
from serving.http.unsent_responses import LARGE_BYTES, reserve
from serving.models.loaded_model import LoadedModel
from serving.models.prediction_cache import CachedResponse, PredictionCache
from serving.models.replay import RecordedRequest
from serving.protocols.mlflow_scoring_output import predictions_json

_DISCONNECT_CHECK_DELAY = 0.05
"""The seconds after which a request is watched, so that it is dropped if its client disconnects."""


class PredictEndpoint(Endpoint[HttpContext, Sequence[bytes]]):
    """The endpoint `/predict`: one row.

    Args:
        select: returns the version that a request addresses.
        dataplane: runs the request.
    """

    protocol = "predict"

    respond = staticmethod(respond)
    """Renders an error in the format of the protocol."""
    access = PREDICT

    def __init__(self, select: Selector[HttpContext], dataplane: DataPlane) -> None:
        self._select, self._dataplane, self._limits = select, dataplane, dataplane.limits

    async def __call__(self, context: HttpContext) -> None:
        """Process one request; the application maps the errors that this raises to responses."""
        await self._receive(context)
        pieces = body = await self._dataplane.infer(context, self._select, self)
        size = sum(map(len, pieces))
        coding: Sequence[Header] = ()
        if size >= MIN_COMPRESSED_BYTES:
            body, coding = await compress(context.headers, context.content_headers, pieces, size)
            size = sum(map(len, body))
        if size > LARGE_BYTES:
            reserve(context.scope, size)
        headers = [
            *_model_headers(context),
            *context.content_headers,
            *coding,
            (b"content-length", str(size).encode()),
            (b"x-request-id", context.request_id.encode()),
            *self._dataplane.response_headers(context),
        ]
        send = context.send
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in body[:-1]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": body[-1]})
        self._dataplane.record_response(context, context.body, pieces)

    async def _receive(self, context: HttpContext) -> None:
        if context.method != "POST":
            raise HTTPException(405, "Use POST for predictions.", {"Allow": "POST"})
        context.body = await self._read(context)

    async def _read(self, context: HttpContext) -> bytes:
        return await read_json(context, self._limits.max_body_bytes, self._limits.read_timeout_seconds)

    async def run(self, context: HttpContext, model: LoadedModel) -> Sequence[bytes]:
        """Return the body of the response in pieces."""
        rows, params = parse_row(context, model)
        seconds = self._dataplane.seconds_left(context)
        context.parts += model.calls.submit(rows, params, seconds, raw=model.contract.is_whole)
        ticket = context.parts[0][1]
        try:
            output = await ticket.future
        except Unprocessable as error:  # raised by the model's type hint, which does not name the input
            raise _named_refusal(model, error) from None
        if not output.is_one_per_row(1) or model.contract.is_whole:
            return [*whole(model, rows, params, ticket, output)]
        row = output.materialize().items_json()
        model.recorder.add(RecordedRequest(rows, params, row, ticket.finished - ticket.started))
        return [row_response(row, model.model_json)]

    def watch(self, context: HttpContext, model: LoadedModel) -> Watch:
        """Withdraw the rows that are still queued when the client disconnects."""
        return _DisconnectWatch(context, model)

    # -- cache

    def from_cache(self, context: HttpContext, cache: PredictionCache) -> Sequence[bytes] | None:
        """Return the response of this version to an identical request."""
        if (cached := cache.find(self._cache_key(context))) is None:
            return None
        context.cached_parts, context.content_headers = cached.parts, cached.content_headers
        return [cached.body]

    def to_cache(self, context: HttpContext, cache: PredictionCache, output: Sequence[bytes]) -> None:
        """Keep a small response to a small request."""
        if cache.accepts(len(context.body), sum(map(len, output))):
            response = CachedResponse(b"".join(output), context.parts, context.content_headers)
            cache.add(self._cache_key(context), response)

    def _cache_key(self, context: HttpContext) -> tuple[Any, ...]:
        return type(self), context.scope["query_string"], context.body, context.media_type


def _model_headers(context: HttpContext) -> list[Header]:
    """Return the headers of a version, and the times of the request in milliseconds."""
    model, parts = context.model, context.parts
    assert model is not None, "only a leased model responds"
    if not parts:
        return [*model.headers, (b"server-timing", b"cache"), (b"x-cache", b"hit")]
    first, last = parts[0][1], parts[-1][1]
    timing = b"validate;dur=%.2f, queue;dur=%.2f, model;dur=%.2f" % (
        (first.queued - context.leased_at) * 1e3,
        (first.started - first.queued) * 1e3,
        (last.finished - first.started) * 1e3,
    )
    if model.cache is None:
        return [*model.headers, (b"server-timing", timing)]
    return [*model.headers, (b"server-timing", timing), (b"x-cache", b"miss")]


def parse_row(context: HttpContext, model: LoadedModel) -> tuple[list[Row], dict[str, Any]]:
    """Return the one row of a request, and the model parameters in its query.

    Raises:
        RequestError: they do not match the contract.
    """
    params = query_params(context, model)
    return [model.contract.read_row(context.body)], params


def query_params(context: HttpContext, model: LoadedModel) -> dict[str, Any]:
    """Return the model parameters in the query of a request; raises as `parse_row`."""
    query = context.scope["query_string"].decode("latin-1")
    return model.contract.read_query(parse_qs(query, keep_blank_values=True)) if query else {}


def _named_refusal(model: LoadedModel, error: Unprocessable) -> Exception:
    """Return an error of the model's type hint with the name of the only input."""
    if len(model.contract.columns) != 1:
        return ModelFailed("it refused an input though it has no type hint")
    name = model.contract.columns[0].name
    return model.contract.refusal([FieldError((name, *fault.loc[1:]), fault.msg) for fault in error.faults])


def whole(
    model: LoadedModel, rows: Rows, params: Mapping[str, Any], ticket: PendingRequest, output: Output
) -> Iterator[bytes]:
    """Render an output that is not one result per row, as `/invocations` does.

    Raises:
        ModelFailed: the contract promises one result per row.
        Unprocessable: the same, but the model received no rows, because they omit all columns.
    """
    if not isinstance(output, LazyPredictions) or not (model.contract.is_whole or model.contract.is_open):
        if lacks_values(rows):
            names = ", ".join(column.name for column in model.contract.columns)
            raise Unprocessable(f"The rows have no values: send {names}.")
        raise ModelFailed(f"it returned {len(output)} results for {len(rows)} rows")
    yield b'{"predictions":'
    yield from predictions_json(model.contract.output_columns, output.table)
    yield b',"model":' + model.model_json + b"}"
    model.recorder.add(RecordedRequest(rows, params, output, ticket.finished - ticket.started))


class _DisconnectWatch:
    """Withdraws the rows of a request if its client disconnects; looks only after a short delay."""

    __slots__ = ("_context", "_model", "_task", "_timer")

    def __init__(self, context: HttpContext, model: LoadedModel) -> None:
        self._context, self._model = context, model
        self._timer = asyncio.get_running_loop().call_later(_DISCONNECT_CHECK_DELAY, self._start)
        self._task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._context.receive())["type"] != "http.disconnect":
            pass
        self._model.calls.withdraw(self._context.parts)
