"""Which rows leave next, and that no request's fate touches its neighbours in a batch.

The batcher runs on a loop whose clock the tests move, with processes that answer when the tests say so.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.batching.batcher import Batcher
from serving.batching.chunk_stream import ChunkStream
from serving.batching.latency_model import BatchLatencyModel
from serving.batching.pending import PendingRequest, next_batch, split_for_retry
from serving.codecs.predictions import Predictions
from serving.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    ModelFailed,
    NotSeparable,
    Overloaded,
    ProcessDied,
)
from serving.processes.replica import Outcome, ReplicaState

DEADLINE = 10.0


class Clockwork(asyncio.SelectorEventLoop):
    """A loop whose time stands still until it is moved."""

    now = 0.0

    def time(self) -> float:
        return self.now


class Process:
    """Takes tables as a `Replica` does, and holds each until it is told how that ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.state = ReplicaState.IDLE
        self.loop = loop
        self.asked: list[list[dict[str, Any]]] = []
        self.killed = False
        self._done: Callable[[Outcome], None] | None = None

    def ask(self, payload: bytes, done: Callable[[Outcome], None], hear: Any = None) -> None:
        assert self.state is ReplicaState.IDLE
        self.state, self._done = ReplicaState.BUSY, done
        self.asked.append(json.loads(payload))

    def kill(self) -> None:
        self.killed = True
        self.loop.call_soon(self.die)

    kill_hung = kill

    def answer(self, predictions: list[Any] | None = None) -> None:
        """Answer what was asked; each row is predicted as twice its `x` unless something else is given."""
        rows = self.asked[-1]
        found = [row.get("nan") or row["x"] * 2 for row in rows] if predictions is None else predictions
        self._end(ReplicaState.IDLE, json.dumps(found).encode())

    def fail(self) -> None:
        self._end(ReplicaState.IDLE, ModelFailed("it raised"))

    def die(self) -> None:
        self._end(ReplicaState.DEAD, ProcessDied("it died"))

    def play(self) -> None:
        """End as the rows say: one that is poison makes the model raise, one that kills ends the process."""
        rows = self.asked[-1]
        if any(row.get("kills") for row in rows):
            self.die()
        elif any(row.get("poison") for row in rows):
            self.fail()
        else:
            self.answer()

    def _end(self, state: ReplicaState, outcome: Outcome) -> None:
        self.state = ReplicaState.DEAD if self.state is ReplicaState.DEAD else state
        if done := self._done:
            self._done = None
            done(outcome)


class Bench:
    """A batcher, its processes and its clock."""

    def __init__(self, processes: int = 1, max_rows: int = 32, max_queue_size: int = 1000) -> None:
        self.loop = Clockwork()
        self.shared = True
        self.processes: list[Process] = []
        self.latency_model = BatchLatencyModel(1.0, max(1, processes))
        self.calls: list[tuple[int, float, float]] = []
        self.batcher = Batcher(
            encode,
            read,
            max_queue_size=max_queue_size,
            call_seconds=DEADLINE,
            latency_model=self.latency_model,
            shared=lambda: self.shared,
            on_call=lambda *call: self.calls.append(call),
        )
        self.max_rows = max_rows
        for _ in range(processes):
            self.add()

    def close(self) -> None:
        self.loop.close()

    def do(self, act: Callable[[], Any]) -> Any:
        """Perform something within the loop, and let happen what follows from it."""

        async def within() -> Any:
            found = act()
            for _ in range(3):
                await asyncio.sleep(0)
            return found

        return self.loop.run_until_complete(within())

    def add(self) -> Process:
        process = Process(self.loop)
        self.processes.append(process)
        self.do(lambda: self.batcher.add(process))  # type: ignore[arg-type]
        return process

    def submit(
        self, *requests: list[dict[str, Any]], key: str = "", deadline: float = DEADLINE
    ) -> list[PendingRequest]:
        """Submit requests, all in the same turn of the loop."""
        made: list[PendingRequest] = self.do(lambda: [self._submit(rows, key, deadline) for rows in requests])
        return made

    def _submit(self, rows: list[dict[str, Any]], key: str, deadline: float) -> PendingRequest:
        return self.batcher.submit(rows, key, self.max_rows, deadline)

    def withdraw(self, ticket: PendingRequest) -> None:
        self.do(lambda: self.batcher.withdraw(ticket))

    def advance(self, seconds: float) -> None:
        self.loop.now += seconds
        self.do(lambda: None)

    def play(self) -> None:
        """Let all processes work until nothing is asked any more; those that die are replaced."""
        while busy := [process for process in self.processes if process.state is ReplicaState.BUSY]:
            self.do(busy[0].play)
            if busy[0].state is ReplicaState.DEAD:
                self.add()


