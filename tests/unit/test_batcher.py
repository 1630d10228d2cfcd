"""Batching of requests: the order of batches, and the isolation of the requests in a batch.

The batcher runs on an event loop with a manual clock. The tests decide when its processes respond.
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

from serving.batching.batch_selection import next_batch, split_for_retry
from serving.batching.batcher import Batcher
from serving.batching.chunk_stream import ChunkStream
from serving.batching.latency_model import BatchLatencyModel
from serving.batching.pending_request import PendingRequest
from serving.codecs.predictions import Predictions
from serving.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    ModelFailed,
    NotSeparable,
    Overloaded,
    ProcessDied,
)
from serving.processes.call_outcome import Outcome
from serving.processes.replica import ReplicaState

DEADLINE = 10.0


class Clockwork(asyncio.SelectorEventLoop):
    """An event loop with a manual clock."""

    now = 0.0

    def time(self) -> float:
        return self.now


class Process:
    """Replica whose calls the test completes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.state = ReplicaState.IDLE
        self.loop = loop
        self.received: list[list[dict[str, Any]]] = []
        self.killed = False
        self._done: Callable[[Outcome], None] | None = None

    def submit(self, payload: bytes, done: Callable[[Outcome], None], hear: Any = None) -> None:
        assert self.state is ReplicaState.IDLE
        self.state, self._done = ReplicaState.BUSY, done
        self.received.append(json.loads(payload))

    def kill(self) -> None:
        self.killed = True
        self.loop.call_soon(self.die)

    kill_hung = kill

    def respond(self, predictions: list[Any] | None = None) -> None:
        """End the call with predictions; the default is twice the `x` of each row."""
        rows = self.received[-1]
        values = [row.get("nan") or row["x"] * 2 for row in rows] if predictions is None else predictions
        self._end(ReplicaState.IDLE, json.dumps(values).encode())

    def fail(self) -> None:
        self._end(ReplicaState.IDLE, ModelFailed("it raised"))

    def die(self) -> None:
        self._end(ReplicaState.DEAD, ProcessDied("it died"))

    def play(self) -> None:
        """End the call by its rows: a poison row raises, a row that kills ends the process."""
        rows = self.received[-1]
        if any(row.get("kills") for row in rows):
            self.die()
        elif any(row.get("poison") for row in rows):
            self.fail()
        else:
            self.respond()

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
            decode,
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
        """Call a function within the loop, and let the loop run until it is idle."""

        async def within() -> Any:
            result = act()
            for _ in range(3):
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(within())

    def add(self) -> Process:
        process = Process(self.loop)
        self.processes.append(process)
        self.do(lambda: self.batcher.add(process))  # type: ignore[arg-type]
        return process

    def submit(
        self, *requests: list[dict[str, Any]], key: str = "", deadline: float = DEADLINE
    ) -> list[PendingRequest]:
        """Submit requests in the same iteration of the loop."""
        pending: list[PendingRequest] = self.do(
            lambda: [self._submit(rows, key, deadline) for rows in requests]
        )
        return pending

    def _submit(self, rows: list[dict[str, Any]], key: str, deadline: float) -> PendingRequest:
        return self.batcher.submit(rows, key, self.max_rows, deadline)

    def withdraw(self, request: PendingRequest) -> None:
        self.do(lambda: self.batcher.withdraw(request))

    def advance(self, seconds: float) -> None:
        self.loop.now += seconds
        self.do(lambda: None)

    def play(self) -> None:
        """Let all processes work until no request is left; replace those that die."""
        while busy := [process for process in self.processes if process.state is ReplicaState.BUSY]:
            self.do(busy[0].play)
            if busy[0].state is ReplicaState.DEAD:
                self.add()


def encode(rows: Any, key: Any, trace_headers: Any) -> bytes:
    if any(row.get("misfit") for row in rows):
        raise ModelFailed("the rows do not fit")
    return json.dumps(rows).encode()


def decode(encoded: bytes, group: list[PendingRequest]) -> Predictions:
    values = json.loads(encoded)
    if values == ["inseparable"]:
        raise NotSeparable("it returned one result for several requests")
    if "unreadable" in values:
        raise ModelFailed("that is no prediction")
    pieces = [b"%d," % value for value in values]
    return Predictions(pieces, 1, [row for row, value in enumerate(values) if value is True])


