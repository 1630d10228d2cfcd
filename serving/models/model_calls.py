"""The calls of one model version: which requests share one, and what each of them gets of its output."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from serving.batching.batcher import Batcher
from serving.batching.chunk_stream import ChunkStream
from serving.batching.latency_model import BatchLatencyModel
from serving.batching.pending import BatchKey, Group, Output, PendingRequest
from serving.batching.sharing_monitor import SharingMonitor
from serving.batching.sharing_proof import UNDECIDED, Basis, Sharing
from serving.codecs import model_output
from serving.codecs.model_input import Rows, canonical_json, concat_ordered, is_own
from serving.codecs.predictions import LazyPredictions
from serving.contract.contract import Contract, Row
from serving.errors import NotSeparable
from serving.models.replay import RecordedRequest
from serving.processes.replica import Replica
from serving.settings.groups import LimitSettings, RuntimeSettings
from serving.version import Version

log = logging.getLogger("serving.model")

# More rows of one request leave in batches of this many, between which other requests have their turn.
_MAX_BULK_ROWS = 4096
_MAX_ROWS_AT_ONCE = 512

Part = tuple[Sequence[int], PendingRequest]
"""Which rows of a request a ticket answers: all of them, unless some leave out what others have."""


class Calls:
    """Queues requests for the processes of a version, and hands each what is its own of the output.

    Args:
        version: whose calls they are.
        contract: what it promises.
        limits: how long a request may wait, and how many may.
        runtime: how many rows may share a call.
        record: keeps a request with its answer.
        note: is called after each call, as `Batcher` calls it.
        has_process: whether one of its processes lives.
    """

    def __init__(
        self,
        version: Version,
        contract: Callable[[], Contract],
        limits: LimitSettings,
        runtime: RuntimeSettings,
        record: Callable[[RecordedRequest], None],
        note: Callable[[int, float, float], None],
        has_process: Callable[[], bool] = lambda: True,
    ) -> None:
        self._version, self._contract, self._record = version, contract, record
        self._max_batch_rows, self._deadline_seconds = runtime.max_batch_rows, limits.deadline_seconds
        self.sharing = UNDECIDED
        """Whether callers may share a call."""
        self._batcher = Batcher(
            lambda rows, key, carried: contract().layout.encode(rows, key.params, carried),
            self._read,
            most_waiting=limits.max_queue_size,
            deadline=limits.deadline_seconds,
            pace=BatchLatencyModel(limits.max_queue_seconds, runtime.replicas),
            shared=lambda: self.sharing.allowed,
            has_process=has_process,
            told=version.in_logs,
            note=note,
        )
        self.monitor = SharingMonitor(self._batcher, self.stop_sharing)
        """Checks what shared calls return."""

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._batcher.waiting

    @property
    def in_progress(self) -> bool:
        """Whether a model process works on a request."""
        return self._batcher.rows > 0 and not self._batcher.waiting

    def add(self, replica: Replica) -> None:
        """Use a model process that has loaded."""
        self._batcher.add(replica)

    def begin(self, sharing: Sharing) -> None:
        """Let callers share calls, or not."""
        self.sharing = sharing
        said = "callers %s calls of %s: %s"
        verb = "share" if sharing.allowed else "do not share"
        log.info(said, verb, self._version, sharing.reason, extra=self._version.in_logs)

    def stop_sharing(self, reason: str) -> None:
        """Have each request be a call of its own from now on, unless the metadata decides otherwise."""
        if self.sharing.allowed and self.sharing.basis is not Basis.METADATA:
            self.sharing = Sharing(False, Basis.MONITORING, reason)
            said = "callers share no call of %s any more: %s"
            log.warning(said, self._version, reason, extra=self._version.in_logs)

    def submit(
        self,
        rows: Rows,
        params: Mapping[str, Any],
        deadline: float,
        *,
        raw: bool = False,
        begun: bool = False,
        origin: object = None,
        alone: bool = False,
    ) -> list[Part]:
        """Queue rows that fit the contract, to be answered within `deadline` seconds.

        They are one call, unless callers may share calls: then large tables are cut, and rows that no table
        can hold together are parted. What is `alone` is one call in any case. The answers are predictions,
        or with `raw` the model's own tables, of which none are made yet. What has `begun` is a further
        piece of a request that was taken in, of which all pieces have the same `origin`.

        Raises:
            Overloaded: the queue is full.
            Unprocessable: no table can hold the rows together.
        """
        text, in_columns = canonical_json(params), isinstance(rows, pa.RecordBatch)
        shared = self.sharing.allowed and not alone
        parts: list[Part] = []
        try:
            for likeness, indices, group in self._contract().layout.groups(rows, split=shared):
                key = BatchKey(text, (object(),) if alone else likeness, in_columns, raw)
                size = len(group)
                if shared and isinstance(group, pa.RecordBatch) and not is_own(group):
                    size = _MAX_BULK_ROWS
                for start in range(0, len(group), size):
                    piece = group.slice(start, size) if isinstance(group, pa.RecordBatch) else group
                    most_rows = self._max_batch_rows if shared else len(piece)
                    further = begun or bool(parts)
                    ticket = self._batcher.submit(
                        piece, key, most_rows, deadline, begun=further, origin=origin
                    )
                    parts.append((indices[start : start + len(piece)], ticket))
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
        """Queue a row to be answered bit by bit; the first bit has to come within `deadline` seconds.

        `reserve` makes room for what is read ahead of the caller.

        Raises:
            Overloaded: the queue is full.
        """
        ((likeness, indices, group),) = self._contract().layout.groups([row])
        key = BatchKey(canonical_json(params), likeness, in_columns=False, raw=False)
        stream = ChunkStream(self._deadline_seconds, reserve)
        return (indices, self._batcher.submit(group, key, 1, deadline, stream)), stream

    async def answered(
        self, rows: Rows, params: Mapping[str, Any], parts: list[Part], ends: float
    ) -> pa.RecordBatch:
        """Return the model's own table for rows that were submitted `raw` in these parts, in their order.

        Where the parts do not have one result per row each, the request is called for again, as one call;
        it has until `ends`, by the performance counter.

        Raises:
            ServingError: one of the parts was not answered.
        """
        found = [(indices, ticket, await ticket.future) for indices, ticket in parts]
        if len(found) > 1:
            # If sharing has ended meanwhile, what the parts got may be wrong.
            is_split = all(answer.is_one_per_row(len(ticket.rows)) for _, ticket, answer in found)
            if self.sharing.allowed and is_split:
                tables = [answer.table for _, _, answer in found if isinstance(answer, LazyPredictions)]
                if (table := concat_ordered(tables, [indices for indices, _, _ in found])) is not None:
                    return table
            else:
                self.stop_sharing("a part of a large request did not return one result per row")
            left = max(0.0, ends - time.perf_counter())
            parts[:] = self.submit(rows, params, left, raw=True, begun=True, alone=True)
            found = [(indices, ticket, await ticket.future) for indices, ticket in parts]
        ((_, ticket, answer),) = found
        assert isinstance(answer, LazyPredictions)
        self._record(RecordedRequest(rows, params, answer, ticket.finished - ticket.started))
        return answer.table

    def withdraw(self, parts: list[Part]) -> None:
        """Forget a request whose caller has gone."""
        for _, ticket in parts:
            if not ticket.finished:  # its future may be done, cancelled with the one who awaited it
                self._batcher.withdraw(ticket)

    def _read(self, answer: bytes, group: Group) -> Output:
        table, key = model_output.decode(answer), group[0].key
        whole, rows = (
            model_output.form(table) is model_output.OutputForm.WHOLE,
            sum([len(ticket.rows) for ticket in group]),
        )
        if len(group) > 1:
            if whole or len(table) != rows or model_output.is_reordered(table):
                self.stop_sharing("a shared call did not return one result per row")
                raise NotSeparable(f"it returned {len(table)} results for {rows} rows")
            if self.sharing.basis is Basis.PROOF:
                self.monitor.observe(group, table)
        if key.raw or whole or len(table) != rows or rows > _MAX_ROWS_AT_ONCE:
            return LazyPredictions(self._contract().predictions, table, whole)
        return self._contract().predictions(table)