def encode(rows: Any, key: Any, carried: Any) -> bytes:
    if any(row.get("misfit") for row in rows):
        raise ModelFailed("the rows do not fit")
    return json.dumps(rows).encode()


def read(answer: bytes, group: list[PendingRequest]) -> Predictions:
    found = json.loads(answer)
    if found == ["inseparable"]:
        raise NotSeparable("it returned one result for several requests")
    if "unreadable" in found:
        raise ModelFailed("that is no prediction")
    pieces = [b"%d," % value for value in found]
    return Predictions(pieces, 1, [row for row, value in enumerate(found) if value is True])


@pytest.fixture
def bench() -> Iterator[Bench]:
    with closing(Bench()) as made:
        yield made


def rows(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"x": number} | more for number in numbers]


def result(ticket: PendingRequest) -> Any:
    """What a ticket was settled with: predictions, the class of an error, or "waits"."""
    if not ticket.future.done():
        return "waits"
    error = ticket.future.exception()
    return type(error) if error else json.loads(b"[%b]" % ticket.future.result().materialize().items_json())


def results(tickets: list[PendingRequest]) -> list[Any]:
    return [result(ticket) for ticket in tickets]


# -- decisions

requests = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 5)), min_size=1, max_size=12)


def tickets_of(asked: list[tuple[str, int]], most: int = 1) -> list[PendingRequest]:
    return [PendingRequest(rows(*range(count)), key, most, None) for key, count in asked]  # type: ignore[arg-type]


@given(requests, st.integers(1, 12))
def test_a_batch_is_the_oldest_request_and_those_like_it_that_fit(
    asked: list[tuple[str, int]], most: int
) -> None:
    tickets = tickets_of(asked, most)
    waiting = deque(tickets)
    group = next_batch(waiting, shared=True)
    assert group[0] is tickets[0]
    assert {ticket.key for ticket in group} == {tickets[0].key}
    size = sum(len(ticket.rows) for ticket in group)
    assert size <= most or len(group) == 1
    assert [ticket for ticket in tickets if ticket not in group] == [*waiting]
    assert group == [ticket for ticket in tickets if ticket in group]
    assert all(size + len(ticket.rows) > most for ticket in waiting if ticket.key == group[0].key), (
        "one that was passed over would have fitted"
    )


@given(requests, st.integers(1, 12))
def test_every_request_leaves_once(asked: list[tuple[str, int]], most: int) -> None:
    tickets = tickets_of(asked, most)
    waiting, left = deque(tickets), []
    while waiting:
        left += next_batch(waiting, shared=True)
    assert len(left) == len(tickets)
    assert set(map(id, left)) == set(map(id, tickets))


@given(requests)
def test_a_group_that_raised_is_halved_in_order(asked: list[tuple[str, int]]) -> None:
    group = tickets_of(asked)
    halves = split_for_retry(group, ModelFailed("it raised"))
    assert [ticket for half in halves for ticket in half] == (group if len(group) > 1 else [])
    assert all(len(half) < len(group) for half in halves)


@given(requests, st.data())
def test_a_group_that_died_is_tried_again_one_by_one_and_once(
    asked: list[tuple[str, int]], data: st.DataObject
) -> None:
    group = tickets_of(asked)
    for ticket in group:
        ticket.retried = data.draw(st.booleans())
    assert split_for_retry(group, ProcessDied("it died")) == [
        [ticket] for ticket in group if not ticket.retried
    ]


# -- batching


def test_what_arrives_in_one_turn_leaves_together(bench: Bench) -> None:
    tickets = bench.submit(rows(1), rows(2, 3), rows(4))
    assert bench.processes[0].asked == [rows(1, 2, 3, 4)]
    bench.play()
    assert results(tickets) == [[2], [4, 6], [8]]


