"""What a typed route does with a request: read, lease, validate, queue, answer.

It goes round FastAPI's machinery: the body is validated by the contract of the very version that is leased,
and answered in bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serving.auth.access_rules import PREDICT
from serving.batching.pending import Output, PendingRequest
from serving.codecs.model_input import Rows
from serving.codecs.predictions import LazyPredictions, row_response
from serving.contract.contract import Row
from serving.errors import DeadlineExceeded, FieldError, ModelFailed, NotLoaded, ProcessDied, Unprocessable
from serving.hooks import InferenceEvent, RequestHook
from serving.http.problem_details import respond
from serving.http.request_body import read_json, timeout
from serving.http.unsent_responses import LARGE_BYTES, reserve
from serving.models.loaded_model import Cache, LoadedModel
from serving.models.model_calls import Part
from serving.models.replay import RecordedRequest
from serving.protocols.mlflow_scoring_output import predictions_json
from serving.settings.groups import LimitSettings

# A caller who has waited this long is watched, to drop the request if the caller goes.
_DISCONNECT_CHECK_DELAY = 0.05
_JSON = ((b"content-type", b"application/json"),)
_LARGEST_CACHED, _LARGEST_CACHED_ANSWER = 4096, 65_536


class PredictEndpoint:
    """The ASGI application of `/predict`: one row."""

    respond = staticmethod(respond)
    """Makes the response that tells of an error."""
    access = PREDICT

    def __init__(
        self,
        lease: Callable[[Scope], LoadedModel],
        limits: LimitSettings,
        ensure_loaded: Callable[[str, float], AbstractAsyncContextManager[None]],
        observers: Sequence[RequestHook] = (),
    ) -> None:
        self._lease, self._limits, self._observers = lease, limits, observers
        self._ensure_loaded = ensure_loaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; errors are raised, for the application's error table to answer."""
        body, leased = await self._taken(scope, receive)
        parts: list[Part] = []
        with leased as live:
            if live.cache is None:
                answer, timing = await self._answered(live, parts, scope, receive, body)
                headers = [*live.headers, (b"server-timing", timing)]
            else:
                answer, headers = await self._cached(live.cache, live, parts, scope, receive, body)
        size = sum(map(len, answer))
        if size > LARGE_BYTES:
            reserve(scope, size)
        headers += [
            *scope.get("answered_in", _JSON),
            (b"content-length", str(size).encode()),
            (b"x-request-id", scope["request_id"].encode()),
        ]
        for observer in self._observers:
            headers += observer.response_headers(scope)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in answer[:-1]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": answer[-1]})
        self.record(live, scope, body, answer, parts)

    def record(
        self,
        live: LoadedModel,
        scope: Scope,
        body: bytes,
        answer: Sequence[bytes],
        parts: Sequence[Part],
    ) -> None:
        """Count and time a request that was answered, and tell those who watch."""
        began, ended = scope["began"], time.perf_counter()
        live.metrics.succeeded.inc()
        live.metrics.seconds.observe(ended - began)
        if self._observers:
            exchange = InferenceEvent(live, scope, body, answer, parts, began, ended)
            for observer in self._observers:
                observer.on_response(exchange)

    async def _taken(self, scope: Scope, receive: Receive) -> tuple[bytes, LoadedModel]:
        """The body, and what is leased to answer it."""
        if scope["method"] != "POST":
            raise HTTPException(405, "Predictions are asked for with POST.", {"Allow": "POST"})
        body = await self._read(scope, receive)
        return body, await self.leased(scope)

    async def leased(self, scope: Scope) -> LoadedModel:
        """What is leased to answer a request, woken if it was asleep."""
        try:
            leased = self._lease(scope)
        except NotLoaded as error:
            leased = await self._loaded(error, scope)
        scope["taken"] = time.perf_counter()
        scope["leased"] = (leased.version.name, leased.version.label)
        return leased

    async def _loaded(self, error: NotLoaded, scope: Scope) -> LoadedModel:
        """Load a model on demand and lease it; the wait is part of the request's deadline."""
        ends = time.perf_counter() + self.seconds(scope)
        while True:
            async with self._ensure_loaded(error.reference, max(0.0, ends - time.perf_counter())):
                try:
                    leased = self._lease(scope)
                except NotLoaded as other:  # another version of a split, or evicted again
                    error = other
                else:
                    scope["seconds"] = max(0.0, ends - time.perf_counter())
                    return leased

    def seconds(self, scope: Scope) -> float:
        """The time that is left for the model to answer."""
        left: float | None = scope.get("seconds")
        return min(self._limits.deadline_seconds, timeout(scope)) if left is None else left

    def is_hurried(self, scope: Scope) -> bool:
        """Return whether the caller, or the waking of the model, leaves less time than the service does."""
        return self.seconds(scope) < self._limits.deadline_seconds

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limits = self._limits
        return await read_json(scope, receive, limits.max_body_bytes, limits.read_timeout_seconds)

    async def _cached(
        self,
        cache: Cache,
        live: LoadedModel,
        parts: list[Part],
        scope: Scope,
        receive: Receive,
        body: bytes,
    ) -> tuple[Sequence[bytes], list[tuple[bytes, bytes]]]:
        """The answer to the very same request that the version gave before, or a new one."""
        asked = (type(self), scope["query_string"], body, scope.get("formats"))
        if found := cache.get(asked):
            live.metrics.cache_hits.inc()
            told, scope["answered_before"], scope["answered_in"] = found
            return [told], [*live.headers, (b"server-timing", b"cache"), (b"x-cache", b"hit")]
        answer, timing = await self._answered(live, parts, scope, receive, body)
        if len(body) <= _LARGEST_CACHED and sum(map(len, answer)) <= _LARGEST_CACHED_ANSWER:
            answer = [b"".join(answer)]
            cache[asked] = answer[0], parts, scope.get("answered_in", _JSON)
        return answer, [*live.headers, (b"server-timing", timing), (b"x-cache", b"miss")]

    async def _answered(
        self, live: LoadedModel, parts: list[Part], scope: Scope, receive: Receive, body: bytes
    ) -> tuple[Sequence[bytes], bytes]:
        """The model's answer, in pieces, and where its time went."""
        with (
            track_outcome(live, parts, partial(self.is_hurried, scope)),
            cancel_on_disconnect(live, parts, receive),
        ):
            answer = await self._answer(live, parts, scope, body)
        live.metrics.rows.inc(sum(len(indices) for indices, _ in parts))
        first, last = parts[0][1], parts[-1][1]
        timing = b"validate;dur=%.2f, queue;dur=%.2f, model;dur=%.2f" % (
            (first.queued - scope["taken"]) * 1e3,
            (first.started - first.queued) * 1e3,
            (last.finished - first.started) * 1e3,
        )
        return answer, timing

    async def _answer(
        self, live: LoadedModel, parts: list[Part], scope: Scope, body: bytes
    ) -> Sequence[bytes]:
        rows, params = parse_row(live, scope, body)
        parts += live.calls.submit(rows, params, self.seconds(scope), raw=live.contract.is_whole)
        ticket = parts[0][1]
        try:
            answer = await ticket.future
        except Unprocessable as error:  # by its type hint, which has no name for the input
            if len(live.contract.columns) != 1:
                raise ModelFailed("it refused an input though it has no type hint") from None
            faults = [
                FieldError((live.contract.columns[0].name, *fault.loc[1:]), fault.msg)
                for fault in error.faults
            ]
            raise live.contract.refusal(faults) from None
        if not answer.is_one_per_row(1) or live.contract.is_whole:
            return [*whole(live, rows, params, ticket, answer)]
        row = answer.materialize().items_json()
        live.recorder.add(RecordedRequest(rows, params, row, ticket.finished - ticket.started))
        return [row_response(row, live.model_json)]


