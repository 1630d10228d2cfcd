"""Repeat a few live batches request by request: the proof that callers may share calls covers only few rows.

The checks use at most one percent of the model's time, and run when no request is queued.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from serving.batching.batcher import Batcher
from serving.batching.pending_request import BatchKey, Group
from serving.batching.sharing_proof import differing_rows
from serving.codecs.model_input import Rows
from serving.codecs.predictions import LazyPredictions
from serving.errors import ServingError
from serving.tasks import BackgroundTasks
from serving.telemetry import trace_context

_MIN_INTERVAL_SECONDS = 1.0
_COST_FACTOR = 100
"""The interval between checks, relative to the seconds that a check takes."""
_MAX_REQUESTS = 4
_MAX_ROWS = 256
_POLL_INTERVAL_SECONDS = 0.02
_MAX_WAIT_SECONDS = 10.0
_DEADLINE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Sample:
    """A request of a shared call, and its part of the output."""

    rows: Rows
    key: BatchKey
    output: pa.RecordBatch


class SharingMonitor:
    """Compares the outputs of requests in shared calls with their outputs in separate calls.

    Args:
        batcher: calls the model.
        on_difference: is called with a reason when the outputs differ.
    """

    def __init__(self, batcher: Batcher, on_difference: Callable[[str], None]) -> None:
        self._batcher, self._on_difference = batcher, on_difference
        self._due = 0.0
        self._checks = BackgroundTasks()

    def observe(self, group: Group, output: pa.RecordBatch) -> None:
        """Check a sample of the requests in a shared call, if a check is due."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _MAX_WAIT_SECONDS + _DEADLINE_SECONDS  # the check sets it when it ends
        requests, start = [], 0
        for request in group:
            requests.append((request, start))
            start += len(request.rows)
        samples = [
            _Sample(request.rows, request.key, output.slice(start, len(request.rows)))
            for request, start in random.sample(requests, min(_MAX_REQUESTS, len(requests)))
            if len(request.rows) <= _MAX_ROWS
        ]
        self._checks.spawn(self._check(samples))

    def check_next(self) -> None:
        """Make a check due, so that the next shared call is checked."""
        self._due = 0.0

    async def settled(self) -> None:
        """Wait until the checks in progress have ended."""
        await self._checks.join()

    async def _check(self, samples: list[_Sample]) -> None:
        trace_context.current.set(None)  # the calls belong to no client's trace
        seconds = 0.0
        for sample in samples:
            await self._until_idle()
            try:
                key = BatchKey(sample.key.params, (object(),), sample.key.in_columns, raw=True)
                request = self._batcher.submit(sample.rows, key, len(sample.rows), _DEADLINE_SECONDS)
                output = await request.future
            except ServingError:
                continue  # the process died, or the queue is full
            seconds += request.finished - request.started
            if not isinstance(output, LazyPredictions) or differing_rows(sample.output, output.table):
                self._on_difference("a live request has another prediction alone than in a shared call")
                break
        self._due = time.monotonic() + max(_MIN_INTERVAL_SECONDS, _COST_FACTOR * seconds)

    async def _until_idle(self) -> None:
        ends = time.monotonic() + _MAX_WAIT_SECONDS
        # Polling: an event would slow down every call of the model.
        while self._batcher.waiting and time.monotonic() < ends:  # noqa: ASYNC110  # polls, as stated above
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