def test_what_arrives_while_the_process_is_busy_leaves_together(bench: Bench) -> None:
    for number in range(1, 5):
        bench.submit(rows(number))
    assert bench.processes[0].asked == [rows(1)]
    bench.do(bench.processes[0].answer)
    assert bench.processes[0].asked == [rows(1), rows(2, 3, 4)]


def test_a_free_process_is_asked_while_another_is_busy(bench: Bench) -> None:
    other = bench.add()
    first, second = bench.submit(rows(1)), bench.submit(rows(2))
    assert (bench.processes[0].asked, other.asked) == ([rows(1)], [rows(2)])
    bench.do(other.answer)
    assert results(first + second) == ["waits", [4]]


def test_requests_that_came_before_any_process_wait_for_one() -> None:
    with closing(Bench(processes=0)) as bench:
        tickets = bench.submit(rows(1), rows(2))
        bench.add()
        bench.play()
        assert results(tickets) == [[2], [4]]


def test_keys_are_never_mixed(bench: Bench) -> None:
    bench.submit(rows(0))
    for number, key in enumerate("abaacb", 1):
        bench.submit(rows(number), key=key)
    bench.play()
    assert bench.processes[0].asked == [rows(0), rows(1, 3, 4), rows(2, 6), rows(5)]


def test_a_batch_has_no_more_rows_than_the_limit(bench: Bench) -> None:
    tickets = bench.submit(*[rows(number) for number in range(70)])
    bench.play()
    assert [len(asked) for asked in bench.processes[0].asked] == [32, 32, 6]
    assert results(tickets) == [[number * 2] for number in range(70)]


def test_a_request_beyond_the_limit_goes_alone(bench: Bench) -> None:
    tickets = bench.submit(rows(*range(100)), rows(100))
    bench.play()
    assert [len(asked) for asked in bench.processes[0].asked] == [100, 1]
    assert results(tickets) == [[number * 2 for number in range(100)], [200]]


def test_a_full_queue_takes_no_more_and_serves_what_it_has_taken() -> None:
    with closing(Bench(max_queue_size=2)) as bench:
        tickets = bench.submit(rows(1)) + bench.submit(rows(2), rows(3))
        assert bench.batcher.waiting == 2
        with pytest.raises(Overloaded):
            bench.submit(rows(4))
        bench.play()
        assert results(tickets) == [[2], [4], [6]]
        assert bench.submit(rows(5))


# -- time


def test_a_deadline_that_passes_in_the_queue_spares_the_model(bench: Bench) -> None:
    first, second = bench.submit(rows(1), deadline=20), bench.submit(rows(2), deadline=5)
    bench.advance(6)
    assert results(first + second) == ["waits", DeadlineExceeded]
    assert bench.batcher.waiting == 0
    bench.play()
    assert bench.processes[0].asked == [rows(1)]
    assert results(first) == [[2]]


def test_a_deadline_that_passes_under_way_leaves_the_neighbours_their_answers(bench: Bench) -> None:
    tickets = bench.do(
        lambda: [
            bench.batcher.submit(rows(number), "", 32, deadline)
            for number, deadline in ((1, 5), (2, 8), (3, 9))
        ]
    )
    bench.advance(6)
    assert results(tickets) == [DeadlineExceeded, "waits", "waits"]
    bench.play()
    assert results(tickets) == [DeadlineExceeded, [4], [6]]


def test_a_process_that_hangs_is_killed_and_the_others_are_served(bench: Bench) -> None:
    hanging = bench.submit(rows(1), rows(2))
    bench.advance(5)
    queued = bench.submit(rows(3))
    bench.advance(5)
    assert bench.processes[0].killed
    assert bench.processes[0].state is ReplicaState.DEAD
    assert results(hanging + queued) == [DeadlineExceeded, DeadlineExceeded, "waits"]
    bench.add()
    bench.play()
    assert results(queued) == [[6]]
    assert bench.processes[1].asked == [rows(3)]


def test_a_process_that_answers_in_time_is_not_killed(bench: Bench) -> None:
    bench.submit(rows(1))
    bench.play()
    bench.advance(DEADLINE * 2)
    assert not bench.processes[0].killed
    assert result(*bench.submit(rows(2))) == "waits"


# -- callers that go