@pytest.fixture
def bench() -> Iterator[Bench]:
    with closing(Bench()) as bench:
        yield bench


def rows(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"x": number} | more for number in numbers]


def result(request: PendingRequest) -> Any:
    """Return the predictions of a request, the class of its error, or "waits"."""
    if not request.future.done():
        return "waits"
    error = request.future.exception()
    return type(error) if error else json.loads(b"[%b]" % request.future.result().materialize().items_json())


def results(pending: list[PendingRequest]) -> list[Any]:
    return [result(request) for request in pending]


# -- decisions

requests = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 5)), min_size=1, max_size=12)


def pending_requests(sizes: list[tuple[str, int]], most: int = 1) -> list[PendingRequest]:
    return [PendingRequest(rows(*range(count)), key, most, None) for key, count in sizes]  # type: ignore[arg-type]


@given(requests, st.integers(1, 12))
def test_batch_holds_oldest_request_and_fitting_equals(sizes: list[tuple[str, int]], most: int) -> None:
    pending = pending_requests(sizes, most)
    waiting = deque(pending)
    group = next_batch(waiting, shared=True)
    assert group[0] is pending[0]
    assert {request.key for request in group} == {pending[0].key}
    size = sum(len(request.rows) for request in group)
    assert size <= most or len(group) == 1
    assert [request for request in pending if request not in group] == [*waiting]
    assert group == [request for request in pending if request in group]
    assert all(size + len(request.rows) > most for request in waiting if request.key == group[0].key), (
        "one that was passed over would have fitted"
    )


@given(requests, st.integers(1, 12))
def test_every_request_is_dispatched_once(sizes: list[tuple[str, int]], most: int) -> None:
    pending = pending_requests(sizes, most)
    waiting, left = deque(pending), []
    while waiting:
        left += next_batch(waiting, shared=True)
    assert len(left) == len(pending)
    assert set(map(id, left)) == set(map(id, pending))


@given(requests)
def test_failed_batch_is_bisected_in_order(sizes: list[tuple[str, int]]) -> None:
    group = pending_requests(sizes)
    halves = split_for_retry(group, ModelFailed("it raised"))
    assert [request for half in halves for request in half] == (group if len(group) > 1 else [])
    assert all(len(half) < len(group) for half in halves)


@given(requests, st.data())
def test_requests_of_dead_process_are_retried_once_alone(
    sizes: list[tuple[str, int]], data: st.DataObject
) -> None:
    group = pending_requests(sizes)
    for request in group:
        request.retried = data.draw(st.booleans())
    assert split_for_retry(group, ProcessDied("it died")) == [
        [request] for request in group if not request.retried
    ]


# -- batching


def test_requests_of_one_loop_iteration_share_a_batch(bench: Bench) -> None:
    pending = bench.submit(rows(1), rows(2, 3), rows(4))
    assert bench.processes[0].received == [rows(1, 2, 3, 4)]
    bench.play()
    assert results(pending) == [[2], [4, 6], [8]]


def test_requests_queued_while_busy_share_a_batch(bench: Bench) -> None:
    for number in range(1, 5):
        bench.submit(rows(number))
    assert bench.processes[0].received == [rows(1)]
    bench.do(bench.processes[0].respond)
    assert bench.processes[0].received == [rows(1), rows(2, 3, 4)]


def test_idle_process_is_used_while_another_is_busy(bench: Bench) -> None:
    other = bench.add()
    first, second = bench.submit(rows(1)), bench.submit(rows(2))
    assert (bench.processes[0].received, other.received) == ([rows(1)], [rows(2)])
    bench.do(other.respond)
    assert results(first + second) == ["waits", [4]]


def test_requests_wait_for_the_first_process() -> None:
    with closing(Bench(processes=0)) as bench:
        pending = bench.submit(rows(1), rows(2))
        bench.add()
        bench.play()
        assert results(pending) == [[2], [4]]


def test_batch_never_mixes_keys(bench: Bench) -> None:
    bench.submit(rows(0))
    for number, key in enumerate("abaacb", 1):
        bench.submit(rows(number), key=key)
    bench.play()
    assert bench.processes[0].received == [rows(0), rows(1, 3, 4), rows(2, 6), rows(5)]


