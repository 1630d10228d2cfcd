"""The endpoint that streams a prediction as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serving.batching.pending_request import PendingRequest
from serving.codecs.model_output import to_json_value
from serving.errors import DeadlineExceeded, NotStreaming
from serving.http.endpoints.predict import PredictEndpoint, parse_row
from serving.http.http_context import HttpContext
from serving.http.problem_details import respond
from serving.models.loaded_model import LoadedModel
from serving.models.prediction_cache import PredictionCache


class ServerSentEvents(Response):
    """A stream of events; for the OpenAPI document."""

    media_type = "text/event-stream"


class _LastEvent(Response):
    """The problem that ends a stream whose status has already been sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the problem as an event."""
        await send(_event(bytes(self.body), b"error", more=False))


class PredictStreamEndpoint(PredictEndpoint):
    """The endpoint `/predict/stream`: one row, and each chunk of the prediction as soon as it exists.

    The data of each event is JSON. The last event is `end`, which names the model version, or `error` with a
    problem if the model fails after the first chunk.
    """

    protocol = "stream"

    async def __call__(self, context: HttpContext) -> None:
        """Process one request; errors before the first chunk become responses as for other endpoints."""
        await self._receive(context)
        chunks = await self._dataplane.infer(context, self._select, self)
        self._dataplane.record_response(context, context.body, chunks)

    async def run(self, context: HttpContext, model: LoadedModel) -> Sequence[bytes]:
        """Stream a prediction, and return its chunks for the hooks."""
        if not model.contract.streams:
            raise NotStreaming(f"Model {model.version.name} can't stream: it has no predict_stream.")
        seconds = self._limits.stream_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._stream(context, model)
        except TimeoutError:
            raise DeadlineExceeded(f"The stream did not end within {seconds:g} s.", hung=False) from None

    def from_cache(self, context: HttpContext, cache: PredictionCache) -> None:
        """Return None: streams are not cached."""

    def to_cache(self, context: HttpContext, cache: PredictionCache, output: Sequence[bytes]) -> None:
        """Keep nothing."""

    async def _stream(self, context: HttpContext, model: LoadedModel) -> Sequence[bytes]:
        (row,), params = parse_row(context, model)
        seconds = self._dataplane.seconds_left(context)
        part, stream = model.calls.submit_stream(row, params, seconds, context.scope.get("reserve"))
        context.parts.append(part)
        chunks: list[bytes] = []
        async for chunk in stream.chunks():
            data = to_json_value(chunk)
            if self._dataplane.hooks:
                chunks.append(data)
            if context.respond is None:
                await context.send(self._head(context, model, part[1]))
                context.respond = _last_event
            await context.send(_event(data))
        await part[1].future
        if context.respond is None:
            await context.send(self._head(context, model, part[1]))
        await context.send(_event(b'{"model":%s}' % model.model_json, b"end", more=False))
        return chunks

    def _head(self, context: HttpContext, model: LoadedModel, ticket: PendingRequest) -> Message:
        queued = (ticket.started - ticket.queued) * 1e3
        first = (time.perf_counter() - ticket.started) * 1e3
        headers = [
            *model.headers,
            (b"content-type", b"text/event-stream"),
            (b"x-accel-buffering", b"no"),  # nginx buffers events by default
            (b"server-timing", b"queue;dur=%.2f, first;dur=%.2f" % (queued, first)),
            (b"x-request-id", context.request_id.encode()),
            *self._dataplane.response_headers(context),
        ]
        return {"type": "http.response.start", "status": 200, "headers": headers}


def _event(data: bytes, name: bytes = b"", *, more: bool = True) -> Message:
    named = b"event: %s\n" % name if name else b""
    return {"type": "http.response.body", "body": b"%sdata: %s\n\n" % (named, data), "more_body": more}


def _last_event(*args: Any, **more: Any) -> Response:
    return _LastEvent(respond(*args, **more).body)