def test_a_caller_that_goes_while_queued_is_dropped_from_the_batch(bench: Bench) -> None:
    bench.submit(rows(0))
    tickets = [bench.submit(rows(number))[0] for number in (1, 2, 3)]
    bench.withdraw(tickets[1])
    bench.play()
    assert bench.processes[0].asked == [rows(0), rows(1, 3)]
    assert results(tickets) == [[2], ClientDisconnected, [6]]


def test_nothing_is_asked_where_all_callers_have_gone(bench: Bench) -> None:
    bench.submit(rows(0))
    for ticket in bench.submit(rows(1), rows(2)):
        bench.withdraw(ticket)
    bench.play()
    assert bench.processes[0].asked == [rows(0)]
    assert bench.batcher.waiting == 0


def test_a_caller_that_is_cancelled_is_withdrawn_before_or_after_its_batch_leaves(bench: Bench) -> None:
    bench.submit(rows(0))
    before, after = bench.submit(rows(1), rows(2))
    for ticket in (before, after):
        ticket.future.cancel()
    bench.withdraw(before)
    assert bench.batcher.waiting == 1
    bench.play()
    bench.withdraw(after)
    assert (bench.batcher.waiting, bench.batcher.rows) == (0, 0)
    assert bench.processes[0].asked == [rows(0)]


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("leaving", ["withdraws", "cancels"])
def test_a_caller_that_goes_mid_batch_leaves_the_neighbours_their_answers(
    bench: Bench, position: int, leaving: str
) -> None:
    tickets = bench.submit(*[rows(number) for number in range(4)])
    if leaving == "withdraws":
        bench.withdraw(tickets[position])
    else:
        tickets[position].future.cancel()
    bench.play()
    others = [ticket for ticket in tickets if ticket is not tickets[position]]
    assert results(others) == [[number * 2] for number in range(4) if number != position]
    assert bench.processes[0].asked == [rows(0, 1, 2, 3)]


@pytest.mark.parametrize("position", range(4))
def test_a_caller_that_goes_before_a_failed_batch_is_tried_again_is_not_tried(
    bench: Bench, position: int
) -> None:
    tickets = bench.submit(*[rows(number) for number in range(4)])
    bench.withdraw(tickets[position])
    bench.do(bench.processes[0].fail)
    bench.play()
    assert all({"x": position} not in asked for asked in bench.processes[0].asked[1:])
    assert sum(ticket.future.exception() is None for ticket in tickets) == 3


# -- failures


@pytest.mark.parametrize("position", [0, 1, 15, 16, 30, 31])
def test_a_poison_row_fails_alone(bench: Bench, position: int) -> None:
    good = [rows(number) for number in range(32)]
    sent = [*good[:position], rows(99, poison=True), *good[position + 1 :]]
    tickets = bench.submit(*sent)
    bench.play()
    alone = [[number * 2] for number in range(32)]
    assert results(tickets) == [*alone[:position], ModelFailed, *alone[position + 1 :]]


def test_several_poison_rows_fail_alone(bench: Bench) -> None:
    tickets = bench.submit(*[rows(number, poison=number % 5 == 0) for number in range(32)])
    bench.play()
    assert results(tickets) == [ModelFailed if number % 5 == 0 else [number * 2] for number in range(32)]


def test_an_answer_that_cannot_be_read_is_hunted_down_like_an_exception(bench: Bench) -> None:
    tickets = bench.submit(rows(1), rows(2))
    process = bench.processes[0]
    bench.do(lambda: process.answer(["unreadable", 4]))
    bench.do(lambda: process.answer(["unreadable"]))
    bench.play()
    assert results(tickets) == [ModelFailed, [4]]


def test_stream_shares_no_call_with_a_request_like_it(bench: Bench) -> None:
    async def waiting() -> deque[PendingRequest]:
        loop = asyncio.get_running_loop()
        streams = (None, ChunkStream(DEADLINE), None)
        return deque(PendingRequest([{"x": 1}], "", 32, loop.create_future(), stream) for stream in streams)

    tickets = bench.loop.run_until_complete(waiting())
    first, second, third = tickets
    assert next_batch(tickets, shared=True) == [first, third]
    assert next_batch(tickets, shared=True) == [second]


