"""The front's side of the journal: record predictions, and pass feedback on.

Neither the front nor a request waits for the database. Predictions are appended to a list, which is sent
every tenth of a second as one message to the journal's own process. The front holds the messages that this
process has not acknowledged, up to a limit; beyond it, predictions are dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from uuid_utils import uuid7

from serving.errors import JournalUnavailable
from serving.hooks import Header, InferenceEvent, RequestHook
from serving.http.readiness import StatusPart
from serving.journal.mlflow_metrics import MetricsReporter
from serving.journal.prometheus_metrics import JournalMetrics
from serving.journal.quality import Quality, QualityFields, QualityState, QualityWindow
from serving.journal.quality_runs import QualityRunReporter
from serving.journal.records import Record, pack, record, version_id
from serving.journal.writer_client import WriterClient
from serving.journal.writer_frames import Frame, FrameType
from serving.models.slot import Slot
from serving.outcome_queries import LossSum, OutcomeBoard, OutcomeSums
from serving.registry.client import RegistryClient
from serving.request_context import RequestContext
from serving.settings.settings import Settings
from serving.supervision import Supervisor
from serving.telemetry.metrics import Metrics

log = logging.getLogger("serving.journal")
MAX_RECORDS, MAX_BYTES = 100_000, 64 * 2**20
"""The limit of predictions that wait for the database."""
_MESSAGE_INTERVAL_SECONDS = 0.1
_MAX_MESSAGE_BYTES = 2**20
_UNAVAILABLE = "The journal's database is unavailable."


@dataclass(frozen=True, slots=True)
class InFlight:
    """The predictions in one message that is not acknowledged."""

    records: int
    bytes: int


class JournalObserver(RequestHook):
    """Records the predictions of one front."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: RegistryClient,
        supervisor: Supervisor,
        outcomes: OutcomeBoard,
    ) -> None:
        assert settings.journal_url
        opening = {
            "url": settings.journal_url.get_secret_value(),
            "days": settings.journal_days,
            "logged": [settings.log_format, settings.log_level],
            "quality": settings.quality_days
            and [settings.quality_days, settings.quality_seconds, settings.quality_slices],
        }
        self._writer = WriterClient(orjson.dumps(opening), self._on_frame, supervisor)
        self._reporter = MetricsReporter(registry)
        self.runs = QualityRunReporter(registry) if settings.quality_mlflow else None
        self._pending: list[Record] = []
        self._pending_bytes = self._waiting = self._waiting_bytes = 0
        self._sent: dict[int, InFlight] = {}
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._packing: asyncio.Handle | None = None
        self._is_empty = asyncio.Event()
        self._seconds = settings.deadline_seconds
        self._qualities: dict[tuple[str, str, str], Quality] = {}
        self._windows: dict[tuple[str, str, str], QualityWindow] = {}
        self._failing = ""
        self._outcomes, self._watching = outcomes, 0
        outcomes.provide(self._watch)
        self.metrics = JournalMetrics(metrics.registry)
        self.metrics.pending.set_function(lambda: self._waiting)
        self.metrics.failing.set_function(lambda: bool(self._failing))

    async def run(self) -> None:
        """Start the journal's process, and report the quality of versions to MLflow until cancelled."""
        self._writer.start()
        await self._reporter.run()

    # -- predictions

    def response_headers(self, context: RequestContext) -> Sequence[Header]:
        """Return the header with the prediction's id."""
        identity = context.state["prediction_id"] = str(uuid7())
        return ((b"x-prediction-id", identity.encode()),)

    def on_response(self, event: InferenceEvent) -> None:
        """Queue a prediction for the database, if there is space."""
        entry = record(event)
        size = entry.size
        if self._waiting >= MAX_RECORDS or self._waiting_bytes + size > MAX_BYTES:
            self.metrics.dropped.inc()
            return
        self._pending.append(entry)
        self._waiting += 1
        self._waiting_bytes += size
        self._pending_bytes += size
        if self._packing is None:
            self._packing = asyncio.get_running_loop().call_later(_MESSAGE_INTERVAL_SECONDS, self._pack)
        if self._pending_bytes > _MAX_MESSAGE_BYTES:
            self._pack()

    def _pack(self) -> None:
        if self._packing is not None:
            self._packing.cancel()
            self._packing = None
        pending, batch = self._pending, InFlight(len(self._pending), self._pending_bytes)
        self._pending, self._pending_bytes = [], 0
        if pending:
            try:
                packed = pack(pending)
            except Exception:  # a defect must not stop the front; the predictions count as dropped
                log.exception("predictions could not be packed")
                self._settle(batch, lost=batch.records)
            else:
                self._sent[self._writer.send(FrameType.RECORDS, packed)] = batch

    # -- feedback

    async def record_feedback(self, feedback: Sequence[Any], models: Sequence[str] | None) -> dict[str, Any]:
        """Store outcomes, and return the result of `feedback_store.record_feedback`.

        Raises:
            JournalUnavailable: The database is unavailable, or does not respond in time.
        """
        if self._failing:
            raise JournalUnavailable(_UNAVAILABLE)
        self._pack()  # the outcomes may refer to predictions that are not sent yet
        number = self._writer.send(FrameType.FEEDBACK, orjson.dumps({"feedback": feedback, "models": models}))
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._seconds):
                result: dict[str, Any] = await reply
        except TimeoutError:
            raise JournalUnavailable(
                f"The journal's database did not respond within {self._seconds:g} s."
            ) from None
        finally:
            del self._replies[number]
            self._writer.forget(number)
        self.metrics.feedback.inc(result.get("recorded", 0))
        return result

    def status(self, slot: Slot, public: bool) -> StatusPart:
        """Return the quality of the live version by the feedback received."""
        if slot.live is None:
            return StatusPart()
        version = slot.live.version
        key = version.name, version.label, version.source
        quality, window = self._qualities.get(key), self._windows.get(key)
        state = QualityState.model_validate(quality, from_attributes=True) if quality else None
        recent = window.state(public=public) if window else None
        return StatusPart(QualityFields(quality=state, recent_quality=recent))

    def _watch(self) -> None:
        """Send the queries for outcomes; without an acknowledgement, a new process receives the frame too."""
        watches = [
            {
                "number": number,
                "new": version_id(query.new),
                "old": version_id(query.old),
                "since": query.since.timestamp(),
                "max_error": query.max_error,
            }
            for number, query in self._outcomes.queries.items()
        ]
        self._writer.forget(self._watching)
        self._watching = self._writer.send(FrameType.WATCH, orjson.dumps(watches))

    # -- messages of the journal's process

    def _on_frame(self, frame: Frame) -> None:
        message = orjson.loads(frame.payload)
        match frame.kind:
            case FrameType.WRITTEN:
                self._count(frame.number, message["lost"])
            case FrameType.ANSWER:
                if (reply := self._replies.get(frame.number)) and not reply.done():
                    reply.set_result(message)
            case FrameType.STATE:
                self._set_failing(message["failing"])
            case FrameType.QUALITY:
                qualities = [Quality(**fields) for fields in message]
                self._qualities = {quality.key: quality for quality in qualities}
                self.metrics.update(qualities)
                self._reporter.enqueue(qualities)
            case FrameType.RECENT_QUALITY:
                windows = [QualityWindow(**fields) for fields in message]
                self._windows = {window.key: window for window in windows}
                self.metrics.update_recent(windows)
                if self.runs:
                    self.runs.enqueue(windows)
            case FrameType.OUTCOMES:
                for sums in message:
                    new, old = LossSum(*sums["new"]), LossSum(*sums["old"])
                    self._outcomes.publish(sums["number"], OutcomeSums(new, old, sums["max_error"]))

    def _count(self, number: int, lost: int) -> None:
        if batch := self._sent.pop(number, None):
            self.metrics.written_at.set(time.time())
            self._settle(batch, lost)
        if not self._sent:
            self._is_empty.set()

    def _settle(self, batch: InFlight, lost: int) -> None:
        self.metrics.written.inc(batch.records - lost)
        self.metrics.dropped.inc(lost)
        self._waiting -= batch.records
        self._waiting_bytes -= batch.bytes

    def _set_failing(self, failing: str) -> None:
        if failing:
            log.warning("the journal's database is unavailable; predictions wait in memory: %s", failing)
        elif self._failing:
            log.info("the journal's database is available again")
        self._failing = failing
        for reply in self._replies.values():
            if failing and not reply.done():
                reply.set_exception(JournalUnavailable(_UNAVAILABLE))

    async def aclose(self, seconds: float) -> None:
        """Write the last predictions, and the last quality to MLflow, within this number of seconds each."""
        self._pack()
        try:
            async with asyncio.timeout(seconds):
                while self._sent:
                    self._is_empty.clear()
                    await self._is_empty.wait()
        except TimeoutError:
            self._writer.kill()
            log.error("%d predictions could not be recorded before the stop", self._waiting)
        await self._writer.aclose()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._reporter.flush(now=True)
