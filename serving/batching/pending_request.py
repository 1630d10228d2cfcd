"""A queued request, and the model call that it becomes part of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from serving.batching.chunk_stream import ChunkStream
from serving.codecs.model_input import BatchShape, Rows
from serving.codecs.predictions import LazyPredictions, Predictions
from serving.errors import ServingError
from serving.telemetry.trace_context import ModelCall, TraceContext

Output: TypeAlias = Predictions | LazyPredictions


@dataclass(frozen=True, slots=True)
class BatchKey:
    """The properties that all requests of a batch have in common.

    `in_columns` is whether the rows are a record batch, `raw` whether the request needs the output table.
    """

    params: str
    shape: BatchShape
    in_columns: bool
    raw: bool


class PendingRequest:
    """A request in the batcher, or a part of one. `settle` settles it exactly once.

    A request with a `stream` is a batch of its own. Parts of one request have the same `origin`.
    """

    __slots__ = (
        "_timer",
        "finished",
        "future",
        "key",
        "max_rows",
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
        max_rows: int,
        future: asyncio.Future[Output],
        stream: ChunkStream | None = None,
        trace: TraceContext | None = None,
        origin: object = None,
    ) -> None:
        self.rows, self.stream, self.origin = rows, stream, origin
        self.key = key
        self.max_rows = max_rows
        self.future = future
        self.retried = False
        self.queued = time.perf_counter()
        self.started = self.finished = 0.0
        self.trace = trace
        self._timer: asyncio.TimerHandle | None = None

    def call_after(self, seconds: float, call: Callable[[PendingRequest], None]) -> None:
        """Schedule `call` for the case that the request is not settled within `seconds`."""
        self._timer = self.future.get_loop().call_later(seconds, call, self)

    def cancel_timeout(self) -> None:
        """Cancel what `call_after` has scheduled."""
        if self._timer is not None:
            self._timer.cancel()

    def settle(self, outcome: Output | ServingError) -> None:
        """Set the output or the error of the request; later calls have no effect."""
        self.cancel_timeout()
        if self.future.done():
            return
        if self.stream is not None:
            self.stream.end()
        self.finished = time.perf_counter()
        if isinstance(outcome, ServingError):
            self.future.set_exception(outcome)
            # Mark the exception as retrieved: another part may have failed the request already.
            self.future.exception()
        else:
            self.future.set_result(outcome)


Group = list[PendingRequest]


def start_call(group: Group, rows: int, now: float) -> ModelCall | None:
    """Return the model call of this batch, and add it to the recorded traces of its requests."""
    if not group or group[0].trace is None:
        return None
    traces = dict.fromkeys(request.trace for request in group if request.trace and request.trace.is_recorded)
    call = ModelCall([*traces] or [group[0].trace], len(group), rows, now)
    for trace in traces:
        trace.calls.append(call)
    return call
