"""The journal's process: write the records from the front to the database.

`writer_client.py` starts it as `python -m serving.journal.writer FD`. It does all work with SQL and JSON, so
that the front has none of it. It exits when the front closes the socket or dies, after it has written the
records that it received, if the database is available within a few seconds.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import orjson
from sqlalchemy import Connection, Engine, delete
from sqlalchemy import select as choose

from serving.backoff import Backoff
from serving.errors import JournalUnavailable
from serving.journal import database, feedback_store
from serving.journal.database import RowsRejected, transaction
from serving.journal.outcome_sums import Watch, summarize, with_bound
from serving.journal.quality import Quality
from serving.journal.quality_monitor import QualityMonitor
from serving.journal.row_builder import PREDICTION, VERSION, unpack
from serving.journal.schema import feedback, first_id, predictions, versions
from serving.journal.writer_frames import Frame, FrameType, receive
from serving.processes import privileges
from serving.telemetry.logging import configure as configure_logging

T = TypeVar("T")
log = logging.getLogger("serving.journal")
_POLL_SECONDS = 1.0
_PURGE_INTERVAL_SECONDS = 60.0
_EXIT_SECONDS = 5.0
_BACKOFF = Backoff(first_seconds=0.05, max_seconds=2.0)
_PURGE_BATCH = 1000
_OUTCOMES_PAUSE_FACTOR = 10.0
_MAX_CLOCK_JUMP_SECONDS, _SECONDS_AFTER_JUMP = 300.0, 3600.0
"""After a jump of the clock, nothing is deleted for this time: the clock may be corrected again."""
_NICE = 5
_IGNORED_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGQUIT),
    *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
)


class ParentExited(Exception):
    """The front has exited, and the database has been unavailable for too long since."""


class Writer:
    """Serves one front."""

    def __init__(self, connection: socket.socket, url: str, days: int) -> None:
        self._connection, self._days = connection, days
        self._engine: Engine = database.connect(url)
        self._poll = select.poll()
        self._poll.register(connection, 0)  # without events, it only reports that the other side has closed
        self._is_upgraded = False
        self._failing: str | None = None  # not reported yet
        self._reported: list[Quality] = []
        self._watches: list[Watch] = []
        self._has_outcomes, self._outcomes_at = False, 0.0
        self._poll_at = self._purge_at = 0.0
        self._sending = threading.Lock()
        self._clock_offset = time.time() - time.monotonic()

    def run(self) -> None:
        """Handle frames and do the periodic work until the front has exited."""
        with suppress(ParentExited):
            self._retry_until(self._upgrade)
            while True:
                if self._has_input():
                    frame = receive(self._connection)
                    if frame is None:
                        return
                    self._on_frame(frame)
                self._run_periodic()

    def _has_input(self) -> bool:
        timeout = max(0.0, self._poll_at - time.monotonic())
        return bool(select.select([self._connection], [], [], timeout)[0])

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind is FrameType.RECORDS:
            lost = self._retry_until(partial(self._write, frame.payload))
            self._send(FrameType.WRITTEN, {"lost": lost}, frame.number)
        elif frame.kind is FrameType.WATCH:
            self._watches = [Watch(**fields) for fields in orjson.loads(frame.payload)]
            self._has_outcomes, self._poll_at = True, 0.0
        else:
            result = self._record_feedback(orjson.loads(frame.payload))
            self._poll_at = 0.0
            self._run_periodic()  # the quality changes before the client receives the response
            self._send(FrameType.ANSWER, result, frame.number)

    def _record_feedback(self, request: Any) -> dict[str, Any]:
        try:
            return self._retry_until(
                partial(self._in_transaction, partial(feedback_store.record_feedback, request=request))
            )
        except ParentExited:
            raise
        except RowsRejected as error:  # a prediction was deleted at the same time
            return {"refused": str(error)}
        except Exception:  # a defect must not stop the records
            log.exception("feedback could not be stored")
            return {"refused": "it could not be read"}

    # -- the database

    def _upgrade(self) -> None:
        if not self._is_upgraded:
            database.upgrade(self._engine)
            self._is_upgraded = True

    def _in_transaction(self, do: Callable[[Connection], T]) -> T:
        with transaction(self._engine) as connection:
            return do(connection)

    def _write(self, payload: bytes) -> int:
        """Write records; return the number that the database rejected."""
        rows = unpack(payload)
        try:
            self._insert(rows.versions, rows.predictions)
        except RowsRejected:
            return rows.rejected + sum(
                not self._insert_one(rows.versions, prediction) for prediction in rows.predictions
            )
        return rows.rejected

    def _insert_one(self, version_rows: list[tuple[Any, ...]], prediction: tuple[Any, ...]) -> bool:
        try:
            self._insert(version_rows, [prediction])
        except RowsRejected as error:
            log.error("prediction %s is not recorded: %s", prediction[0], error)
            return False
        return True

    def _insert(self, version_rows: list[tuple[Any, ...]], rows: list[tuple[Any, ...]]) -> None:
        with transaction(self._engine) as connection:
            database.insert(connection, versions, VERSION, version_rows)
            if rows:
                database.insert(connection, predictions, PREDICTION, rows)

    def _retry_until(self, do: Callable[[], T]) -> T:
        """Return the result of `do`, which is retried until the database is available.

        Raises:
            ParentExited: The front has exited, and the retries have failed for some more seconds.
        """
        pause, ends = _BACKOFF.first_seconds, float("inf")
        while True:
            try:
                result = do()
            except JournalUnavailable as error:
                self._report_state(str(error))
            else:
                self._report_state("")
                return result
            if self._poll.poll(pause * 1000):
                ends = min(ends, time.monotonic() + _EXIT_SECONDS)
                time.sleep(pause)
            if time.monotonic() > ends:
                raise ParentExited
            pause = _BACKOFF.following(pause)

    # -- periodic work

    def _run_periodic(self) -> None:
        now = time.monotonic()
        if now < self._poll_at:
            return
        self._poll_at = now + _POLL_SECONDS
        try:
            self._report_quality()
            self._report_outcomes(now)
            self._check_clock(now)
            if self._days and now >= self._purge_at:
                if self._in_transaction(self._purge_expired):
                    self._purge_at = now + _PURGE_INTERVAL_SECONDS
                else:
                    self._poll_at = 0.0  # continue as soon as the front sends nothing
        except JournalUnavailable as error:
            self._report_state(str(error))
        else:
            self._report_state("")

    def _check_clock(self, now: float) -> None:
        """Delete nothing for a while after the clock has jumped, which makes records look old."""
        offset = time.time() - now
        if abs(offset - self._clock_offset) > _MAX_CLOCK_JUMP_SECONDS:
            log.warning(
                "the clock has jumped by %.0f s; no records are deleted for %g s",
                offset - self._clock_offset,
                _SECONDS_AFTER_JUMP,
            )
            self._purge_at = now + _SECONDS_AFTER_JUMP
        self._clock_offset = offset

    def _report_quality(self) -> None:
        """Send the quality of versions to the front if it changed: other fronts receive feedback, too."""
        qualities = self._in_transaction(feedback_store.model_qualities)
        if qualities != self._reported:
            self._reported, self._has_outcomes = qualities, True
            self._send(FrameType.QUALITY, [asdict(quality) for quality in qualities])

    def _report_outcomes(self, now: float) -> None:
        """Send the sums of outcomes if there are new ones; large sums are computed less often."""
        if not (self._watches and self._has_outcomes and now >= self._outcomes_at):
            return
        self._watches = [self._in_transaction(partial(with_bound, watch=watch)) for watch in self._watches]
        sums = [self._in_transaction(partial(summarize, watch=watch)) for watch in self._watches]
        self._has_outcomes = False
        self._send(FrameType.OUTCOMES, sums)
        ended = time.monotonic()
        self._outcomes_at = ended + _OUTCOMES_PAUSE_FACTOR * (ended - now)

    def _purge_expired(self, connection: Connection) -> bool:
        """Delete a batch of expired records; return whether none is left."""
        bound = first_id(datetime.now(UTC) - timedelta(days=self._days))
        ids = choose(predictions.c.id).where(predictions.c.id < bound).order_by(predictions.c.id)
        old = [*connection.execute(ids.limit(_PURGE_BATCH)).scalars()]
        if old:
            connection.execute(delete(feedback).where(feedback.c.prediction.in_(old)))
            connection.execute(delete(predictions).where(predictions.c.id.in_(old)))
        return len(old) < _PURGE_BATCH

    # -- the front

    def _report_state(self, failing: str) -> None:
        if self._failing is None or bool(failing) != bool(self._failing):
            self._send(FrameType.STATE, {"failing": failing})
        self._failing = failing

    def send_recent_quality(self, windows: list[dict[str, Any]]) -> None:
        """Send the quality of versions on the predictions of the last days; another thread may call this."""
        self._send(FrameType.RECENT_QUALITY, windows)

    def _send(self, kind: FrameType, payload: Any, number: int = 0) -> None:
        with self._sending, suppress(OSError):  # records are still written after the front has exited
            for piece in Frame(kind, number, orjson.dumps(payload)).pack():
                self._connection.sendall(piece)


def main(descriptor: int) -> None:
    """Serve the front on an inherited socket."""
    # These signals may reach all processes of the service; the front decides when this process exits.
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    privileges.hide_memory()
    connection = socket.socket(fileno=descriptor)
    if opened := receive(connection):
        options = orjson.loads(opened.payload)
        configure_logging(*options["logged"])
        threading.Thread(target=_exit_with_parent, args=(connection,), daemon=True).start()
        writer = Writer(connection, options["url"], options["days"])
        if quality := options["quality"]:
            monitor = QualityMonitor(options["url"], writer.send_recent_quality, *quality)
            threading.Thread(target=monitor.run, daemon=True).start()
        writer.run()


def _exit_with_parent(connection: socket.socket) -> None:
    """Exit some seconds after the front, even if the database's driver still waits."""
    poll = select.poll()
    poll.register(connection, 0)
    poll.poll()
    time.sleep(2 * _EXIT_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