def test_requests_of_an_output_that_cannot_be_split_are_called_for_alone(bench: Bench) -> None:
    tickets = bench.submit(rows(1), rows(2, 3))
    bench.do(lambda: bench.processes[0].answer(["inseparable"]))
    bench.do(lambda: bench.processes[0].answer([5, 6, 7]))
    bench.play()
    assert results(tickets) == [[5, 6, 7], [4, 6]]


def test_calls_are_not_shared_unless_that_is_allowed(bench: Bench) -> None:
    bench.shared = False
    tickets = bench.submit(rows(1), rows(2), rows(3))
    bench.play()
    assert results(tickets) == [[2], [4], [6]]
    assert [len(asked) for asked in bench.processes[0].asked] == [1, 1, 1]


def test_a_prediction_that_is_not_finite_fails_its_own_request(bench: Bench) -> None:
    tickets = bench.submit(rows(1), [*rows(2), *rows(3, nan=True)], rows(4))
    bench.play()
    assert results(tickets) == [[2], ModelFailed, [8]]
    assert "row 1" in str(tickets[1].future.exception())


def test_rows_that_cannot_be_encoded_fail_and_the_process_goes_on(bench: Bench) -> None:
    tickets = bench.submit(rows(1, misfit=True))
    tickets += bench.submit(rows(2))
    bench.play()
    assert results(tickets) == [ModelFailed, [4]]


def test_requests_under_a_process_that_dies_are_tried_once_more_and_alone(bench: Bench) -> None:
    tickets = bench.submit(rows(1), rows(2), rows(3))
    bench.do(bench.processes[0].die)
    assert results(tickets) == ["waits"] * 3
    new = bench.add()
    bench.play()
    assert new.asked == [rows(1), rows(2), rows(3)]
    assert results(tickets) == [[2], [4], [6]]


def test_a_row_that_kills_fails_alone_and_after_two_deaths(bench: Bench) -> None:
    tickets = bench.submit(rows(1), rows(2, kills=True), rows(3))
    bench.play()
    assert results(tickets) == [[2], ProcessDied, [6]]
    assert sum(process.state is ReplicaState.DEAD for process in bench.processes) == 2


def test_what_is_tried_again_goes_before_what_came_later(bench: Bench) -> None:
    bench.submit(rows(1), rows(2))
    later = bench.submit(rows(3))
    bench.do(bench.processes[0].fail)
    bench.play()
    assert bench.processes[0].asked == [rows(1, 2), rows(1), rows(2), rows(3)]
    assert results(later) == [[6]]


def test_callers_who_come_back_to_a_slow_model_share_its_next_batch(bench: Bench) -> None:
    bench.submit(rows(1))
    bench.submit(rows(2))
    bench.advance(0.1)
    bench.do(bench.processes[0].play)
    bench.submit(rows(3))
    assert bench.processes[0].asked == [rows(1)]
    bench.advance(0.005)
    assert bench.processes[0].asked == [rows(1), rows(2, 3)]


def test_a_quick_model_is_asked_again_at_once(bench: Bench) -> None:
    bench.submit(rows(1))
    bench.submit(rows(2))
    bench.advance(0.004)
    bench.do(bench.processes[0].play)
    assert bench.processes[0].asked == [rows(1), rows(2)]


def test_a_process_that_died_idle_is_not_asked(bench: Bench) -> None:
    bench.processes[0].state = ReplicaState.DEAD
    tickets = bench.submit(rows(1))
    assert bench.processes[0].asked == []
    bench.add()
    bench.play()
    assert results(tickets) == [[2]]


# -- what is more than it can answer in time


def work(bench: Bench, seconds: float) -> None:
    """Have the process answer what it was asked, after a time."""
    bench.advance(seconds)
    bench.do(bench.processes[0].play)
    bench.advance(seconds)  # a slow one rests


def test_what_a_slow_model_could_not_answer_in_time_is_refused(bench: Bench) -> None:
    for size in (1, 2, 4):
        bench.submit(rows(*range(size)))
        work(bench, 0.1 * size)
    tickets = bench.submit(*(rows(number) for number in range(10)))
    tickets += bench.submit(rows(10))  # no other waits
    with pytest.raises(Overloaded, match="in time"):
        bench.submit(rows(11))
    work(bench, 1.0)
    assert results(tickets) == [*([number * 2] for number in range(10)), "waits"]
    bench.submit(rows(12))


