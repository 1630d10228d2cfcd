"""Faults of a request or of its model process affect no other request."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.service.test_http_service import SECRET, problem
from tests.support.process_ids import descendants
from tests.support.registry import NewRegistry, Registry
from tests.support.service import SELDOM, Service, served, until

DEADLINE_SECONDS, MAX_WAITING, MAX_BYTES = 4, 40, 600 * 2**20


@pytest.fixture(scope="module")
def service(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serve an actor with one process, and a neighbour."""
    folder = tmp_path_factory.mktemp("faults")
    registry = Registry(new_registry(folder))
    for name in ("actor", "neighbour"):
        registry.add(name, factor=2.0)
    limits = {"deadline_seconds": DEADLINE_SECONDS, "max_queue_size": MAX_WAITING, "max_queue_seconds": 60}
    limits |= {"max_process_bytes": MAX_BYTES, "poll_seconds": SELDOM}
    with served(registry.uri, folder, models="models:/actor/1,models:/neighbour/1", **limits) as running:
        running.until_ready()
        yield running


@pytest.fixture(autouse=True)
def all_is_well(service: Service) -> Iterator[None]:
    """Verify after each test that the service is ready and predicts correctly."""
    yield
    assert service.client.get("/health").status_code == 200
    service.until_ready()
    for name in ("actor", "neighbour"):
        until(lambda name=name: predict(service, {"x": 21}, name).json().get("prediction") == 42.0)  # type: ignore[misc]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as executor:
        yield executor


def predict(service: Service, row: dict[str, Any], name: str = "actor", **headers: str) -> httpx.Response:
    return service.client.post(f"/models/{name}/predict", json=row, headers=headers)


def waiting(service: Service, name: str = "actor") -> float:
    """Return the number of requests that wait for the model."""
    return service.metrics()[f'serving_waiting_requests{{model="{name}",version="1"}}']


def ended(service: Service, reason: str) -> float:
    """Return the number of the actor's processes that died for this reason, once all are replaced."""
    labels = f'model="actor",reason="{reason}",version="1"'
    deaths = f"serving_process_deaths_total{{{labels}}}"
    restarts = f"serving_process_restarts_total{{{labels}}}"
    until(lambda: (found := service.metrics())[deaths] == found[restarts])
    return service.metrics()[deaths]


def pipe(folder: Path) -> Path:
    path = folder / f"pipe-{len([*folder.iterdir()])}"
    os.mkfifo(path)
    return path


@contextmanager
def held(service: Service, pool: ThreadPoolExecutor, folder: Path) -> Iterator[Future[httpx.Response]]:
    """Keep the model busy with a request until the block ends."""
    gate = pipe(folder)
    pending = pool.submit(predict, service, {"x": 0, "act": f"wait:{gate}"})
    with gate.open("w"):  # blocks until the model has opened it
        yield pending
    assert pending.result().json()["prediction"] == 0.0


def queue(
    service: Service, pool: ThreadPoolExecutor, rows: list[dict[str, Any]], **headers: str
) -> list[Future[httpx.Response]]:
    """Send the rows while the model is busy, and wait until all are queued in this order."""
    pending = []
    for row in rows:
        before = waiting(service)
        pending.append(pool.submit(predict, service, row, **headers))
        until(lambda before=before: waiting(service) == before + 1)  # type: ignore[misc]
    return pending


def send(service: Service, row: dict[str, Any]) -> socket.socket:
    """Send a request for a row, and return its connection."""
    body = orjson.dumps(row)
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection = socket.create_connection(service.address, timeout=60)
    connection.sendall(f"POST /models/actor/predict HTTP/1.1\r\n{head}\r\n\r\n".encode() + body)
    return connection


# -- the queue