def parse_row(live: LoadedModel, scope: Scope, body: bytes) -> tuple[list[Row], dict[str, Any]]:
    """The one row of a request, and its parameters.

    Raises:
        RequestError: they do not fit the contract.
    """
    query = scope["query_string"].decode("latin-1")
    params = live.contract.read_query(parse_qs(query, keep_blank_values=True)) if query else {}
    return [live.contract.read_row(body)], params


def whole(
    live: LoadedModel, rows: Rows, params: Mapping[str, Any], ticket: PendingRequest, answer: Output
) -> Iterator[bytes]:
    """Render an output that is not one result per row, as `/invocations` does.

    Raises:
        ModelFailed: the contract promises one result per row.
    """
    if not isinstance(answer, LazyPredictions) or not (live.contract.is_whole or live.contract.is_open):
        raise ModelFailed(f"it returned {len(answer)} results for {len(rows)} rows")
    yield b'{"predictions":'
    yield from predictions_json(live.contract.output_columns, answer.table)
    yield b',"model":' + live.model_json + b"}"
    live.recorder.add(RecordedRequest(rows, params, answer, ticket.finished - ticket.started))


@contextmanager
def track_outcome(live: LoadedModel, parts: Sequence[Part], is_hurried: Callable[[], bool]) -> Iterator[None]:
    """Count how a version does; only its own failures count.

    Args:
        live: the version.
        parts: the parts of the request, once they are queued.
        is_hurried: returns whether the request has a shorter deadline than the service's own.
    """
    try:
        yield
    except ModelFailed as error:
        failure = error.exception or "an output that its contract does not allow"
        live.request_counts.fail(failure, [ticket for _, ticket in parts])
        raise
    except ProcessDied:
        live.request_counts.fail("the death of its process", [ticket for _, ticket in parts], died=True)
        raise
    except DeadlineExceeded as error:
        if error.dead or (error.hung and not is_hurried()):
            live.request_counts.fail("no answer within the deadline")
        raise
    live.request_counts.answered += 1


@contextmanager
def cancel_on_disconnect(live: LoadedModel, parts: list[Part], receive: Receive) -> Iterator[None]:
    """Forget what is left of a request when the caller goes, or when it is over."""
    watch: asyncio.Task[None] | None = None

    def slow() -> None:
        nonlocal watch
        watch = asyncio.create_task(_withdraw_if_left(live, parts, receive))

    patience = asyncio.get_running_loop().call_later(_DISCONNECT_CHECK_DELAY, slow)
    try:
        yield
    finally:
        patience.cancel()
        if watch is not None:
            watch.cancel()
        live.calls.withdraw(parts)


async def _withdraw_if_left(live: LoadedModel, parts: list[Part], receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    live.calls.withdraw(parts)
