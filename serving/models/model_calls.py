"""The calls of a model version: form them from requests, and split their output among the requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from serving.batching.batcher import Batcher
from serving.batching.chunk_stream import ChunkStream
from serving.batching.latency_model import BatchLatencyModel
from serving.batching.pending_request import BatchKey, Group, Output, PendingRequest
from serving.batching.sharing_monitor import SharingMonitor
from serving.batching.sharing_proof import UNDECIDED, Basis, Sharing
from serving.codecs import model_output
from serving.codecs.model_input import Rows, canonical_json, is_indivisible, lacks_values
from serving.codecs.predictions import LazyPredictions
from serving.contract.contract import Contract, Row
from serving.errors import NotSeparable
from serving.models.replay import RecordedRequest
from serving.processes.replica import Replica
from serving.settings.groups import LimitSettings, RuntimeSettings
from serving.version import Version

log = logging.getLogger("serving.model")

# A larger request is split into batches of this size, so that other requests run in between.
_MAX_BULK_ROWS = 4096
_MAX_EAGER_ROWS = 512
"""Predictions for more rows are rendered on demand, to keep the event loop responsive."""

Part = tuple[Sequence[int], PendingRequest]
"""A queued part of a request, and the indices of its rows within the request."""


class ModelCalls:
    """Queues requests for the processes of a version and returns to each its part of the output.

    Args:
        version: the model version.
        contract: returns the current contract of the version.
        limits: limits on queued requests and their deadline.
        runtime: maximum number of rows per call, and number of processes.
        record: is called with a request and its output, to be repeated on the next candidate.
        on_call: is called after each call of the model (see `Batcher`).
        has_process: returns whether one of the processes is running.
    """

    def __init__(
        self,
        version: Version,
        contract: Callable[[], Contract],
        limits: LimitSettings,
        runtime: RuntimeSettings,
        record: Callable[[RecordedRequest], None],
        on_call: Callable[[int, float, float], None],
        has_process: Callable[[], bool] = lambda: True,
    ) -> None:
        self._version, self._contract, self._record = version, contract, record
        self._max_batch_rows, self._deadline_seconds = runtime.max_batch_rows, limits.deadline_seconds
        self.sharing = UNDECIDED
        """Whether callers may share a call."""
        self._batcher = Batcher(
            lambda rows, key, trace_headers: contract().layout.encode(rows, key.params, trace_headers),
            self._decode,
            max_queue_size=limits.max_queue_size,
            call_seconds=limits.deadline_seconds,
            latency_model=BatchLatencyModel(limits.max_queue_seconds, runtime.replicas),
            shared=lambda: self.sharing.allowed,
            has_process=has_process,
            log_context=version.in_logs,
            on_call=on_call,
        )
        self.monitor = SharingMonitor(self._batcher, self.stop_sharing)
        """Verifies the predictions of shared calls."""

    @property
    def waiting(self) -> int:
        """The number of queued requests."""
        return self._batcher.waiting

    @property
    def in_progress(self) -> bool:
        """Whether a model process is working and no request is queued."""
        return self._batcher.rows > 0 and not self._batcher.waiting

    def add(self, replica: Replica) -> None:
        """Use a model process that has loaded."""
        self._batcher.add(replica)

    def set_sharing(self, sharing: Sharing) -> None:
        """Set whether callers may share calls."""
        self.sharing = sharing
        state = "enabled" if sharing.allowed else "disabled"
        message = "batching of requests is %s for %s: %s"
        log.info(message, state, self._version, sharing.reason, extra=self._version.in_logs)

    def stop_sharing(self, reason: str) -> None:
        """Run each request in its own call from now on, unless the metadata allows sharing explicitly."""
        if self.sharing.allowed and self.sharing.basis is not Basis.METADATA:
            self.sharing = Sharing(False, Basis.MONITORING, reason)
            message = "disabled batching of requests for %s, each request is a separate call now: %s"
            log.warning(message, self._version, reason, extra=self._version.in_logs)

    def stop_sharing_after(self, parts: Sequence[Part]) -> None:
        """Stop sharing because a part of a request did not return one result per row.

        A part without values has no result whatever the model does; this proves nothing about the model.
        """
        if not any(lacks_values(pending.rows) for _, pending in parts):
            self.stop_sharing("a part of a large request did not return one result per row")

    def submit(
        self,
        rows: Rows,
        params: Mapping[str, Any],
        deadline: float,
        *,
        raw: bool = False,
        admitted: bool = False,
        origin: object = None,
        alone: bool = False,
    ) -> list[Part]:
        """Queue rows that fit the contract.

        The rows are one call, unless callers may share calls. Then a large table is cut, and rows that no
        single table can hold are separated.

        Args:
            rows: the rows.
            params: parameters of the model.
            deadline: seconds until the request times out.
            raw: return the output tables (as `LazyPredictions`) instead of rendered predictions.
            admitted: other rows of the request are queued already, so that overload does not reject it.
            origin: identifies the request that the rows belong to, if it is queued in several steps.
            alone: put the rows into one separate call in any case.

        Raises:
            Overloaded: the queue is full.
            Unprocessable: no single table can hold the rows, and they may not be separated.
        """
        text, in_columns = canonical_json(params), isinstance(rows, pa.RecordBatch)
        shared = self.sharing.allowed and not alone
        parts: list[Part] = []
        try:
            for shape, indices, group in self._contract().layout.groups(rows, split=shared):
                key = BatchKey(text, (object(),) if alone else shape, in_columns, raw)
                size = len(group) or 1
                if shared and isinstance(group, pa.RecordBatch) and not is_indivisible(group):
                    size = _MAX_BULK_ROWS
                for start in range(0, len(group) or 1, size):  # a table without columns has no rows
                    piece = group.slice(start, size) if isinstance(group, pa.RecordBatch) else group
                    max_rows = self._max_batch_rows if shared else len(piece) or 1
                    pending = self._batcher.submit(
                        piece, key, max_rows, deadline, admitted=admitted or bool(parts), origin=origin
                    )
                    parts.append((indices[start : start + len(piece)], pending))
        except BaseException:
            self.withdraw(parts)
            raise
        return parts

    def submit_stream(
        self,
        row: Row,
        params: Mapping[str, Any],
        deadline: float,
        reserve: Callable[[int], None] | None = None,
    ) -> tuple[Part, ChunkStream]:
        """Queue a row whose output is streamed; the first chunk must arrive within `deadline` seconds.

        `reserve` reserves memory for chunks that the caller has not read yet (see `ChunkStream`).

        Raises:
            Overloaded: the queue is full.
        """
        ((shape, indices, group),) = self._contract().layout.groups([row])
        key = BatchKey(canonical_json(params), shape, in_columns=False, raw=False)
        stream = ChunkStream(self._deadline_seconds, reserve)
        return (indices, self._batcher.submit(group, key, 1, deadline, stream)), stream

    async def output(
        self, rows: Rows, params: Mapping[str, Any], parts: list[Part], ends: float
    ) -> pa.RecordBatch:
        """Return the output table for rows that were submitted `raw` in these parts, in their order.

        If a part does not return one result per row, the request is repeated as one call. That call must end
        before `ends`, in the time of `time.perf_counter`.

        Raises:
            ServingError: one of the parts failed.
        """
        outputs = [(indices, pending, await pending.future) for indices, pending in parts]
        if len(outputs) > 1:
            # If sharing was disabled in the meantime, the outputs of the parts may be wrong.
            is_split = all(output.is_one_per_row(len(pending.rows)) for _, pending, output in outputs)
            if self.sharing.allowed and is_split:
                tables = [output.table for _, _, output in outputs if isinstance(output, LazyPredictions)]
                if (
                    table := model_output.concat_ordered(tables, [indices for indices, _, _ in outputs])
                ) is not None:
                    return table
            else:
                self.stop_sharing_after(parts)
            left = max(0.0, ends - time.perf_counter())
            parts[:] = self.submit(rows, params, left, raw=True, admitted=True, alone=True)
            outputs = [(indices, pending, await pending.future) for indices, pending in parts]
        ((_, pending, output),) = outputs
        assert isinstance(output, LazyPredictions)
        self._record(RecordedRequest(rows, params, output, pending.finished - pending.started))
        return output.table

    def withdraw(self, parts: list[Part]) -> None:
        """Withdraw a request whose client has disconnected, or what is left of a finished one."""
        for _, pending in parts:
            if not pending.finished:  # its future may be done: it is cancelled together with its awaiter
                self._batcher.withdraw(pending)

    def _decode(self, encoded: bytes, group: Group) -> Output:
        table, key = model_output.decode(encoded), group[0].key
        whole = model_output.form(table) is model_output.OutputForm.WHOLE
        rows = sum([len(pending.rows) for pending in group])
        if len(group) > 1:
            if whole or len(table) != rows or model_output.is_reordered(table):
                self.stop_sharing("a shared call did not return one result per row")
                raise NotSeparable(f"it returned {len(table)} results for {rows} rows")
            if self.sharing.basis is Basis.PROOF:
                self.monitor.observe(group, table)
        if key.raw or whole or len(table) != rows or rows > _MAX_EAGER_ROWS:
            return LazyPredictions(self._contract().predictions, table, whole)
        return self._contract().predictions(table)
