"""Dispatch queued requests to model processes. Requests that wait while all processes are busy form a batch.

No timer adds latency: an idle process receives the queued requests immediately. A request that fails, is
cancelled or times out never affects the other requests in its batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from serving.batching.batch_selection import next_batch, split_for_retry
from serving.batching.chunk_stream import ChunkStream
from serving.batching.latency_model import BatchLatencyModel
from serving.batching.pending_request import Group, Output, PendingRequest, start_call
from serving.codecs.model_input import Rows, concat
from serving.codecs.predictions import Predictions
from serving.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    ModelFailed,
    Overloaded,
    ProcessDied,
    ServingError,
    Unprocessable,
)
from serving.processes.call_outcome import Outcome
from serving.processes.replica import Replica, ReplicaState
from serving.telemetry.trace_context import ModelCall, current

log = logging.getLogger("serving.batcher")
# A client that has received its prediction often sends its next request within a millisecond. After a slow
# call, the process therefore stays idle for a fraction of the call's time. Without this pause, such clients
# and those that wait already would alternate, in batches of half the size.
_SLOW_CALL_SECONDS = 0.005
_PAUSE_FACTOR = 0.05
_STREAMED = Predictions((), 1)


class Batcher:
    """Sends queued requests to the model processes of one version.

    Args:
        encode: returns the encoded table for rows, the key of the batch and the headers of its trace, if any.
        decode: returns the predictions in an encoded output, for the requests of the batch. It raises
            `NotSeparable` if several requests share the batch and the output cannot be split.
        max_queue_size: maximum number of queued requests.
        call_seconds: seconds that a call may take before its process is killed.
        latency_model: estimates the number of rows that can be processed in time.
        shared: returns whether requests may share a call; evaluated for each batch.
        has_process: returns whether the version has a process, idle or busy.
        on_call: is called after each call with its number of rows, the seconds that its first request was
            queued, and the seconds that the call took.
        log_context: fields for log messages.
    """

    def __init__(
        self,
        encode: Callable[[Rows, Any, Mapping[bytes, str] | None], bytes],
        decode: Callable[[bytes, Group], Output],
        *,
        max_queue_size: int,
        call_seconds: float,
        latency_model: BatchLatencyModel,
        shared: Callable[[], bool] = lambda: True,
        has_process: Callable[[], bool] = lambda: True,
        on_call: Callable[[int, float, float], None],
        log_context: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._encode, self._decode, self._log_context = encode, decode, log_context
        self._max_queue_size, self._call_seconds = max_queue_size, call_seconds
        self._latency_model, self._on_call = latency_model, on_call
        self._shared, self._has_process = shared, has_process
        self._rows_queued = self._rows_running = 0
        self._queue: deque[PendingRequest] = deque()
        self._retry_queue: deque[Group] = deque()
        self._idle: deque[Replica] = deque()
        self._scheduled = False

    @property
    def waiting(self) -> int:
        """The number of queued requests."""
        return len(self._queue)

    @property
    def rows(self) -> int:
        """The number of rows that are queued or in a model process."""
        return self._rows_queued + self._rows_running

    def add(self, replica: Replica) -> None:
        """Use a model process that has loaded."""
        self._idle.append(replica)
        self._schedule()

    def submit(
        self,
        rows: Rows,
        key: Any,
        max_rows: int,
        deadline: float,
        stream: ChunkStream | None = None,
        *,
        admitted: bool = False,
        origin: object = None,
    ) -> PendingRequest:
        """Queue rows, which may share a batch with other requests that have the same key.

        Args:
            rows: the rows.
            key: batch key.
            max_rows: maximum number of rows in the batch; a request with more rows is a batch of its own.
            deadline: seconds until the request times out.
            stream: receives the chunks of the output, for a request of one row.
            admitted: other rows of the request are queued already, so that overload does not reject it.
            origin: identifies the request that the rows belong to. Rows with the same origin may exceed
                `max_rows` in a batch.

        Raises:
            Overloaded: the queue is full, or holds as many rows as the model can process in time.
        """
        if self._queue and not admitted:
            self._check_overload()
        trace, future = current.get(), asyncio.get_running_loop().create_future()
        request = PendingRequest(rows, key, max_rows, future, stream, trace, origin)
        if trace:
            trace.queued = trace.queued or request.queued
        request.call_after(deadline, self._expire)
        self._queue.append(request)
        self._rows_queued += len(rows)
        self._schedule()
        return request

    def _check_overload(self) -> None:
        if len(self._queue) >= self._max_queue_size:
            raise Overloaded(f"The queue of this model is full ({self._max_queue_size} requests).")
        if self.rows >= self._latency_model.max_rows:
            raise Overloaded("This model receives more requests than it can process in time.")

    def withdraw(self, request: PendingRequest) -> None:
        """Cancel a request whose client has disconnected. A batch that is already running continues."""
        self._remove(request)
        request.settle(ClientDisconnected("The client has disconnected."))

    def _expire(self, request: PendingRequest) -> None:
        seconds = time.perf_counter() - request.started if request.started else 0.0
        self._remove(request)
        detail, hung = "The model did not respond within the deadline.", seconds >= self._call_seconds / 2
        request.settle(DeadlineExceeded(detail, hung=hung, dead=not self._has_process()))

    def _remove(self, request: PendingRequest) -> None:
        if not request.started:
            self._queue.remove(request)
            self._rows_queued -= len(request.rows)
            request.started = time.perf_counter()

    def _schedule(self) -> None:
        # Requests that arrive in the same iteration of the event loop form one batch.
        if self._idle and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._retry_queue or self._queue:
            replica = self._next_idle()
            if replica is None:
                return
            self._dispatch_batch(replica, self._next())

    def _next(self) -> Group:
        if self._retry_queue:
            return self._retry_queue.popleft()
        group = next_batch(self._queue, shared=self._shared())
        self._rows_queued -= sum(len(request.rows) for request in group)
        return group

    def _release(self, replica: Replica) -> None:
        if replica.state is ReplicaState.IDLE:
            self._idle.append(replica)
        self._dispatch()

    def _next_idle(self) -> Replica | None:
        while self._idle:
            replica = self._idle.popleft()
            if replica.state is ReplicaState.IDLE:
                return replica
        return None

    def _dispatch_batch(self, replica: Replica, group: Group) -> None:
        now = time.perf_counter()
        for request in group:
            request.started = now
        group = [request for request in group if not request.future.done()]
        rows = concat([request.rows for request in group])
        call = start_call(group, len(rows), now)
        try:
            table = self._encode(rows, group[0].key, call.metadata if call else None) if group else b""
        except ModelFailed as error:
            self._settle(group, error)
            table = b""
        if not table:
            self._idle.appendleft(replica)
            return
        if stream := group[0].stream:
            self._run_stream(replica, group[0], stream, table, call)
            return
        loop = asyncio.get_running_loop()
        timeout = loop.call_later(self._call_seconds, replica.kill_hung)
        started = loop.time()
        self._rows_running += len(rows)

        def done(outcome: Outcome) -> None:
            timeout.cancel()
            seconds = loop.time() - started
            if call:
                call.end(failed=not isinstance(outcome, bytes))
            self._rows_running -= len(rows)
            self._on_call(len(rows), now - group[0].queued, time.perf_counter() - now)
            if isinstance(outcome, bytes):
                self._latency_model.observe(len(rows), group[0].max_rows, seconds)
            self._finish(group, outcome)
            if seconds < _SLOW_CALL_SECONDS:
                self._release(replica)
            else:
                loop.call_later(seconds * _PAUSE_FACTOR, self._release, replica)

        replica.submit(table, done)

    def _run_stream(
        self,
        replica: Replica,
        request: PendingRequest,
        stream: ChunkStream,
        table: bytes,
        call: ModelCall | None,
    ) -> None:
        request.cancel_timeout()

        def hung() -> None:
            detail = "The model did not send the next chunk within the deadline."
            request.settle(DeadlineExceeded(detail, hung=True))
            replica.kill_hung()

        def stalled() -> None:
            if self._queue or self._retry_queue:
                detail = "The client did not read the response while other requests waited for the model."
                request.settle(DeadlineExceeded(detail, hung=False))

        def done(outcome: Outcome) -> None:
            stream.detach()
            if call:
                call.end(failed=not isinstance(outcome, bytes))
            self._on_call(1, request.started - request.queued, time.perf_counter() - request.started)
            if isinstance(outcome, bytes):
                request.settle(_STREAMED)
            else:
                self._fail([request], outcome)
            self._release(replica)

        replica.submit(table, done, stream.feed)
        stream.attach(replica, hung, stalled)

    def _finish(self, group: Group, outcome: Outcome) -> None:
        if not isinstance(outcome, bytes):
            self._fail(group, outcome)
            return
        try:
            predictions = self._decode(outcome, group)
            if len(group) == 1:  # the whole output belongs to this request, whatever its length
                group[0].settle(predictions.part(0, len(predictions)))
                return
        except ModelFailed as error:
            self._fail(group, error)
            return
        start = 0
        for request in group:
            end = start + len(request.rows)
            try:
                request.settle(predictions.part(start, end))
            except ModelFailed as error:
                request.settle(error)
            start = end

    def _fail(self, group: Group, error: ModelFailed | ProcessDied | Unprocessable) -> None:
        retries = split_for_retry(group, error)
        self._retry_queue.extendleft(reversed(retries))
        if isinstance(error, ProcessDied):
            message = "a model process died while it processed %d requests"
            log.warning(message, len(group), extra=self._log_context)
        retried = [request for retry in retries for request in retry]
        self._settle([request for request in group if request not in retried], error)
        for request in retried:
            request.retried |= isinstance(error, ProcessDied)

    @staticmethod
    def _settle(group: Group, error: ServingError) -> None:
        for request in group:
            request.settle(error)
