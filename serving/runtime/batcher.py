"""Which rows leave next: what waits while every model process is busy leaves together.

No timer adds latency: a process that is free is given what waits at once. A request that fails, is cancelled
or runs out of time never touches its neighbours in the same batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from serving.errors import (
    CallerLeft,
    DeadlineExceeded,
    ModelFailed,
    Overloaded,
    ProcessDied,
    ServingError,
)
from serving.runtime.predictions import Later, Predictions, Whole
from serving.runtime.replica import Outcome, Replica, State
from serving.runtime.streams import Stream
from serving.runtime.table import Rows, joined

log = logging.getLogger("serving.batcher")
# Callers who have just been answered are back within a millisecond or so. A model that takes long is given a
# moment for them, or else they would take turns with those who came meanwhile, in batches of half the size.
_SLOW_SECONDS = 0.005
_REST = 0.05
_STREAMED = Predictions((), 1)

Answer: TypeAlias = Predictions | Later | Whole


class Ticket:
    """One request in the batcher; settled exactly once, by `settle`.

    With a `stream` it is answered bit by bit, alone.
    """

    __slots__ = (
        "_timer",
        "finished",
        "future",
        "key",
        "most_rows",
        "queued",
        "retried",
        "rows",
        "started",
        "stream",
    )

    def __init__(
        self,
        rows: Rows,
        key: Any,
        most_rows: int,
        future: asyncio.Future[Answer],
        stream: Stream | None = None,
    ) -> None:
        self.rows, self.stream = rows, stream
        self.key = key
        self.most_rows = most_rows
        self.future = future
        self.retried = False
        self.queued = time.perf_counter()
        self.started = self.finished = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def call_after(self, seconds: float, call: Callable[[Ticket], None]) -> None:
        """Have `call` called if it is not settled within `seconds`."""
        self._timer = self.future.get_loop().call_later(seconds, call, self)

    def hurry_no_more(self) -> None:
        """Take back what `call_after` has set."""
        if self._timer is not None:
            self._timer.cancel()

    def settle(self, outcome: Answer | ServingError) -> None:
        """Give the waiting request its predictions or its error; the first call counts."""
        self.hurry_no_more()
        if self.future.done():
            return
        if self.stream is not None:
            self.stream.end()
        self.finished = time.perf_counter()
        if isinstance(outcome, ServingError):
            self.future.set_exception(outcome)
            self.future.exception()  # seen: its request may have failed already by another part
        else:
            self.future.set_result(outcome)


Group = list[Ticket]


def take(waiting: deque[Ticket]) -> Group:
    """Take the next batch out of `waiting`: the oldest request, and those like it that fit beside it."""
    first = waiting.popleft()
    group, rows, passed = [first], len(first.rows), []
    while waiting and rows < first.most_rows:
        ticket = waiting.popleft()
        if ticket.key == first.key and rows + len(ticket.rows) <= first.most_rows:
            group.append(ticket)
            rows += len(ticket.rows)
        else:
            passed.append(ticket)
    waiting.extendleft(reversed(passed))
    return group


def retries(group: Group, error: ModelFailed | ProcessDied) -> list[Group]:
    """The smaller groups in which to try a failed one again; none where that would tell nothing new.

    An exception is hunted down by halves, so that a poison row fails alone. A death costs a new process, so
    that each request is tried once more, alone; one of which the caller has heard a part can't begin anew.
    """
    if group[0].stream is not None and group[0].stream.heard:
        return []
    if isinstance(error, ProcessDied):
        return [[ticket] for ticket in group if not ticket.retried]
    middle = len(group) // 2
    return [group[:middle], group[middle:]] if middle else []


class Batcher:
    """Hands waiting requests to the model processes of one version.

    Args:
        encode: makes a table of rows and a group's key.
        read: makes of an answered table what a group asked for, one thing for each row.
        most_waiting: requests that may wait.
        deadline: seconds a batch may run before its process is killed.
    """

    def __init__(
        self,
        encode: Callable[[Rows, Any], bytes],
        read: Callable[[bytes, Group], Answer],
        *,
        most_waiting: int,
        deadline: float,
    ) -> None:
        self._encode, self._read = encode, read
        self._most_waiting, self._deadline = most_waiting, deadline
        self._waiting: deque[Ticket] = deque()
        self._again: deque[Group] = deque()
        self._idle: deque[Replica] = deque()
        self._scheduled = False

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def add(self, replica: Replica) -> None:
        """Use a model process that has loaded."""
        self._idle.append(replica)
        self._schedule()

    def submit(
        self, rows: Rows, key: Any, most_rows: int, deadline: float, stream: Stream | None = None
    ) -> Ticket:
        """Queue rows that may share a batch, of at most `most_rows`, with others of the same key.

        More rows than that go alone. With a `stream` one row is answered bit by bit.

        Raises:
            Overloaded: as many requests as may wait are waiting.
        """
        if len(self._waiting) >= self._most_waiting:
            raise Overloaded(f"{self._most_waiting} requests wait for this model already.")
        ticket = Ticket(rows, key, most_rows, asyncio.get_running_loop().create_future(), stream)
        ticket.call_after(deadline, self._expire)
        self._waiting.append(ticket)
        self._schedule()
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Forget a request whose caller has gone; if its batch is under way, that goes on."""
        self._drop(ticket)
        ticket.settle(CallerLeft("The caller has gone."))

    def _expire(self, ticket: Ticket) -> None:
        hung = bool(ticket.started)
        self._drop(ticket)
        ticket.settle(DeadlineExceeded("The model did not answer within the deadline.", hung=hung))

    def _drop(self, ticket: Ticket) -> None:
        if not ticket.started:
            self._waiting.remove(ticket)
            ticket.started = time.perf_counter()

    def _schedule(self) -> None:
        # What arrives in the same turn of the loop leaves in the same batch.
        if self._idle and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._again or self._waiting:
            replica = self._free()
            if replica is None:
                return
            group = self._again.popleft() if self._again else take(self._waiting)
            self._run(replica, [ticket for ticket in group if not ticket.future.done()])

    def _free_again(self, replica: Replica) -> None:
        if replica.state is State.IDLE:
            self._idle.append(replica)
        self._dispatch()

    def _free(self) -> Replica | None:
        while self._idle:
            replica = self._idle.popleft()
            if replica.state is State.IDLE:
                return replica
        return None

    def _run(self, replica: Replica, group: Group) -> None:
        now = time.perf_counter()
        for ticket in group:
            ticket.started = now
        rows = joined([ticket.rows for ticket in group])
        try:
            table = self._encode(rows, group[0].key) if group else b""
        except ModelFailed as error:
            self._settle(group, error)
            table = b""
        if not table:
            self._idle.appendleft(replica)
            return
        if stream := group[0].stream:
            self._run_stream(replica, group[0], stream, table)
            return
        loop = asyncio.get_running_loop()
        hanging = loop.call_later(self._deadline, replica.kill)
        started = loop.time()

        def done(outcome: Outcome) -> None:
            hanging.cancel()
            self._finish(group, len(rows), outcome)
            took = loop.time() - started
            if took < _SLOW_SECONDS:
                self._free_again(replica)
            else:
                loop.call_later(took * _REST, self._free_again, replica)

        replica.ask(table, done)

    def _run_stream(self, replica: Replica, ticket: Ticket, stream: Stream, table: bytes) -> None:
        ticket.hurry_no_more()

        def hung() -> None:
            ticket.settle(DeadlineExceeded("The model did not go on within the deadline.", hung=True))
            replica.kill()

        def done(outcome: Outcome) -> None:
            stream.left()
            if isinstance(outcome, bytes):
                ticket.settle(_STREAMED)
            else:
                self._fail([ticket], outcome)
            self._free_again(replica)

        replica.ask(table, done, stream.hear)
        stream.begin(replica, hung)

    def _finish(self, group: Group, rows: int, outcome: Outcome) -> None:
        if isinstance(outcome, (ModelFailed, ProcessDied)):
            self._fail(group, outcome)
            return
        try:
            predictions = self._read(outcome, group)
        except ModelFailed as error:
            self._fail(group, error)
            return
        if len(predictions) != rows:
            self._settle(group, ModelFailed(f"it answered {len(predictions)} rows for {rows}"))
            return
        start = 0
        for ticket in group:
            end = start + len(ticket.rows)
            try:
                ticket.settle(predictions.part(start, end))
            except ModelFailed as error:
                ticket.settle(error)
            start = end

    def _fail(self, group: Group, error: ModelFailed | ProcessDied) -> None:
        again = retries(group, error)
        self._again.extendleft(reversed(again))
        if isinstance(error, ProcessDied):
            log.warning("a model process died; requests that it had: %d", len(group))
        trying = [ticket for smaller in again for ticket in smaller]
        self._settle([ticket for ticket in group if ticket not in trying], error)
        for ticket in trying:
            ticket.retried |= isinstance(error, ProcessDied)

    @staticmethod
    def _settle(group: Group, error: ServingError) -> None:
        for ticket in group:
            ticket.settle(error)
