"""A bounded queue of requests to mirror to the shadow."""

from __future__ import annotations

from collections import deque

import pyarrow as pa

from serving.batching.pending_request import PendingRequest
from serving.codecs.predictions import LazyPredictions
from serving.hooks import InferenceEvent

_MAX_ROWS = 2048
_MAX_BYTES = 64 * 2**20
_MAX_ROWS_PER_REQUEST = 256
_MAX_BYTES_PER_REQUEST = 2**20
_OBJECT_SIZE_FACTOR = 4
"""The approximate ratio of the memory that rows take as Python objects to the size of their JSON."""


class ShadowQueue:
    """Holds the parts of requests, bounded in rows and bytes; an empty queue accepts a part of any size."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[PendingRequest, float]] = deque()
        self._rows, self._bytes = 0, 0.0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, event: InferenceEvent) -> int:
        """Add a request with its predictions; return the number of rows that do not fit."""
        left_out, row_bytes = 0, _row_bytes(event) if self._rows < _MAX_ROWS else 0.0
        for _, pending in event.parts:
            rows = len(pending.rows)
            if self._has_room(rows, rows * row_bytes):
                self._waiting.append((pending, rows * row_bytes))
                self._count(rows, rows * row_bytes)
            else:
                left_out += rows
        return left_out

    def take(self) -> list[PendingRequest]:
        """Remove and return the next requests: one batch, or one large request."""
        taken: list[PendingRequest] = []
        rows, size = 0, 0.0
        while self._waiting:
            pending, pending_size = self._waiting[0]
            if taken and (
                rows + len(pending.rows) > _MAX_ROWS_PER_REQUEST
                or size + pending_size > _MAX_BYTES_PER_REQUEST
            ):
                break
            self._waiting.popleft()
            taken.append(pending)
            rows, size = rows + len(pending.rows), size + pending_size
        self._count(-rows, -size)
        return taken

    def _has_room(self, rows: int, size: float) -> bool:
        return not self._waiting or (self._rows + rows <= _MAX_ROWS and self._bytes + size <= _MAX_BYTES)

    def _count(self, rows: int, size: float) -> None:
        self._rows += rows
        self._bytes = self._bytes + size if self._waiting else 0.0


def _row_bytes(event: InferenceEvent) -> float:
    """Return the approximate memory per row of a request and its predictions, by its body if it has one."""
    if event.body:
        factor = 1 if event.parts[0][1].key.in_columns else _OBJECT_SIZE_FACTOR
        size = factor * len(event.body) + sum(map(len, event.response))
    else:
        size = sum(_table_bytes(pending) for _, pending in event.parts)
    return size / sum(len(pending.rows) for _, pending in event.parts)


def _table_bytes(pending: PendingRequest) -> int:
    rows, output = pending.rows, pending.future.result()
    output_bytes = output.table.nbytes if isinstance(output, LazyPredictions) else 0
    return output_bytes + (rows.nbytes if isinstance(rows, pa.RecordBatch) else 0)
