"""Abusive connections: the service closes them in time and keeps serving the others."""

from __future__ import annotations

import resource
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import orjson
import pytest

from tests.support.registry import NewRegistry, Registry
from tests.support.service import SELDOM, Service, served, until

IDLE, BUSY, MOST = 5000, 64, 5100
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ROW = {"x": 21}


@pytest.fixture(scope="module")
def service(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("connections")
    registry = Registry(new_registry(folder))
    registry.add("actor", factor=2.0)
    limits = {
        "read_timeout_seconds": 1,
        "max_connections": MOST,
        "max_body_bytes": 100_000,
        "poll_seconds": SELDOM,
    }
    with served(registry.uri, folder, models="models:/actor/1", **limits) as running:
        running.until_ready()
        yield running


@pytest.fixture(autouse=True)
def all_is_well(service: Service) -> Iterator[None]:
    """Check after each test that the service is alive and predicts."""
    yield
    assert service.client.get("/health").status_code == 200
    is_well(service)


def is_well(service: Service) -> None:
    assert service.client.post("/predict", json=ROW).json()["prediction"] == 42.0


@contextmanager
def connected(service: Service, count: int, *, asking: bool = False) -> Iterator[list[socket.socket]]:
    """Open connections, and send a request on each of them if `asking`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert hard == resource.RLIM_INFINITY or hard > 2 * MOST, "this machine lets too few files be open"
    try:
        with ExitStack() as stack:
            opened = []
            for _ in range(count):
                opened.append(stack.enter_context(socket.create_connection(service.address, timeout=60)))
                assert not asking or ask(opened[-1]).startswith(b"HTTP/1.1 200 ")
            yield opened
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def received(connection: socket.socket) -> bytes:
    """Return all data until the server closes the connection."""
    response = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(65536):
            response += data
    return response


def problem(answer: bytes, status: int) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head.lower()
    told: dict[str, object] = orjson.loads(body)
    assert told["status"] == status
    assert f"x-request-id: {told['request_id']}".encode() in head.lower()
    return told


def ask(connection: socket.socket) -> bytes:
    body = orjson.dumps(ROW)
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return connection.recv(65536)


# -- slow clients


def test_row_32_slow_requests_are_closed_and_others_served(service: Service) -> None:
    begun = [b"", b"POST /predict HT", HEAD + b"X-Slow: ", HEAD + b"Content-Length: 50\r\n\r\n{"]
    with connected(service, 1000) as connections, selectors.DefaultSelector() as selector:
        for number, connection in enumerate(connections):
            connection.sendall(begun[number % len(begun)])
            selector.register(connection, selectors.EVENT_READ, number % len(begun))
        answers = 0
        while selector.get_map():
            is_well(service)
            for key, _ in selector.select(0.05):
                assert isinstance(key.fileobj, socket.socket)
                data = received(key.fileobj)
                assert data == b"" if key.data == 0 else problem(data, 408)
                selector.unregister(key.fileobj)
                answers += 1
            for key in list(selector.get_map().values()):
                if key.data == 3:  # single bytes do not extend the timeout
                    with suppress(OSError):
                        assert isinstance(key.fileobj, socket.socket)
                        key.fileobj.send(b" ")
        assert answers == 1000


def test_row_32_blank_lines_do_not_keep_connections_open(service: Service) -> None:
    with connected(service, 1) as (connection,):
        assert ask(connection).startswith(b"HTTP/1.1 200 ")
        connection.settimeout(0.05)

        def closed() -> bool:
            with suppress(TimeoutError):
                try:
                    connection.sendall(b"\r\n")
                    return connection.recv(65536) == b""
                except (ConnectionResetError, BrokenPipeError):
                    return True
            return False

        until(closed)


# -- large requests


def test_row_31_rejected_upload_is_closed(service: Service) -> None:
    with connected(service, 1) as (connection,):
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        connection.sendall(chunk * 2)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(chunk * 1000)


def test_row_31_excessive_length_is_rejected_before_the_body(service: Service) -> None:
    with connected(service, 1) as (connection,):
        connection.sendall(HEAD + b"Content-Length: 100001\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("size", [70_000, 200_000])
@pytest.mark.parametrize("piece", [10_000, 2**20])
def test_row_33_large_head_is_rejected(service: Service, size: int, piece: int) -> None:
    head = HEAD + b"X-Large: " + b"x" * size + b"\r\nContent-Length: 8\r\n\r\n" + b'{"x": 2}'
    with connected(service, 1) as (connection,), suppress(ConnectionResetError, BrokenPipeError):
        for start in range(0, len(head), piece):
            connection.sendall(head[start : start + piece])
        problem(received(connection), 431)


def test_row_33_head_limit_counts_all_headers(service: Service) -> None:
    head = HEAD + b"".join(b"X-%d: %b\r\n" % (number, b"x" * 90) for number in range(2000)) + b"\r\n"
    with connected(service, 1) as (connection,):
        connection.sendall(head)
        problem(received(connection), 431)


def test_a_large_body_does_not_count_as_head(service: Service) -> None:
    body = orjson.dumps(ROW) + b" " * 90_000
    with connected(service, 1) as (connection,):
        for _ in range(3):
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


# -- invalid HTTP


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 8\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 8\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 8\r\nContent-Length: 9\r\n\r\n",
        HEAD + b"Content-Length: -8\r\n\r\n",
        HEAD + b"Content-Length: eight\r\n\r\n",
        HEAD + b"X-Bare: a\nX-Folded:\r\n b\x00\r\n\r\n",
        HEAD + b"Host : x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /predict HTTP/9.9\r\n\r\n",
        b"hello\r\n\r\n",
    ],
    ids=lambda sent: repr(sent.removeprefix(HEAD)[:40]),
)
def test_row_33_invalid_http_is_rejected(service: Service, sent: bytes) -> None:
    with connected(service, 1) as (connection,):
        connection.sendall(sent)
        problem(received(connection), 400)


# -- many connections


@pytest.fixture(scope="module")
def crowd(service: Service) -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    """Open many idle connections and a few busy ones, which takes seconds."""
    with connected(service, IDLE, asking=True) as idle, connected(service, BUSY, asking=True) as busy:
        yield idle, busy


def test_row_37_idle_connections_do_not_delay_others(
    crowd: tuple[list[socket.socket], list[socket.socket]],
) -> None:
    idle, busy = crowd
    for _ in range(5):
        for connection in busy:
            connection.sendall(HEAD + b'Content-Length: 8\r\n\r\n{"x": 2}')
        assert all(b'"prediction":4.0' in connection.recv(65536) for connection in busy)
    assert all(b"42.0" in ask(connection) for connection in idle[::100])


@pytest.mark.usefixtures("crowd")
def test_connections_over_the_limit_receive_503(service: Service) -> None:
    rest = MOST - 1 - IDLE - BUSY
    with connected(service, rest, asking=True), connected(service, 2) as further:
        refused = received(further[1])
        assert problem(refused, 503)
        assert b"retry-after: 1" in refused.lower()
    until(lambda: accepted(service))


def accepted(service: Service) -> bool:
    with connected(service, 1) as (connection,):
        return ask(connection).startswith(b"HTTP/1.1 200 ")