def test_batch_respects_row_limit(bench: Bench) -> None:
    pending = bench.submit(*[rows(number) for number in range(70)])
    bench.play()
    assert [len(call) for call in bench.processes[0].received] == [32, 32, 6]
    assert results(pending) == [[number * 2] for number in range(70)]


def test_request_beyond_row_limit_is_its_own_batch(bench: Bench) -> None:
    pending = bench.submit(rows(*range(100)), rows(100))
    bench.play()
    assert [len(call) for call in bench.processes[0].received] == [100, 1]
    assert results(pending) == [[number * 2 for number in range(100)], [200]]


def test_full_queue_rejects_new_requests_and_serves_queued_ones() -> None:
    with closing(Bench(max_queue_size=2)) as bench:
        pending = bench.submit(rows(1)) + bench.submit(rows(2), rows(3))
        assert bench.batcher.waiting == 2
        with pytest.raises(Overloaded):
            bench.submit(rows(4))
        bench.play()
        assert results(pending) == [[2], [4], [6]]
        assert bench.submit(rows(5))


# -- time


def test_request_that_expires_in_queue_is_not_dispatched(bench: Bench) -> None:
    first, second = bench.submit(rows(1), deadline=20), bench.submit(rows(2), deadline=5)
    bench.advance(6)
    assert results(first + second) == ["waits", DeadlineExceeded]
    assert bench.batcher.waiting == 0
    bench.play()
    assert bench.processes[0].received == [rows(1)]
    assert results(first) == [[2]]


def test_expiry_during_a_call_does_not_affect_the_batch(bench: Bench) -> None:
    pending = bench.do(
        lambda: [
            bench.batcher.submit(rows(number), "", 32, deadline)
            for number, deadline in ((1, 5), (2, 8), (3, 9))
        ]
    )
    bench.advance(6)
    assert results(pending) == [DeadlineExceeded, "waits", "waits"]
    bench.play()
    assert results(pending) == [DeadlineExceeded, [4], [6]]


def test_hung_process_is_killed_and_others_continue(bench: Bench) -> None:
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
    assert bench.processes[1].received == [rows(3)]


def test_process_that_responds_in_time_is_not_killed(bench: Bench) -> None:
    bench.submit(rows(1))
    bench.play()
    bench.advance(DEADLINE * 2)
    assert not bench.processes[0].killed
    assert result(*bench.submit(rows(2))) == "waits"


# -- callers that go


def test_request_withdrawn_from_queue_is_not_in_batch(bench: Bench) -> None:
    bench.submit(rows(0))
    pending = [bench.submit(rows(number))[0] for number in (1, 2, 3)]
    bench.withdraw(pending[1])
    bench.play()
    assert bench.processes[0].received == [rows(0), rows(1, 3)]
    assert results(pending) == [[2], ClientDisconnected, [6]]


def test_batch_of_withdrawn_requests_is_not_dispatched(bench: Bench) -> None:
    bench.submit(rows(0))
    for request in bench.submit(rows(1), rows(2)):
        bench.withdraw(request)
    bench.play()
    assert bench.processes[0].received == [rows(0)]
    assert bench.batcher.waiting == 0


def test_cancelled_request_is_withdrawn_before_or_after_dispatch(bench: Bench) -> None:
    bench.submit(rows(0))
    before, after = bench.submit(rows(1), rows(2))
    for request in (before, after):
        request.future.cancel()
    bench.withdraw(before)
    assert bench.batcher.waiting == 1
    bench.play()
    bench.withdraw(after)
    assert (bench.batcher.waiting, bench.batcher.rows) == (0, 0)
    assert bench.processes[0].received == [rows(0)]


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("leaving", ["withdraws", "cancels"])
def test_withdrawal_during_a_call_does_not_affect_the_batch(
    bench: Bench, position: int, leaving: str
) -> None:
    pending = bench.submit(*[rows(number) for number in range(4)])
    if leaving == "withdraws":
        bench.withdraw(pending[position])
    else:
        pending[position].future.cancel()
    bench.play()
    others = [request for request in pending if request is not pending[position]]
    assert results(others) == [[number * 2] for number in range(4) if number != position]
    assert bench.processes[0].received == [rows(0, 1, 2, 3)]


