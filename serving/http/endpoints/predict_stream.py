"""Answers bit by bit, as server-sent events."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serving.batching.pending import PendingRequest
from serving.codecs.model_output import to_json_value
from serving.errors import DeadlineExceeded, NotStreaming
from serving.http.endpoints.predict import PredictEndpoint, cancel_on_disconnect, parse_row, track_outcome
from serving.http.problem_details import respond
from serving.models.loaded_model import LoadedModel
from serving.models.model_calls import Part


class ServerSentEvents(Response):
    """Events, for the documentation."""

    media_type = "text/event-stream"


class _LastEvent(Response):
    """The problem that ends an answer under way, whose status has been sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it behind what was sent."""
        await send(_event(bytes(self.body), b"error", more=False))


class PredictStreamEndpoint(PredictEndpoint):
    """The ASGI application of `/predict/stream`: one row, each bit of the answer as soon as it is there.

    Each is an event whose data is JSON. An event `end` tells the model version that answered; where the model
    fails under way, an event `error` tells the problem instead.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what is wrong before the first bit is raised as with any other."""
        body, leased = await self._taken(scope, receive)
        parts: list[Part] = []
        bits: list[bytes] = []
        with (
            leased as live,
            track_outcome(live, parts, partial(self.is_hurried, scope)),
            cancel_on_disconnect(live, parts, receive),
        ):
            if not live.contract.streams:
                raise NotStreaming(f"Model {live.version.name} can't stream: it has no predict_stream.")
            try:
                async with asyncio.timeout(self._limits.stream_seconds):
                    await self._stream(live, parts, bits, scope, body, send)
            except TimeoutError:
                detail = f"The answer was not over after {self._limits.stream_seconds:g} s."
                raise DeadlineExceeded(detail, hung=False) from None
        live.metrics.rows.inc()
        self.record(live, scope, body, bits, parts)

    async def _stream(
        self, live: LoadedModel, parts: list[Part], bits: list[bytes], scope: Scope, body: bytes, send: Send
    ) -> None:
        (row,), params = parse_row(live, scope, body)
        part, stream = live.calls.submit_stream(row, params, self.seconds(scope), scope.get("reserve"))
        parts.append(part)
        async for chunk in stream.chunks():
            bit = to_json_value(chunk)
            if self._observers:
                bits.append(bit)
            if "respond" not in scope:
                await send(self._head(live, scope, part[1]))
                scope["respond"] = _last_event
            await send(_event(bit))
        await part[1].future
        if "respond" not in scope:
            await send(self._head(live, scope, part[1]))
        await send(_event(b'{"model":%s}' % live.model_json, b"end", more=False))

    def _head(self, live: LoadedModel, scope: Scope, ticket: PendingRequest) -> Message:
        queued = (ticket.started - ticket.queued) * 1e3
        first = (time.perf_counter() - ticket.started) * 1e3
        headers = [
            *live.headers,
            (b"content-type", b"text/event-stream"),
            (b"x-accel-buffering", b"no"),  # nginx would hold events back
            (b"server-timing", b"queue;dur=%.2f, first;dur=%.2f" % (queued, first)),
            (b"x-request-id", scope["request_id"].encode()),
        ]
        for observer in self._observers:
            headers += observer.response_headers(scope)
        return {"type": "http.response.start", "status": 200, "headers": headers}


def _event(data: bytes, name: bytes = b"", *, more: bool = True) -> Message:
    named = b"event: %s\n" % name if name else b""
    return {"type": "http.response.body", "body": b"%sdata: %s\n\n" % (named, data), "more_body": more}


def _last_event(*args: Any, **more: Any) -> Response:
    return _LastEvent(respond(*args, **more).body)
