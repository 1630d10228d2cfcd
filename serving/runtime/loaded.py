"""One model version that is loaded: its contract, its processes, and who holds it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Self

import orjson
import pyarrow as pa
from cachetools import LRUCache

from serving.errors import ModelFailed
from serving.groups import Limits, Runtime
from serving.runtime import answers, bulk, heap, mlmodel
from serving.runtime.batcher import Batcher
from serving.runtime.contract import Row
from serving.runtime.intake import Intake
from serving.runtime.launcher import Launcher
from serving.runtime.pace import Pace
from serving.runtime.pool import Pool
from serving.runtime.predictions import Later, Whole
from serving.runtime.probation import Tally
from serving.runtime.replay import Comparison, Recorded, Recorder
from serving.runtime.scoring import Scoring
from serving.runtime.streams import Stream
from serving.runtime.table import Rows, in_text, rejoined
from serving.runtime.tickets import Answer, Group, Key, Ticket
from serving.runtime.trial import Trial
from serving.runtime.version import Artifacts, Version
from serving.telemetry.metrics import Ending, Gauges, Metrics, VersionMetrics

log = logging.getLogger("serving.model")

# More rows of one request leave in batches of this many, between which other requests have their turn.
_MOST_BULK_ROWS = 4096
_MOST_ROWS_AT_ONCE = 512

Part = tuple[Sequence[int], Ticket]
"""Which rows of a request a ticket answers: all of them, unless some leave out what others have."""
Cache = LRUCache[Any, tuple[bytes, Sequence[Part], Sequence[tuple[bytes, bytes]]]]


class State(Enum):
    """Where a loaded version stands."""

    STARTING = "starting"
    LIVE = "live"
    DRAINING = "draining"
    CLOSED = "closed"


class Loaded:
    """A model version with processes of its own; held with `with` while a request is under way.

    Raises:
        Untypable: no contract can be made of it.
        VerificationFailed: its input example does not fit its own signature.
    """

    def __init__(
        self,
        version: Version,
        artifacts: Artifacts,
        launcher: Launcher,
        limits: Limits,
        runtime: Runtime,
        recorder: Recorder,
        metrics: Metrics,
        warnings: Sequence[str] = (),
    ) -> None:
        self.version, self.artifacts, self._metrics, self.recorder = version, artifacts, metrics, recorder
        self.metrics: VersionMetrics  # once it takes requests
        described = mlmodel.read(artifacts.folder)
        self.contract = mlmodel.contract(described, version.name, limits.max_rows)
        self.example = mlmodel.example(artifacts.folder, described, self.contract)
        if self.example:
            self.contract = self.contract.with_example(self.example.shown)
        self.reader = bulk.Reader(self.contract)
        """Reads the bodies of batches."""
        self.intake = Intake(self.contract)
        """Checks columns that came in any protocol."""
        self.scoring = Scoring(self.contract, self.intake)
        """Reads the bodies of MLflow's protocol."""
        self.told = orjson.dumps({"name": version.name, "version": version.version})
        """The version as answers tell it."""
        self.headers = version.in_headers
        self.cache: Cache | None = LRUCache(limits.cache_entries) if version.name in limits.cache else None
        """Its last answers and their parts, by what was asked; None unless the model is to have that."""
        self.from_disk = False
        """Whether it came from the copy on disk, as the registry was away."""
        self.tally = Tally()
        self.comparison: Comparison | None = None
        """How it answered live requests before it went live."""
        self.loaded_at = datetime.now(UTC)
        self.state, self.used_at = State.STARTING, 0.0
        """When the last request on it was over, by the monotonic clock."""
        self._runtime, self._limits, self._warnings = runtime, limits, warnings
        self._leases, self._unheld = 0, asyncio.Event()
        self._batcher = Batcher(
            lambda rows, key, carried: self.contract.layout.encode(rows, key.params, carried),
            self._read,
            most_waiting=limits.max_waiting,
            deadline=limits.deadline_seconds,
            pace=Pace(limits.wait_seconds, runtime.replicas),
            told=version.in_logs,
            note=lambda *call: self.metrics.called(*call),
        )
        self._pool = Pool(
            launcher,
            artifacts.folder,
            count=runtime.replicas,
            load_seconds=runtime.load_seconds,
            most_bytes=runtime.max_process_bytes,
            told=version.in_logs,
            on_ready=self._batcher.add,
            on_death=self._count_death,
            on_restart=lambda ending: self.metrics.restarts[ending].inc(),
        )

    def __repr__(self) -> str:
        return f"<Loaded {self.version} {self.state.value} leases={self._leases}>"

    @property
    def warnings(self) -> list[str]:
        """What a person should look at, though it is live."""
        unproven = (
            f"{self.version} has no input example in rows, so it went live unproven: {mlmodel.HOW_TO_LOG}"
        )
        disk = "it was brought up from the copy on disk, as the registry was away"
        more = [*self.contract.warnings, *self._warnings]
        return [unproven] * (self.example is None) + [disk] * self.from_disk + more

    def refresh(self, version: Version) -> None:
        """Take over what has changed about the version in the registry, which is there."""
        self.version = replace(version, location=self.version.location)
        self.from_disk = False

    @property
    def pids(self) -> list[int]:
        """The ids of its processes."""
        return [replica.pid for replica in self._pool.replicas if replica.pid is not None]

    @property
    def is_held(self) -> bool:
        """Whether a request is under way on it."""
        return self._leases > 0

    async def start(self) -> None:
        """Start the model processes and have the first one answer the input example.

        Raises:
            LoadFailed: a process raised, hung or died while loading.
            VerificationFailed: it does not answer the example as its contract says.
        """
        try:
            await self._pool.start()
            if self.example:
                await self._trial().verify(self.example)
        except BaseException:
            self.close()
            raise

    async def rehearse(self, recorded: Sequence[Recorded]) -> None:
        """Answer requests that another version has answered, and compare.

        Raises:
            VerificationFailed: it fails on one of them.
        """
        self.comparison = await self._trial().rehearse(recorded)

    def keep(self) -> None:
        """Take requests, and have processes that die replaced."""
        self.state, self.loaded_at = State.LIVE, datetime.now(UTC)
        gauges = Gauges(lambda: self._batcher.waiting, lambda: self._leases, self._pool.memory)
        self.metrics = self._metrics.of(self.version.name, self.version.label, gauges)
        self._pool.keep()

    def _trial(self) -> Trial:
        return Trial(self.contract, self._pool.replicas[0], self._runtime.load_seconds)

    def _count_death(self, ending: Ending) -> None:
        self.metrics.deaths[ending].inc()
        self.tally.deaths += ending is not Ending.MEMORY

    def _read(self, answer: bytes, group: Group) -> Answer:
        found, key = answers.decode(answer), group[0].key
        if answers.form(found) is answers.Form.WHOLE and sum(len(ticket.rows) for ticket in group) > 1:
            if len(group) > 1:
                raise ModelFailed("it answered one thing for several requests")  # each is tried alone
            return Whole(found, len(group[0].rows))
        if key.raw or len(found) > _MOST_ROWS_AT_ONCE:
            return Later(self.contract.predictions, found)
        return self.contract.predictions(found)

    # -- use

    def __enter__(self) -> Self:
        self._leases += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._leases -= 1
        if not self._leases:
            self.used_at = time.monotonic()
            self._unheld.set()

    def submit(
        self,
        rows: Rows,
        params: Mapping[str, Any],
        deadline: float,
        *,
        raw: bool = False,
        begun: bool = False,
    ) -> list[Part]:
        """Queue rows that fit the contract, to be answered within `deadline` seconds.

        The answers are predictions, or with `raw` the model's own tables, of which none are made yet. What
        has `begun` is a further piece of a request that was taken in.

        Raises:
            Overloaded: the queue is full.
        """
        text, in_columns = in_text(params), isinstance(rows, pa.RecordBatch)
        # Rows in columns are mostly a piece of a larger request.
        most_rows = _MOST_BULK_ROWS if in_columns else self._runtime.max_batch_rows
        parts: list[Part] = []
        try:
            for likeness, indices, group in self.contract.layout.groups(rows):
                key = Key(text, likeness, most_rows, in_columns, raw)
                further = begun or bool(parts)
                parts.append((indices, self._batcher.submit(group, key, most_rows, deadline, begun=further)))
        except BaseException:
            self.withdraw(parts)
            raise
        return parts

    def submit_stream(self, row: Row, params: Mapping[str, Any], deadline: float) -> tuple[Part, Stream]:
        """Queue a row to be answered bit by bit; the first bit has to come within `deadline` seconds.

        Raises:
            Overloaded: the queue is full.
        """
        ((likeness, indices, group),) = self.contract.layout.groups([row])
        key = Key(in_text(params), likeness, 1, in_columns=False, raw=False)
        stream = Stream(self._limits.deadline_seconds)
        return (indices, self._batcher.submit(group, key, 1, deadline, stream)), stream

    def submit_table(self, rows: pa.RecordBatch, params: Mapping[str, Any], ends: float) -> list[Part]:
        """Queue rows to be answered by the model's own tables before `ends`, by the performance counter.

        Raises:
            Overloaded: the queue is full.
        """
        parts: list[Part] = []
        for start in range(0, len(rows), _MOST_BULK_ROWS):
            piece = rows.slice(start, _MOST_BULK_ROWS)
            seconds = max(0.0, ends - time.perf_counter())
            for indices, ticket in self.submit(piece, params, seconds, raw=True, begun=start > 0):
                parts.append(([start + index for index in indices] if start else indices, ticket))
        return parts

    async def answered(
        self, rows: pa.RecordBatch, params: Mapping[str, Any], parts: list[Part]
    ) -> pa.RecordBatch:
        """What the model answered to a table that was submitted in these parts, in the order of its rows.

        Raises:
            ServingError: one of the parts was not answered.
            ModelFailed: they were answered in several forms.
        """
        found = [
            answer.table for _, ticket in parts if isinstance(answer := await ticket.future, Later | Whole)
        ]
        if len(found) == 1:
            ticket = parts[0][1]
            if isinstance(answer := ticket.future.result(), Later):
                self.recorder.add(Recorded(rows, params, answer, ticket.finished - ticket.started))
            return found[0]
        return rejoined(found, [indices for indices, _ in parts])

    def withdraw(self, parts: list[Part]) -> None:
        """Forget a request whose caller has gone."""
        for _, ticket in parts:
            if not ticket.finished:  # its future may be done, cancelled with the one who awaited it
                self._batcher.withdraw(ticket)

    # -- drain, close

    @property
    def _drain_seconds(self) -> float:
        streaming = self._limits.stream_seconds if self.contract.streams else 0.0
        return max(self._runtime.drain_seconds, streaming)

    async def drain(self) -> None:
        """Wait until no request holds it, at most for the drain time, then end its processes."""
        self.state = State.DRAINING
        try:
            async with asyncio.timeout(self._drain_seconds):
                while self._leases:
                    self._unheld.clear()
                    await self._unheld.wait()
        except TimeoutError:
            log.warning("%r is still held and is ended", self, extra=self.version.in_logs)
        finally:
            self.close()
            heap.sweep_soon()

    def close(self) -> None:
        """End its processes now."""
        if self.state in (State.LIVE, State.DRAINING):
            self.metrics.retire()
        self.state = State.CLOSED
        self._pool.kill()