@pytest.mark.parametrize("position", range(4))
def test_withdrawn_request_is_not_retried(bench: Bench, position: int) -> None:
    pending = bench.submit(*[rows(number) for number in range(4)])
    bench.withdraw(pending[position])
    bench.do(bench.processes[0].fail)
    bench.play()
    assert all({"x": position} not in call for call in bench.processes[0].received[1:])
    assert sum(request.future.exception() is None for request in pending) == 3


# -- failures


@pytest.mark.parametrize("position", [0, 1, 15, 16, 30, 31])
def test_poison_row_fails_alone(bench: Bench, position: int) -> None:
    good = [rows(number) for number in range(32)]
    sent = [*good[:position], rows(99, poison=True), *good[position + 1 :]]
    pending = bench.submit(*sent)
    bench.play()
    alone = [[number * 2] for number in range(32)]
    assert results(pending) == [*alone[:position], ModelFailed, *alone[position + 1 :]]


def test_several_poison_rows_fail_alone(bench: Bench) -> None:
    pending = bench.submit(*[rows(number, poison=number % 5 == 0) for number in range(32)])
    bench.play()
    assert results(pending) == [ModelFailed if number % 5 == 0 else [number * 2] for number in range(32)]


def test_unreadable_output_is_bisected_like_an_exception(bench: Bench) -> None:
    pending = bench.submit(rows(1), rows(2))
    process = bench.processes[0]
    bench.do(lambda: process.respond(["unreadable", 4]))
    bench.do(lambda: process.respond(["unreadable"]))
    bench.play()
    assert results(pending) == [ModelFailed, [4]]


def test_stream_is_its_own_batch(bench: Bench) -> None:
    async def waiting() -> deque[PendingRequest]:
        loop = asyncio.get_running_loop()
        streams = (None, ChunkStream(DEADLINE), None)
        return deque(PendingRequest([{"x": 1}], "", 32, loop.create_future(), stream) for stream in streams)

    pending = bench.loop.run_until_complete(waiting())
    first, second, third = pending
    assert next_batch(pending, shared=True) == [first, third]
    assert next_batch(pending, shared=True) == [second]


def test_inseparable_output_is_retried_request_by_request(bench: Bench) -> None:
    pending = bench.submit(rows(1), rows(2, 3))
    bench.do(lambda: bench.processes[0].respond(["inseparable"]))
    bench.do(lambda: bench.processes[0].respond([5, 6, 7]))
    bench.play()
    assert results(pending) == [[5, 6, 7], [4, 6]]


def test_requests_are_not_batched_unless_sharing_is_allowed(bench: Bench) -> None:
    bench.shared = False
    pending = bench.submit(rows(1), rows(2), rows(3))
    bench.play()
    assert results(pending) == [[2], [4], [6]]
    assert [len(call) for call in bench.processes[0].received] == [1, 1, 1]


def test_non_finite_prediction_fails_only_its_request(bench: Bench) -> None:
    pending = bench.submit(rows(1), [*rows(2), *rows(3, nan=True)], rows(4))
    bench.play()
    assert results(pending) == [[2], ModelFailed, [8]]
    assert "row 1" in str(pending[1].future.exception())


def test_rows_that_cannot_be_encoded_fail_without_a_call(bench: Bench) -> None:
    pending = bench.submit(rows(1, misfit=True))
    pending += bench.submit(rows(2))
    bench.play()
    assert results(pending) == [ModelFailed, [4]]


def test_requests_of_a_dying_process_are_retried_alone(bench: Bench) -> None:
    pending = bench.submit(rows(1), rows(2), rows(3))
    bench.do(bench.processes[0].die)
    assert results(pending) == ["waits"] * 3
    new = bench.add()
    bench.play()
    assert new.received == [rows(1), rows(2), rows(3)]
    assert results(pending) == [[2], [4], [6]]


def test_row_that_kills_fails_alone_after_two_deaths(bench: Bench) -> None:
    pending = bench.submit(rows(1), rows(2, kills=True), rows(3))
    bench.play()
    assert results(pending) == [[2], ProcessDied, [6]]
    assert sum(process.state is ReplicaState.DEAD for process in bench.processes) == 2


