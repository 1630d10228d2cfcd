"""Requests that wait for a model, and which of them go together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from serving.batching.chunk_stream import ChunkStream
from serving.codecs.model_input import BatchShape, Rows
from serving.codecs.predictions import LazyPredictions, Predictions
from serving.errors import ModelFailed, NotSeparable, ProcessDied, ServingError, Unprocessable
from serving.telemetry.trace_context import ModelCall, TraceContext

Output: TypeAlias = Predictions | LazyPredictions

_MAX_ROWS_OF_ONE_REQUEST = 4096
"""Rows of one request, which has come in pieces, that may share a call."""


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What the rows of one batch share."""

    params: str
    likeness: BatchShape
    in_columns: bool
    raw: bool


class PendingRequest:
    """One request in the batcher, or a piece of one; settled exactly once, by `settle`.

    With a `stream` it is answered bit by bit, alone. Pieces of one request have the same `origin`.
    """

    __slots__ = (
        "_timer",
        "finished",
        "future",
        "key",
        "most_rows",
        "origin",
        "queued",
        "retried",
        "rows",
        "started",
        "stream",
        "trace",
    )

    def __init__(
        self,
        rows: Rows,
        key: Any,
        most_rows: int,
        future: asyncio.Future[Output],
        stream: ChunkStream | None = None,
        trace: TraceContext | None = None,
        origin: object = None,
    ) -> None:
        self.rows, self.stream, self.origin = rows, stream, origin
        self.key = key
        self.most_rows = most_rows
        self.future = future
        self.retried = False
        self.queued = time.perf_counter()
        self.started = self.finished = 0.0
        self.trace = trace
        self._timer: asyncio.TimerHandle | None = None

    def call_after(self, seconds: float, call: Callable[[PendingRequest], None]) -> None:
        """Have `call` called if it is not settled within `seconds`."""
        self._timer = self.future.get_loop().call_later(seconds, call, self)

    def cancel_timeout(self) -> None:
        """Take back what `call_after` has set."""
        if self._timer is not None:
            self._timer.cancel()

    def settle(self, outcome: Output | ServingError) -> None:
        """Give the waiting request its predictions or its error; the first call counts."""
        self.cancel_timeout()
        if self.future.done():
            return
        if self.stream is not None:
            self.stream.end()
        self.finished = time.perf_counter()
        if isinstance(outcome, ServingError):
            self.future.set_exception(outcome)
            self.future.exception()  # seen: its request may have failed already by another part
        else:
            self.future.set_result(outcome)


Group = list[PendingRequest]


def next_batch(waiting: deque[PendingRequest], *, shared: bool) -> Group:
    """Take the next batch out of `waiting`: the oldest request, and those like it that fit beside it.

    Nothing goes beside it unless calls are `shared`, nor beside a request that is answered bit by bit.
    """
    first = waiting.popleft()
    if not shared or first.stream is not None:
        return [first]
    group, rows, passed = [first], len(first.rows), []
    most = first.most_rows if first.origin is None else _MAX_ROWS_OF_ONE_REQUEST
    while waiting and rows < most:
        ticket = waiting.popleft()
        is_piece = first.origin is not None and ticket.origin is first.origin
        fits = rows + len(ticket.rows) <= (most if is_piece else first.most_rows)
        if ticket.key == first.key and ticket.stream is None and fits:
            group.append(ticket)
            rows += len(ticket.rows)
        else:
            passed.append(ticket)
    waiting.extendleft(reversed(passed))
    return group


def split_for_retry(group: Group, error: ModelFailed | ProcessDied | Unprocessable) -> list[Group]:
    """The smaller groups in which to try a failed one again; none where that would tell nothing new.

    An exception is hunted down by halves, so that a poison row fails alone. A death costs a new process, so
    that each request is tried once more, alone; one of which the caller has heard a part can't begin anew.
    What can't be told apart is called for alone, request by request.
    """
    if group[0].stream is not None and group[0].stream.heard:
        return []
    if isinstance(error, NotSeparable):
        return [[ticket] for ticket in group]
    if isinstance(error, ProcessDied):
        return [[ticket] for ticket in group if not ticket.retried]
    middle = len(group) // 2
    return [group[:middle], group[middle:]] if middle else []


def start_call(group: Group, rows: int, now: float) -> ModelCall | None:
    """The call of the model that begins with this batch, noted with each request of it that is recorded."""
    if not group or group[0].trace is None:
        return None
    traces = dict.fromkeys(ticket.trace for ticket in group if ticket.trace and ticket.trace.is_recorded)
    call = ModelCall([*traces] or [group[0].trace], len(group), rows, now)
    for trace in traces:
        trace.calls.append(call)
    return call
