"""Which rows leave next: what waits while every model process is busy leaves together.

No timer adds latency: a process that is free is given what waits at once. A request that fails, is cancelled
or runs out of time never touches its neighbours in the same batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from serving.batching.chunk_stream import ChunkStream
from serving.batching.latency_model import BatchLatencyModel
from serving.batching.pending import Group, Output, PendingRequest, next_batch, split_for_retry, start_call
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
from serving.processes.replica import Outcome, Replica, ReplicaState
from serving.telemetry.trace_context import ModelCall, current

log = logging.getLogger("serving.batcher")
# Callers who have just been answered are back within a millisecond or so. A model that takes long is given a
# moment for them, or else they would take turns with those who came meanwhile, in batches of half the size.
_SLOW_SECONDS = 0.005
_REST = 0.05
_STREAMED = Predictions((), 1)


class Batcher:
    """Hands waiting requests to the model processes of one version.

    Args:
        encode: makes a table of rows, a group's key and, where that is traced, what is to be carried along.
        read: makes of an answered table what a group asked for: one thing for each row, or `NotSeparable`
            where the group is of several requests.
        most_waiting: requests that may wait.
        deadline: seconds a batch may run before its process is killed.
        pace: tells how many rows can be answered in time.
        shared: whether requests may share a call; asked before each.
        has_process: whether the version has a process that can answer now or later.
        told: what lines of the log tell of the version.
        note: called after each call of the model: its rows, and the seconds that the first of its requests
            had waited, and that it took.
    """

    def __init__(
        self,
        encode: Callable[[Rows, Any, Mapping[bytes, str] | None], bytes],
        read: Callable[[bytes, Group], Output],
        *,
        most_waiting: int,
        deadline: float,
        pace: BatchLatencyModel,
        shared: Callable[[], bool] = lambda: True,
        has_process: Callable[[], bool] = lambda: True,
        note: Callable[[int, float, float], None],
        told: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._encode, self._read, self._told = encode, read, told
        self._most_waiting, self._deadline, self._pace, self._note = most_waiting, deadline, pace, note
        self._shared, self._has_process = shared, has_process
        self._rows_waiting = self._rows_under_way = 0
        self._waiting: deque[PendingRequest] = deque()
        self._again: deque[Group] = deque()
        self._idle: deque[Replica] = deque()
        self._scheduled = False

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def rows(self) -> int:
        """How many rows wait or are under way."""
        return self._rows_waiting + self._rows_under_way

    def add(self, replica: Replica) -> None:
        """Use a model process that has loaded."""
        self._idle.append(replica)
        self._schedule()

    def submit(
        self,
        rows: Rows,
        key: Any,
        most_rows: int,
        deadline: float,
        stream: ChunkStream | None = None,
        *,
        begun: bool = False,
        origin: object = None,
    ) -> PendingRequest:
        """Queue rows that may share a batch, of at most `most_rows`, with others of the same key.

        More rows than that go alone. With a `stream` one row is answered bit by bit. What is `begun` is a
        further part of a request that was taken in; pieces that have the same `origin` may share more rows.

        Raises:
            Overloaded: as many requests as may wait are waiting, or as many as can be answered in time.
        """
        if self._waiting and not begun:
            self._refuse_too_much()
        trace, future = current.get(), asyncio.get_running_loop().create_future()
        ticket = PendingRequest(rows, key, most_rows, future, stream, trace, origin)
        if trace:
            trace.queued = trace.queued or ticket.queued
        ticket.call_after(deadline, self._expire)
        self._waiting.append(ticket)
        self._rows_waiting += len(rows)
        self._schedule()
        return ticket

    def _refuse_too_much(self) -> None:
        if len(self._waiting) >= self._most_waiting:
            raise Overloaded(f"{self._most_waiting} requests wait for this model already.")
        if self.rows >= self._pace.most_rows:
            raise Overloaded("More is asked of this model than it can answer in time.")

    def withdraw(self, ticket: PendingRequest) -> None:
        """Forget a request whose caller has gone; if its batch is under way, that goes on."""
        self._remove(ticket)
        ticket.settle(ClientDisconnected("The caller has gone."))

    def _expire(self, ticket: PendingRequest) -> None:
        seconds = time.perf_counter() - ticket.started if ticket.started else 0.0
        self._remove(ticket)
        detail, hung = "The model did not answer within the deadline.", seconds >= self._deadline / 2
        ticket.settle(DeadlineExceeded(detail, hung=hung, dead=not self._has_process()))

    def _remove(self, ticket: PendingRequest) -> None:
        if not ticket.started:
            self._waiting.remove(ticket)
            self._rows_waiting -= len(ticket.rows)
            ticket.started = time.perf_counter()

    def _schedule(self) -> None:
        # What arrives in the same turn of the loop leaves in the same batch.
        if self._idle and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._again or self._waiting:
            replica = self._free()
            if replica is None:
                return
            self._dispatch_batch(replica, self._next())

    def _next(self) -> Group:
        if self._again:
            return self._again.popleft()
        group = next_batch(self._waiting, shared=self._shared())
        self._rows_waiting -= sum(len(ticket.rows) for ticket in group)
        return group

    def _release(self, replica: Replica) -> None:
        if replica.state is ReplicaState.IDLE:
            self._idle.append(replica)
        self._dispatch()

    def _free(self) -> Replica | None:
        while self._idle:
            replica = self._idle.popleft()
            if replica.state is ReplicaState.IDLE:
                return replica
        return None

    def _dispatch_batch(self, replica: Replica, group: Group) -> None:
        now = time.perf_counter()
        for ticket in group:
            ticket.started = now
        group = [ticket for ticket in group if not ticket.future.done()]
        rows = concat([ticket.rows for ticket in group])
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
        hanging = loop.call_later(self._deadline, replica.kill_hung)
        started = loop.time()
        self._rows_under_way += len(rows)

        def done(outcome: Outcome) -> None:
            hanging.cancel()
            took = loop.time() - started
            if call:
                call.end(failed=not isinstance(outcome, bytes))
            self._rows_under_way -= len(rows)
            self._note(len(rows), now - group[0].queued, time.perf_counter() - now)
            if isinstance(outcome, bytes):
                self._pace.observe(len(rows), group[0].most_rows, took)
            self._finish(group, outcome)
            if took < _SLOW_SECONDS:
                self._release(replica)
            else:
                loop.call_later(took * _REST, self._release, replica)

        replica.submit(table, done)

    def _run_stream(
        self,
        replica: Replica,
        ticket: PendingRequest,
        stream: ChunkStream,
        table: bytes,
        call: ModelCall | None,
    ) -> None:
        ticket.cancel_timeout()

        def hung() -> None:
            ticket.settle(DeadlineExceeded("The model did not go on within the deadline.", hung=True))
            replica.kill_hung()

        def stalled() -> None:
            if self._waiting or self._again:
                detail = "The caller did not read the answer while other requests waited for the model."
                ticket.settle(DeadlineExceeded(detail, hung=False))

        def done(outcome: Outcome) -> None:
            stream.detach()
            if call:
                call.end(failed=not isinstance(outcome, bytes))
            self._note(1, ticket.started - ticket.queued, time.perf_counter() - ticket.started)
            if isinstance(outcome, bytes):
                ticket.settle(_STREAMED)
            else:
                self._fail([ticket], outcome)
            self._release(replica)

        replica.submit(table, done, stream.feed)
        stream.attach(replica, hung, stalled)

    def _finish(self, group: Group, outcome: Outcome) -> None:
        if not isinstance(outcome, bytes):
            self._fail(group, outcome)
            return
        try:
            predictions = self._read(outcome, group)
            if len(group) == 1:  # whatever it is, it is this request's
                group[0].settle(predictions.part(0, len(predictions)))
                return
        except ModelFailed as error:
            self._fail(group, error)
            return
        start = 0
        for ticket in group:
            end = start + len(ticket.rows)
            try:
                ticket.settle(predictions.part(start, end))
            except ModelFailed as error:
                ticket.settle(error)
            start = end

    def _fail(self, group: Group, error: ModelFailed | ProcessDied | Unprocessable) -> None:
        again = split_for_retry(group, error)
        self._again.extendleft(reversed(again))
        if isinstance(error, ProcessDied):
            log.warning("a model process died; requests that it had: %d", len(group), extra=self._told)
        trying = [ticket for smaller in again for ticket in smaller]
        self._settle([ticket for ticket in group if ticket not in trying], error)
        for ticket in trying:
            ticket.retried |= isinstance(error, ProcessDied)

    @staticmethod
    def _settle(group: Group, error: ServingError) -> None:
        for ticket in group:
            ticket.settle(error)
