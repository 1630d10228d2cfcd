"""The front's journal: records each prediction, and asks for what became of feedback.

Nothing here waits for the database, nor is a request held up by it. What was answered is appended to a list,
which every tenth of a second is packed into one message to the journal's own process; what has not been
acknowledged by that is held here, up to a bound, and what is beyond that is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from uuid_utils import uuid7

from serving.errors import JournalAway
from serving.journal.frames import Frame, Kind
from serving.journal.link import Link
from serving.journal.metrics import JournalMetrics
from serving.journal.quality import Quality
from serving.journal.records import pack, size
from serving.runtime.exchange import Exchange, Header, Observer
from serving.runtime.slot import Slot
from serving.runtime.version import Version
from serving.settings import Settings
from serving.telemetry.metrics import Metrics

log = logging.getLogger("serving.journal")
MOST_RECORDS, MOST_BYTES = 100_000, 64 * 2**20
"""What may wait for the database."""
_SECONDS_BETWEEN_MESSAGES = 0.1
_MOST_BYTES_OF_MESSAGE = 2**20
_SECONDS_TO_FLUSH = 10.0


@dataclass(frozen=True, slots=True)
class Batch:
    """How much of what waits is in one message."""

    records: int
    bytes: int


class Journal(Observer):
    """Records the predictions of one front."""

    def __init__(self, url: str, settings: Settings, metrics: Metrics) -> None:
        logged = [settings.log_format, settings.log_level]
        opening = orjson.dumps({"url": url, "days": settings.journal_days, "logged": logged})
        self._link = Link(opening, self._hear)
        self._pending: list[Exchange] = []
        self._pending_bytes = self._waiting = self._waiting_bytes = 0
        self._sent: dict[int, Batch] = {}
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._packing: asyncio.Handle | None = None
        self._is_empty = asyncio.Event()
        self._seconds = settings.deadline_seconds
        self._qualities: dict[tuple[str, str | None], Quality] = {}
        self._failing = ""
        self.on_quality: Callable[[Sequence[Quality]], None] = lambda found: None
        """Called with how right versions are, whenever that has changed."""
        self.metrics = JournalMetrics(metrics.registry)
        self.metrics.pending.set_function(lambda: self._waiting)
        self.metrics.failing.set_function(lambda: bool(self._failing))

    def start(self) -> None:
        """Start the journal's process."""
        self._link.start()

    # -- predictions

    def announce(self, scope: MutableMapping[str, Any]) -> Sequence[Header]:
        """The header that tells the prediction's id."""
        identity = scope["prediction_id"] = str(uuid7())
        return ((b"x-prediction-id", identity.encode()),)

    def answered(self, exchange: Exchange) -> None:
        """Have it written, if there is room for it."""
        bytes_of_it = size(exchange)
        if self._waiting >= MOST_RECORDS or self._waiting_bytes + bytes_of_it > MOST_BYTES:
            self.metrics.dropped.inc()
            return
        self._pending.append(exchange)
        self._waiting += 1
        self._waiting_bytes += bytes_of_it
        self._pending_bytes += bytes_of_it
        if self._packing is None:
            self._packing = asyncio.get_running_loop().call_later(_SECONDS_BETWEEN_MESSAGES, self._pack)
        if self._pending_bytes > _MOST_BYTES_OF_MESSAGE:
            self._pack()

    def _pack(self) -> None:
        if self._packing is not None:
            self._packing.cancel()
            self._packing = None
        if self._pending:
            number = self._link.send(Kind.RECORDS, pack(self._pending))
            self._sent[number] = Batch(len(self._pending), self._pending_bytes)
            self._pending, self._pending_bytes = [], 0

    # -- feedback

    async def feed_back(self, feedback: Sequence[Any], models: Sequence[str] | None) -> dict[str, Any]:
        """What became of outcomes that were told: see `outcomes.take`.

        Raises:
            JournalAway: the database can't be asked now.
        """
        if self._failing:
            raise JournalAway("The journal's database can't be asked now.")
        self._pack()  # the predictions that it is on
        number = self._link.send(Kind.FEEDBACK, orjson.dumps({"feedback": feedback, "models": models}))
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._seconds):
                found: dict[str, Any] = await answer
        except TimeoutError:
            raise JournalAway(f"The journal's database did not answer within {self._seconds:g} s.") from None
        finally:
            del self._answers[number]
            self._link.forget(number)
        self.metrics.feedback.inc(found.get("recorded", 0))
        return found

    def quality(self, version: Version) -> Quality | None:
        """How right a version was; None without feedback."""
        return self._qualities.get((version.name, version.version or version.model_id))

    def tell(self, slot: Slot) -> dict[str, Any]:
        """How right the live version was, as `/ready` tells it."""
        quality = self.quality(slot.live.version) if slot.live else None
        return {"quality": asdict(quality) if quality else None}

    # -- what the process tells

    def _hear(self, frame: Frame) -> None:
        told = orjson.loads(frame.payload)
        match frame.kind:
            case Kind.WRITTEN:
                self._count(frame.number, told["lost"])
            case Kind.ANSWER:
                if (answer := self._answers.get(frame.number)) and not answer.done():
                    answer.set_result(told)
            case Kind.STATE:
                self._turn(told["failing"])
            case Kind.QUALITY:
                found = [Quality(**each) for each in told]
                self._qualities = {(each.model, each.version or each.model_id): each for each in found}
                self.metrics.tell(found)
                self.on_quality(found)

    def _count(self, number: int, lost: int) -> None:
        if batch := self._sent.pop(number, None):
            self.metrics.written.inc(batch.records - lost)
            self.metrics.dropped.inc(lost)
            self.metrics.written_at.set(time.time())
            self._waiting -= batch.records
            self._waiting_bytes -= batch.bytes
        if not self._sent:
            self._is_empty.set()

    def _turn(self, failing: str) -> None:
        if failing:
            log.warning("predictions can't be recorded now, and wait: %s", failing)
        elif self._failing:
            log.info("predictions are recorded again")
        self._failing = failing
        for answer in self._answers.values():
            if failing and not answer.done():
                answer.set_exception(JournalAway("The journal's database can't be asked now."))

    async def flush(self) -> None:
        """Wait until what was answered is written, but not for long."""
        self._pack()
        try:
            async with asyncio.timeout(_SECONDS_TO_FLUSH):
                while self._sent:
                    self._is_empty.clear()
                    await self._is_empty.wait()
        except TimeoutError:
            self._link.kill()  # what is counted as dropped now is not written after all
            self.metrics.dropped.inc(self._waiting)
            log.error("%d predictions are not recorded, as the database is away", self._waiting)

    async def end(self) -> None:
        """End the journal's process, once that has written what it has."""
        await self._link.aclose()
