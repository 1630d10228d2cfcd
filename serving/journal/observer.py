"""The front's journal: records each prediction, and asks for what became of feedback.

Nothing here waits for the database, nor is a request held up by it. What was answered is appended to a list,
which every tenth of a second is packed into one message to the journal's own process; what has not been
acknowledged by that is held here, up to a bound, and what is beyond that is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from uuid_utils import uuid7

from serving.errors import JournalUnavailable
from serving.hooks import Header, InferenceEvent, RequestHook
from serving.journal.framing import Frame, FrameType
from serving.journal.metrics import JournalMetrics
from serving.journal.mlflow_metrics import MetricsReporter
from serving.journal.quality import Quality
from serving.journal.records import Record, pack, record
from serving.journal.writer_client import WriterClient
from serving.models.slot import Slot
from serving.registry.client import RegistryClient
from serving.request_context import RequestContext
from serving.settings.settings import Settings
from serving.supervision import Supervisor
from serving.telemetry.metrics import Metrics

log = logging.getLogger("serving.journal")
MOST_RECORDS, MOST_BYTES = 100_000, 64 * 2**20
"""What may wait for the database."""
_SECONDS_BETWEEN_MESSAGES = 0.1
_MAX_MESSAGE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class InFlight:
    """How much of what waits is in one message."""

    records: int
    bytes: int


class JournalObserver(RequestHook):
    """Records the predictions of one front."""

    def __init__(
        self, settings: Settings, metrics: Metrics, registry: RegistryClient, supervisor: Supervisor
    ) -> None:
        assert settings.journal_url
        opening = {
            "url": settings.journal_url.get_secret_value(),
            "days": settings.journal_days,
            "logged": [settings.log_format, settings.log_level],
        }
        self._link = WriterClient(orjson.dumps(opening), self._on_frame, supervisor)
        self._reporter = MetricsReporter(registry)
        self._pending: list[Record] = []
        self._pending_bytes = self._waiting = self._waiting_bytes = 0
        self._sent: dict[int, InFlight] = {}
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._packing: asyncio.Handle | None = None
        self._is_empty = asyncio.Event()
        self._seconds = settings.deadline_seconds
        self._qualities: dict[tuple[str, str, str], Quality] = {}
        self._failing = ""
        self.metrics = JournalMetrics(metrics.registry)
        self.metrics.pending.set_function(lambda: self._waiting)
        self.metrics.failing.set_function(lambda: bool(self._failing))

    async def run(self) -> None:
        """Start the journal's process, and tell in MLflow how right versions are, for ever."""
        self._link.start()
        await self._reporter.run()

    # -- predictions

    def response_headers(self, context: RequestContext) -> Sequence[Header]:
        """The header that tells the prediction's id."""
        identity = context.state["prediction_id"] = str(uuid7())
        return ((b"x-prediction-id", identity.encode()),)

    def on_response(self, exchange: InferenceEvent) -> None:
        """Have it written, if there is room for it."""
        kept = record(exchange)
        size = kept.size
        if self._waiting >= MOST_RECORDS or self._waiting_bytes + size > MOST_BYTES:
            self.metrics.dropped.inc()
            return
        self._pending.append(kept)
        self._waiting += 1
        self._waiting_bytes += size
        self._pending_bytes += size
        if self._packing is None:
            self._packing = asyncio.get_running_loop().call_later(_SECONDS_BETWEEN_MESSAGES, self._pack)
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
            except Exception:  # whatever it is, it is counted, and the front goes on
                log.exception("predictions could not be packed")
                self._settle(batch, lost=batch.records)
            else:
                self._sent[self._link.send(FrameType.RECORDS, packed)] = batch

    # -- feedback

    async def record_feedback(self, feedback: Sequence[Any], models: Sequence[str] | None) -> dict[str, Any]:
        """What became of outcomes that were told: see `outcomes.take`.

        Raises:
            JournalAway: the database can't be asked now.
        """
        if self._failing:
            raise JournalUnavailable("The journal's database can't be asked now.")
        self._pack()  # the predictions that it is on
        number = self._link.send(FrameType.FEEDBACK, orjson.dumps({"feedback": feedback, "models": models}))
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._seconds):
                found: dict[str, Any] = await answer
        except TimeoutError:
            raise JournalUnavailable(
                f"The journal's database did not answer within {self._seconds:g} s."
            ) from None
        finally:
            del self._answers[number]
            self._link.forget(number)
        self.metrics.feedback.inc(found.get("recorded", 0))
        return found

    def tell(self, slot: Slot) -> Mapping[str, Any]:
        """How right what is live for a reference is, by the feedback that came."""
        version = slot.live.version if slot.live else None
        found = version and self._qualities.get((version.name, version.label, version.source))
        return {"quality": found and asdict(found)}

    # -- what the process tells

    def _on_frame(self, frame: Frame) -> None:
        told = orjson.loads(frame.payload)
        match frame.kind:
            case FrameType.WRITTEN:
                self._count(frame.number, told["lost"])
            case FrameType.ANSWER:
                if (answer := self._answers.get(frame.number)) and not answer.done():
                    answer.set_result(told)
            case FrameType.STATE:
                self._set_failing(told["failing"])
            case FrameType.QUALITY:
                found = [Quality(**each) for each in told]
                self._qualities = {each.key: each for each in found}
                self.metrics.update(found)
                self._reporter.enqueue(found)

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
            log.warning("predictions can't be recorded now, and wait: %s", failing)
        elif self._failing:
            log.info("predictions are recorded again")
        self._failing = failing
        for answer in self._answers.values():
            if failing and not answer.done():
                answer.set_exception(JournalUnavailable("The journal's database can't be asked now."))

    # -- the end

    async def aclose(self, seconds: float) -> None:
        """Have what was answered written, and MLflow told of the last feedback, within this time each."""
        self._pack()
        try:
            async with asyncio.timeout(seconds):
                while self._sent:
                    self._is_empty.clear()
                    await self._is_empty.wait()
        except TimeoutError:
            self._link.kill()  # whatever it waits for
            log.error("%d predictions could not be recorded before the stop", self._waiting)
        await self._link.aclose()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._reporter.flush(now=True)
