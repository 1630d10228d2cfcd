"""The journal's process: takes records from the front and writes them to the database.

`python -m serving.journal.writer FD`, started by `link.py`. All work with SQL and JSON is done here, so that
the front has none of it. It ends when the front closes the socket, or dies: what has come is written, if the
database takes it within a few seconds.
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
from serving.journal.framing import Frame, FrameType, receive
from serving.journal.quality import Quality
from serving.journal.row_builder import PREDICTION, VERSION, unpack
from serving.journal.schema import feedback, first_id, predictions, versions
from serving.processes import confinement
from serving.telemetry.logging import configure as configure_logging

T = TypeVar("T")
log = logging.getLogger("serving.journal")
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_SWEEPS = 60.0
_SECONDS_TO_END = 5.0
_BACKOFF = Backoff(first_seconds=0.05, max_seconds=2.0)
_SWEPT_AT_ONCE = 1000
_MAX_CLOCK_JUMP_SECONDS, _SECONDS_AFTER_JUMP = 300.0, 3600.0
"""After a jump of the clock, nothing is deleted for this time: it may be set right again."""
_NICE = 5


class ParentExited(Exception):
    """The front has gone, and the database has been away for too long since."""


class Writer:
    """Answers one front."""

    def __init__(self, connection: socket.socket, url: str, days: int) -> None:
        self._connection, self._days = connection, days
        self._engine: Engine = database.connect(url)
        self._poll = select.poll()
        self._poll.register(connection, 0)  # which tells that the other side has gone, and nothing else
        self._is_upgraded = False
        self._failing: str | None = None  # nothing was told yet
        self._told: list[Quality] = []
        self._look_at = self._sweep_at = 0.0
        self._clock_offset = time.time() - time.monotonic()

    def run(self) -> None:
        """Do what frames say until the front has gone, and what is to be done from time to time."""
        with suppress(ParentExited):
            self._retry_until(self._upgrade)
            while True:
                if self._has_input():
                    frame = receive(self._connection)
                    if frame is None:
                        return
                    self._hear(frame)
                self._run_periodic()

    def _has_input(self) -> bool:
        patience = max(0.0, self._look_at - time.monotonic())
        return bool(select.select([self._connection], [], [], patience)[0])

    def _hear(self, frame: Frame) -> None:
        if frame.kind is FrameType.RECORDS:
            lost = self._retry_until(partial(self._write, frame.payload))
            self._tell(FrameType.WRITTEN, {"lost": lost}, frame.number)
        else:
            answer = self._take(orjson.loads(frame.payload))
            self._look_at = 0.0
            self._run_periodic()  # whoever is answered sees what has become of it
            self._tell(FrameType.ANSWER, answer, frame.number)

    def _take(self, asked: Any) -> dict[str, Any]:
        """What became of feedback."""
        try:
            return self._retry_until(
                partial(self._in_transaction, partial(feedback_store.record_feedback, asked=asked))
            )
        except ParentExited:
            raise
        except RowsRejected as error:  # a prediction was deleted in this moment
            return {"refused": str(error)}
        except Exception:  # whatever it is, records go on
            log.exception("feedback could not be taken")
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
        """Write records; gives how many of them the database refused."""
        rows = unpack(payload)
        try:
            self._insert(rows.versions, rows.predictions)
        except RowsRejected:
            return rows.rejected + sum(not self._insert_one(rows.versions, each) for each in rows.predictions)
        return rows.rejected

    def _insert_one(self, of: list[tuple[Any, ...]], prediction: tuple[Any, ...]) -> bool:
        try:
            self._insert(of, [prediction])
        except RowsRejected as error:
            log.error("prediction %s is not recorded: %s", prediction[0], error)
            return False
        return True

    def _insert(self, of: list[tuple[Any, ...]], rows: list[tuple[Any, ...]]) -> None:
        with transaction(self._engine) as connection:
            database.insert(connection, versions, VERSION, of)
            if rows:
                database.insert(connection, predictions, PREDICTION, rows)

    def _retry_until(self, do: Callable[[], T]) -> T:
        """What `do` gives, tried until the database goes along.

        Raises:
            Gone: the front has gone, and it was tried for some seconds more.
        """
        pause, ends = _BACKOFF.first_seconds, float("inf")
        while True:
            try:
                found = do()
            except JournalUnavailable as error:
                self._report_state(str(error))
            else:
                self._report_state("")
                return found
            if self._poll.poll(pause * 1000):
                ends = min(ends, time.monotonic() + _SECONDS_TO_END)
                time.sleep(pause)
            if time.monotonic() > ends:
                raise ParentExited
            pause = _BACKOFF.following(pause)

    # -- from time to time

    def _run_periodic(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _SECONDS_BETWEEN_LOOKS
        try:
            self._look()
            self._check_clock(now)
            if self._days and now >= self._sweep_at:
                if self._in_transaction(self._purge_expired):
                    self._sweep_at = now + _SECONDS_BETWEEN_SWEEPS
                else:
                    self._look_at = 0.0  # go on as soon as the front asks for nothing
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
            self._sweep_at = now + _SECONDS_AFTER_JUMP
        self._clock_offset = offset

    def _look(self) -> None:
        """Tell the front how right versions are by now, as other fronts may have heard of it too."""
        found = self._in_transaction(feedback_store.model_qualities)
        if found != self._told:
            self._told = found
            self._tell(FrameType.QUALITY, [asdict(each) for each in found])

    def _purge_expired(self, connection: Connection) -> bool:
        """Delete some of the records that are too old; gives whether there are no more."""
        bound = first_id(datetime.now(UTC) - timedelta(days=self._days))
        ids = choose(predictions.c.id).where(predictions.c.id < bound).order_by(predictions.c.id)
        old = [*connection.execute(ids.limit(_SWEPT_AT_ONCE)).scalars()]
        if old:
            connection.execute(delete(feedback).where(feedback.c.prediction.in_(old)))
            connection.execute(delete(predictions).where(predictions.c.id.in_(old)))
        return len(old) < _SWEPT_AT_ONCE

    # -- the front

    def _report_state(self, failing: str) -> None:
        if self._failing is None or bool(failing) != bool(self._failing):
            self._tell(FrameType.STATE, {"failing": failing})
        self._failing = failing

    def _tell(self, kind: FrameType, payload: Any, number: int = 0) -> None:
        with suppress(OSError):  # it is written all the same, if the front has gone
            for piece in Frame(kind, number, orjson.dumps(payload)).pack():
                self._connection.sendall(piece)


def main(descriptor: int) -> None:
    """Serve the front on a socket that was inherited."""
    for each in (signal.SIGINT, signal.SIGTERM):  # who stops a whole group of processes means the front
        signal.signal(each, signal.SIG_IGN)
    os.nice(_NICE)
    confinement.hide_memory()
    connection = socket.socket(fileno=descriptor)
    if opened := receive(connection):
        asked = orjson.loads(opened.payload)
        configure_logging(*asked["logged"])
        threading.Thread(target=_exit_with_parent, args=(connection,), daemon=True).start()
        Writer(connection, asked["url"], asked["days"]).run()


def _exit_with_parent(connection: socket.socket) -> None:
    """Whatever the database's driver waits for, nothing outlives the front for long."""
    poll = select.poll()
    poll.register(connection, 0)
    poll.poll()
    time.sleep(2 * _SECONDS_TO_END)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