def test_row_12_full_queue_rejects_new_requests(
    service: Service, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with held(service, pool, tmp_path) as busy:
        queued = queue(service, pool, [{"x": number} for number in range(MAX_WAITING)])
        refused = predict(service, {"x": 1})
        assert problem(refused, 503)
        assert refused.headers["retry-after"] == "1"
        assert not busy.done()
    assert [future.result().json()["prediction"] for future in queued] == [
        2.0 * x for x in range(MAX_WAITING)
    ]


def test_row_15_request_that_expires_in_queue_is_not_run(
    service: Service, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    with held(service, pool, tmp_path):
        late = predict(service, {"x": 1, "act": f"note:{note}"}, **{"X-Request-Timeout": "0.05"})
        assert problem(late, 504)
        assert waiting(service) == 0
    assert predict(service, {"x": 1}).status_code == 200
    assert not note.exists()


def test_row_16_disconnected_caller_is_dropped_from_queue(
    service: Service, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    with held(service, pool, tmp_path):
        leaving = send(service, {"x": 1, "act": f"note:{note}"})
        until(lambda: waiting(service) == 1)
        queued = queue(service, pool, [{"x": 5}])
        leaving.close()
        until(lambda: waiting(service) == 1)
    assert queued[0].result().json()["prediction"] == 10.0
    assert not note.exists()


# -- in a batch


@pytest.mark.parametrize("position", range(4))
def test_row_17_disconnect_during_batch_spares_other_requests(
    service: Service, pool: ThreadPoolExecutor, tmp_path: Path, position: int
) -> None:
    held_up = pipe(tmp_path)
    with held(service, pool, tmp_path):
        queued = []
        for number in range(4):
            row = {"x": number, "act": f"wait:{held_up}"} if number == 1 else {"x": number}
            if number == position:
                leaving = send(service, row)
                until(lambda number=number: waiting(service) == number + 1)  # type: ignore[misc]
            else:
                queued += queue(service, pool, [row])
    with held_up.open("w"):
        leaving.close()
        assert predict(service, {"x": 1}, "neighbour").json()["prediction"] == 2.0
    predictions = [future.result().json()["prediction"] for future in queued]
    assert predictions == [2.0 * number for number in range(4) if number != position]


def test_row_18_poison_row_fails_alone(service: Service, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"x": number / 7} for number in range(32)]
    alone = [predict(service, row).content for row in rows]
    rows[10]["act"] = "raise:poison"
    with held(service, pool, tmp_path):
        queued = queue(service, pool, rows)
    responses = [future.result() for future in queued]
    assert problem(responses[10], 500)
    for number, response in enumerate(responses):
        assert number == 10 or response.content == alone[number]


def test_row_19_wrong_number_of_rows_fails_one_request(
    service: Service, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{"x": number, "act": "stay"} for number in range(8)]
    alone = [service.client.post("/models/actor/predict", json=row).content for row in rows]
    rows[3]["act"] = "drop"
    with held(service, pool, tmp_path):
        queued = queue(service, pool, rows)
    responses = [future.result() for future in queued]
    assert problem(responses[3], 500)
    for number, response in enumerate(responses):
        assert number == 3 or response.content == alone[number]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/models/actor/predict", lambda row: row),
        ("/models/actor/predict/batch", lambda row: {"rows": [{"x": 1}, row]}),
        ("/invocations?model=actor", lambda row: {"dataframe_records": [{"x": 1}, row]}),
        (
            "/v2/models/actor/infer",
            lambda row: {
                "inputs": [
                    {"name": name, "datatype": kind, "shape": [1], "data": [row[name]]}
                    for name, kind in [("x", "FP64"), ("act", "BYTES")]
                ]
            },
        ),
    ],
)
def test_row_20_nan_prediction_is_an_error(
    service: Service, path: str, body: Callable[[dict[str, Any]], Any]
) -> None:
    response = service.client.post(path, json=body({"x": 1.0, "act": "nan"}))
    assert response.status_code == 500
    assert orjson.loads(response.content)  # rejects NaN


# -- the process


def pid(service: Service, folder: Path) -> int:
    """Return the id of the actor's process."""
    note = folder / "pid"
    assert predict(service, {"x": 1, "act": f"note:{note}"}).status_code == 200
    return int(note.read_text())


def test_row_14_hung_process_is_replaced_at_deadline(
    service: Service, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    before, hung = pid(service, tmp_path), ended(service, "hang")
    hanging = pool.submit(predict, service, {"x": 1, "act": "hang"})
    while not hanging.done():
        assert predict(service, {"x": 1}, "neighbour").json()["prediction"] == 2.0
    assert problem(hanging.result(), 504)
    until(lambda: predict(service, {"x": 1}).status_code == 200)
    assert pid(service, tmp_path) != before
    until(lambda: before not in descendants(service.process.pid))
    assert ended(service, "hang") == hung + 1


def test_row_21_requests_of_killed_process_are_retried(
    service: Service, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    before, held_up = pid(service, tmp_path), pipe(tmp_path)
    with held(service, pool, tmp_path):
        queued = queue(service, pool, [{"x": 1, "act": f"wait:{held_up}"}, {"x": 2}, {"x": 3}])
    with held_up.open("w"):
        os.kill(before, signal.SIGKILL)
        until(lambda: before not in descendants(service.process.pid))
    with held_up.open("w"):  # the next process opens it again
        pass
    assert [future.result().json()["prediction"] for future in queued] == [2.0, 4.0, 6.0]
    assert pid(service, tmp_path) != before


def test_row_21_row_that_kills_every_process_is_rejected(
    service: Service, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    killing = pool.submit(predict, service, {"x": 1, "act": "kill"})
    assert problem(killing.result(), 503)
    assert killing.result().headers["retry-after"] == "1"


def test_oversized_process_is_replaced_without_failures(
    service: Service, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    before = pid(service, tmp_path)
    grown = threading.Event()

    def call() -> set[int]:
        statuses = {predict(service, {"x": 1}).status_code}
        while not grown.is_set():
            statuses.add(predict(service, {"x": 1}).status_code)
        return statuses

    calling = [pool.submit(call) for _ in range(4)]
    try:
        for _ in range(6):  # a single step could exceed the deadline on a busy machine
            assert predict(service, {"x": 1, "act": f"grow:{MAX_BYTES // 6 >> 20}"}).status_code == 200
        until(lambda: pid(service, tmp_path) != before)
        until(lambda: before not in descendants(service.process.pid))
    finally:
        grown.set()
    assert [future.result() for future in calling] == [{200}] * 4
    assert service.logged(re.compile("has grown to .* MB, and is replaced"))
    assert ended(service, "memory") == 1


# -- the log


def test_row_35_model_error_is_logged_on_one_line(service: Service) -> None:
    act = f"raise:{SECRET}\\r\\nERROR\\x1b[31m\\u2028forged"
    response = predict(service, {"x": 1, "act": act}, **{"X-Request-ID": "the-poison"})
    assert problem(response, 500)["detail"] == "The model failed on this request."
    failed = service.wait_for_log(request_id="the-poison", level="error")
    assert SECRET in failed["event"]
    assert all(line.isprintable() for line in service.log)
    assert [line for line in service.lines() if "forged" in str(line)] == [failed]