def test_what_no_other_waits_before_is_taken_however_slow_the_model(bench: Bench) -> None:
    for size in (1, 2):
        bench.submit(rows(*range(size)))
        work(bench, 9.0 * size)
    bench.submit(rows(1))
    (ticket,) = bench.submit(rows(2))
    assert result(ticket) == "waits"


def test_a_further_part_of_a_request_is_taken_where_a_new_one_is_not(bench: Bench) -> None:
    for size in (1, 2):
        bench.submit(rows(*range(size)))
        work(bench, 0.5 * size)
    bench.submit(*(rows(number) for number in range(4)))
    bench.submit(rows(4))
    with pytest.raises(Overloaded):
        bench.submit(rows(5))
    bench.do(lambda: bench.batcher.submit(rows(5), "", 32, DEADLINE, admitted=True))
    assert bench.batcher.rows == 6


# -- in general


class Requests(RuleBasedStateMachine):
    """Whatever happens in whatever order, every request is settled, and with what it would get alone."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(processes=2, max_rows=8, max_queue_size=20)
        self.tickets: list[PendingRequest] = []
        self.settled: dict[int, Any] = {}

    @rule(
        kinds=st.lists(
            st.sampled_from(["good", "good", "good", "poison", "kills", "nan"]), min_size=1, max_size=4
        ),
        size=st.integers(1, 4),
        key=st.sampled_from("ab"),
        deadline=st.sampled_from([1.0, DEADLINE]),
    )
    def submit(self, kinds: list[str], size: int, key: str, deadline: float) -> None:
        asked = [rows(*range(size), **({} if kind == "good" else {kind: True})) for kind in kinds]
        try:
            self.tickets += self.bench.submit(*asked, key=key, deadline=deadline)
        except Overloaded:
            too_many = self.bench.batcher.waiting == 20
            assert too_many or self.bench.batcher.rows >= self.bench.latency_model.max_rows

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), cancel=st.booleans())
    def leave(self, data: st.DataObject, cancel: bool) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        if ticket.future.done():
            return
        if cancel:
            ticket.future.cancel()
        self.bench.withdraw(ticket)

    @rule(index=st.integers(0, 9))
    def work(self, index: int) -> None:
        busy = [process for process in self.bench.processes if process.state is ReplicaState.BUSY]
        if busy:
            self.bench.do(busy[index % len(busy)].play)

    @rule(index=st.integers(0, 9))
    def die(self, index: int) -> None:
        process = self.bench.processes[index % len(self.bench.processes)]
        self.bench.do(process.die)

    @rule(seconds=st.sampled_from([0.5, 1.0, DEADLINE]))
    def advance(self, seconds: float) -> None:
        self.bench.advance(seconds)

    @rule()
    def add(self) -> None:
        if sum(process.state is not ReplicaState.DEAD for process in self.bench.processes) < 2:
            self.bench.add()

    @invariant()
    def what_is_settled_stays_so_and_is_right(self) -> None:
        for index, ticket in enumerate(self.tickets):
            if not ticket.future.done():
                continue
            found = "cancelled" if ticket.future.cancelled() else result(ticket)
            assert self.settled.setdefault(index, found) == found
            self.check(ticket, found)

    @staticmethod
    def check(ticket: PendingRequest, found: Any) -> None:
        if isinstance(found, list):
            assert found == [row["x"] * 2 for row in ticket.rows]
            assert not {"poison", "kills", "nan"} & ticket.rows[0].keys()
        elif found is ModelFailed:
            assert {"poison", "nan"} & ticket.rows[0].keys()
        elif found is ProcessDied:
            assert ticket.retried
        else:
            assert found in ("cancelled", ClientDisconnected, DeadlineExceeded)

    def teardown(self) -> None:
        self.add()
        self.bench.play()
        self.bench.advance(1.0)  # those that were slow have rested
        self.bench.play()
        assert all(ticket.future.done() for ticket in self.tickets)
        assert self.bench.batcher.waiting == self.bench.batcher.rows == 0
        self.what_is_settled_stays_so_and_is_right()
        self.bench.close()


TestRequests = Requests.TestCase