def test_retries_precede_queued_requests(bench: Bench) -> None:
    bench.submit(rows(1), rows(2))
    later = bench.submit(rows(3))
    bench.do(bench.processes[0].fail)
    bench.play()
    assert bench.processes[0].received == [rows(1, 2), rows(1), rows(2), rows(3)]
    assert results(later) == [[6]]


def test_clients_of_slow_model_share_its_next_batch(bench: Bench) -> None:
    bench.submit(rows(1))
    bench.submit(rows(2))
    bench.advance(0.1)
    bench.do(bench.processes[0].play)
    bench.submit(rows(3))
    assert bench.processes[0].received == [rows(1)]
    bench.advance(0.005)
    assert bench.processes[0].received == [rows(1), rows(2, 3)]


def test_fast_model_receives_next_batch_immediately(bench: Bench) -> None:
    bench.submit(rows(1))
    bench.submit(rows(2))
    bench.advance(0.004)
    bench.do(bench.processes[0].play)
    assert bench.processes[0].received == [rows(1), rows(2)]


def test_process_that_died_idle_is_not_used(bench: Bench) -> None:
    bench.processes[0].state = ReplicaState.DEAD
    pending = bench.submit(rows(1))
    assert bench.processes[0].received == []
    bench.add()
    bench.play()
    assert results(pending) == [[2]]


# -- overload


def work(bench: Bench, seconds: float) -> None:
    """End the current call of the process after a time."""
    bench.advance(seconds)
    bench.do(bench.processes[0].play)
    bench.advance(seconds)  # let a slow model become idle


def test_requests_beyond_capacity_in_time_are_rejected(bench: Bench) -> None:
    for size in (1, 2, 4):
        bench.submit(rows(*range(size)))
        work(bench, 0.1 * size)
    pending = bench.submit(*(rows(number) for number in range(10)))
    pending += bench.submit(rows(10))  # the queue is empty
    with pytest.raises(Overloaded, match="in time"):
        bench.submit(rows(11))
    work(bench, 1.0)
    assert results(pending) == [*([number * 2] for number in range(10)), "waits"]
    bench.submit(rows(12))


def test_first_in_queue_is_accepted_by_any_slow_model(bench: Bench) -> None:
    for size in (1, 2):
        bench.submit(rows(*range(size)))
        work(bench, 9.0 * size)
    bench.submit(rows(1))
    (request,) = bench.submit(rows(2))
    assert result(request) == "waits"


def test_further_part_of_admitted_request_is_accepted(bench: Bench) -> None:
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
    """Check in any order of events that every request has the result that it has alone."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(processes=2, max_rows=8, max_queue_size=20)
        self.pending: list[PendingRequest] = []
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
        sizes = [rows(*range(size), **({} if kind == "good" else {kind: True})) for kind in kinds]
        try:
            self.pending += self.bench.submit(*sizes, key=key, deadline=deadline)
        except Overloaded:
            too_many = self.bench.batcher.waiting == 20
            assert too_many or self.bench.batcher.rows >= self.bench.latency_model.max_rows

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), cancel=st.booleans())
    def leave(self, data: st.DataObject, cancel: bool) -> None:
        request = data.draw(st.sampled_from(self.pending))
        if request.future.done():
            return
        if cancel:
            request.future.cancel()
        self.bench.withdraw(request)

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
        for index, request in enumerate(self.pending):
            if not request.future.done():
                continue
            values = "cancelled" if request.future.cancelled() else result(request)
            assert self.settled.setdefault(index, values) == values
            self.check(request, values)

    @staticmethod
    def check(request: PendingRequest, values: Any) -> None:
        if isinstance(values, list):
            assert values == [row["x"] * 2 for row in request.rows]
            assert not {"poison", "kills", "nan"} & request.rows[0].keys()
        elif values is ModelFailed:
            assert {"poison", "nan"} & request.rows[0].keys()
        elif values is ProcessDied:
            assert request.retried
        else:
            assert values in ("cancelled", ClientDisconnected, DeadlineExceeded)

    def teardown(self) -> None:
        self.add()
        self.bench.play()
        self.bench.advance(1.0)  # let slow processes become idle
        self.bench.play()
        assert all(request.future.done() for request in self.pending)
        assert self.bench.batcher.waiting == self.bench.batcher.rows == 0
        self.what_is_settled_stays_so_and_is_right()
        self.bench.close()


TestRequests = Requests.TestCase
