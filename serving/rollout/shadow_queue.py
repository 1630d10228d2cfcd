"""Requests that were answered and wait to be asked again: as many as there is room for."""

from __future__ import annotations

from collections import deque

import pyarrow as pa

from serving.batching.pending import PendingRequest
from serving.codecs.predictions import LazyPredictions
from serving.hooks import InferenceEvent

_MAX_ROWS = 2048
_MAX_BYTES = 64 * 2**20
_MAX_ROWS_PER_REQUEST = 256
_MAX_BYTES_PER_REQUEST = 2**20
_OBJECTS = 4
"""Times the JSON that rows as objects have come in, which is about the memory that they take."""


class ShadowQueue:
    """Requests that wait in parts, bounded in rows and bytes; an empty one takes any first part."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[PendingRequest, float]] = deque()
        self._rows, self._bytes = 0, 0.0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, exchange: InferenceEvent) -> int:
        """Note what a request asked and was answered; gives how many rows there is no room for."""
        left_out, row_bytes = 0, _row_bytes(exchange) if self._rows < _MAX_ROWS else 0.0
        for _, ticket in exchange.parts:
            rows = len(ticket.rows)
            if self._has_room(rows, rows * row_bytes):
                self._waiting.append((ticket, rows * row_bytes))
                self._count(rows, rows * row_bytes)
            else:
                left_out += rows
        return left_out

    def take(self) -> list[PendingRequest]:
        """What is asked next: one batch, or one large request."""
        taken: list[PendingRequest] = []
        rows, size = 0, 0.0
        while self._waiting:
            ticket, more = self._waiting[0]
            if taken and (
                rows + len(ticket.rows) > _MAX_ROWS_PER_REQUEST or size + more > _MAX_BYTES_PER_REQUEST
            ):
                break
            self._waiting.popleft()
            taken.append(ticket)
            rows, size = rows + len(ticket.rows), size + more
        self._count(-rows, -size)
        return taken

    def _has_room(self, rows: int, size: float) -> bool:
        return not self._waiting or (self._rows + rows <= _MAX_ROWS and self._bytes + size <= _MAX_BYTES)

    def _count(self, rows: int, size: float) -> None:
        self._rows += rows
        self._bytes = self._bytes + size if self._waiting else 0.0


def _row_bytes(exchange: InferenceEvent) -> float:
    """About what a row of a request takes in memory, with its answer; by its body where there is one."""
    if exchange.body:
        times = 1 if exchange.parts[0][1].key.in_columns else _OBJECTS
        size = times * len(exchange.body) + sum(map(len, exchange.answer))
    else:
        size = sum(_table_bytes(ticket) for _, ticket in exchange.parts)
    return size / sum(len(ticket.rows) for _, ticket in exchange.parts)


def _table_bytes(ticket: PendingRequest) -> int:
    rows, answer = ticket.rows, ticket.future.result()
    answered = answer.table.nbytes if isinstance(answer, LazyPredictions) else 0
    return answered + (rows.nbytes if isinstance(rows, pa.RecordBatch) else 0)
