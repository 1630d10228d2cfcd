"""Runs a few live batches again, request by request: the proof that callers may share calls is of few rows.

It costs at most a hundredth of the model's time, and waits for a moment in which no request waits.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from serving.batching.batcher import Batcher
from serving.batching.pending import BatchKey, Group
from serving.batching.sharing_proof import differing_rows
from serving.codecs.model_input import Rows
from serving.codecs.predictions import LazyPredictions
from serving.errors import ServingError
from serving.tasks import BackgroundTasks
from serving.telemetry import trace_context

_MIN_INTERVAL_SECONDS = 1.0
_COST_FACTOR = 100
"""Times the seconds that a check took: so it takes a hundredth of the model's time at most."""
_MAX_REQUESTS = 4
_MAX_ROWS = 256
_POLL_INTERVAL_SECONDS = 0.02
_MAX_WAIT_SECONDS = 10.0
_DEADLINE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Sample:
    """A request of a shared call, and what it got."""

    rows: Rows
    key: BatchKey
    output: pa.RecordBatch


class SharingMonitor:
    """Compares what requests got from shared calls with what they get from a call of their own.

    Args:
        batcher: calls the model.
        on_difference: is called with the reason when the two differ.
    """

    def __init__(self, batcher: Batcher, on_difference: Callable[[str], None]) -> None:
        self._batcher, self._on_difference = batcher, on_difference
        self._due = 0.0
        self._checks = BackgroundTasks()

    def observe(self, group: Group, output: pa.RecordBatch) -> None:
        """Take a sample of a shared call, if one is due."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _MAX_WAIT_SECONDS + _DEADLINE_SECONDS  # until the check has set it
        samples, start = [], 0
        for ticket in group:
            samples.append((ticket, start))
            start += len(ticket.rows)
        chosen = random.sample(samples, min(_MAX_REQUESTS, len(samples)))
        self._checks.spawn(
            self._check(
                [
                    _Sample(ticket.rows, ticket.key, output.slice(start, len(ticket.rows)))
                    for ticket, start in chosen
                    if len(ticket.rows) <= _MAX_ROWS
                ]
            )
        )

    def check_next(self) -> None:
        """Check the next shared call, however soon it comes."""
        self._due = 0.0

    async def settled(self) -> None:
        """Wait until the checks that are in progress have ended."""
        await self._checks.join()

    async def _check(self, samples: list[_Sample]) -> None:
        trace_context.current.set(None)  # no caller's trace has these calls
        seconds = 0.0
        for sample in samples:
            await self._until_idle()
            try:
                key = BatchKey(sample.key.params, (object(),), sample.key.in_columns, raw=True)
                ticket = self._batcher.submit(sample.rows, key, len(sample.rows), _DEADLINE_SECONDS)
                answer = await ticket.future
            except ServingError:
                continue  # the process died, or the queue is full
            seconds += ticket.finished - ticket.started
            if not isinstance(answer, LazyPredictions) or differing_rows(sample.output, answer.table):
                self._on_difference("a live request got another prediction alone than in a shared call")
                break
        self._due = time.monotonic() + max(_MIN_INTERVAL_SECONDS, _COST_FACTOR * seconds)

    async def _until_idle(self) -> None:
        ends = time.monotonic() + _MAX_WAIT_SECONDS
        while self._batcher.waiting and time.monotonic() < ends:  # noqa: ASYNC110  # an event would cost each call
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
