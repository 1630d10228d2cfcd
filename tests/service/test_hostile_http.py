"""Requests that try to confuse the framing, and clients that do not read their responses."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.service.test_auth import Keys
from tests.service.test_hostile_connections import problem, received
from tests.support.certificates import write_certificate
from tests.support.registry import NewRegistry, Registry
from tests.support.service import PROGRAM, SELDOM, Service, served, until

ROWS = 100_000
ROW = b'{"x": 0.3333333333333333}'
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    ring = Keys(tmp_path_factory.mktemp("keys"))
    created = {scope: ring.create(scope, "--scope", scope) for scope in ("admin", "predict")}
    return created | {"file": str(ring.file)}


@pytest.fixture(scope="module")
def service(
    new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str]
) -> Iterator[Service]:
    """Run a service of a model and a streaming model, with small limits and a required key."""
    folder = tmp_path_factory.mktemp("hostile-http")
    registry = Registry(new_registry(folder))
    registry.add("actor", factor=2.0)
    registry.add("speaker", streams=True, factor=3.0)
    settings = {
        "models": "models:/actor/1,models:/speaker/1",
        "keys_file": keys["file"],
        "read_timeout_seconds": 5,
        "deadline_seconds": 8,
        "max_rows": ROWS,
        "max_unsent_bytes": 4 * 2**20,
        "poll_seconds": SELDOM,
    }
    with served(registry.uri, folder, **settings, _key=keys["admin"]) as running:
        running.until_ready()
        yield running


@pytest.fixture(autouse=True)
def predicts_after(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check after each test that the service is alive and predicts."""
    yield
    for name in {"service", "encrypted", "narrow"} & {*request.fixturenames}:
        running: Service = request.getfixturevalue(name)
        assert running.client.get("/health").status_code == 200
        assert running.client.post("/predict", json={"x": 21}).json()["prediction"] == 42.0


@pytest.fixture
def connect(service: Service) -> Iterator[Callable[..., socket.socket]]:
    """Open connections, with a small receive buffer if a size is passed."""
    with ExitStack() as stack:

        def open_connection(*, receive_buffer: int = 0) -> socket.socket:
            connection = stack.enter_context(closing(socket.socket()))
            if receive_buffer:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            connection.settimeout(60)
            connection.connect(service.address)
            return connection

        yield open_connection


@pytest.fixture
def connection(connect: Callable[..., socket.socket]) -> socket.socket:
    return connect()


@pytest.fixture
def key(keys: dict[str, str]) -> bytes:
    return b"X-API-Key: %b\r\n" % keys["predict"].encode()


def head(
    target: bytes = b"/predict", *fields: bytes, method: bytes = b"POST", host: bytes = b"localhost"
) -> bytes:
    lines = [b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method, target, host)]
    return b"".join([*lines, b"Content-Type: application/json\r\n", *fields, b"\r\n"])


def with_length(body: bytes, *fields: bytes, target: bytes = b"/predict") -> bytes:
    return head(target, *fields, b"Content-Length: %d\r\n" % len(body)) + body


def chunked(body: bytes, *trailers: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, b"".join(trailers))


def responses(connection: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """Return the status and the body of the next responses, which have a `Content-Length`."""
    complete: list[Any] = []
    data = b""
    while len(complete) < count:
        match = re.match(rb"HTTP/1\.1 (\d+) .*?content-length: (\d+)\r\n.*?\r\n\r\n", data, re.I | re.S)
        if match and len(data) >= (end := match.end() + int(match[2])):
            complete.append((int(match[1]), data[match.end() : end]))
            data = data[end:]
        else:
            received = connection.recv(65536)
            assert received, (complete, data)
            data += received
    assert not data
    return complete


def prediction(response: tuple[int, bytes]) -> Any:
    status, body = response
    assert status == 200, body
    return orjson.loads(body)["prediction"]


# -- trailers


@pytest.mark.parametrize("target", [b"/health", b"/predict", b"/nowhere"])
@pytest.mark.parametrize(
    "more",
    [b"X-More: trailer\r\n" * 1000, b"X-Long: " + b"x" * 50_000 + b"\r\n", b"X-Endless: " + b"x" * 50_000],
    ids=["many", "long", "endless"],
)
def test_row_42_trailers_beyond_the_limit_are_refused(
    connection: socket.socket, key: bytes, target: bytes, more: bytes
) -> None:
    connection.sendall(head(target, key, CHUNKED, method=b"GET") + b"2\r\n{}\r\n0\r\n" + more)
    problem(received(connection), 431)


@pytest.mark.parametrize("piece", [b"X-More: trailer\r\n" * 4096, b"x" * 65536], ids=["fields", "value"])
@pytest.mark.parametrize("begun", [b"0\r\nX: ", b"5;extension="], ids=["trailer", "extension"])
def test_row_42_endless_trailers_are_not_read(connection: socket.socket, piece: bytes, begun: bytes) -> None:
    connection.sendall(head(b"/health", CHUNKED, method=b"GET") + begun)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        connection.sendall(piece * 1000)


def test_row_42_dropped_trailers_are_counted(service: Service, connection: socket.socket, key: bytes) -> None:
    before = service.metrics()["serving_trailers_dropped_total"]
    connection.sendall(head(b"/predict", key, CHUNKED) + chunked(ROW, b"A: 1\r\n", b"B: 2\r\n"))
    assert prediction(*responses(connection, 1)) == pytest.approx(2 / 3)
    assert service.metrics()["serving_trailers_dropped_total"] == before + 2


def test_row_43_trailers_are_not_headers(connection: socket.socket, key: bytes) -> None:
    connection.sendall(head(b"/predict", CHUNKED) + chunked(ROW, key))
    assert responses(connection, 1)[0][0] == 401
    trailers = [b"X-Model: speaker\r\n", b"Content-Type: text/plain\r\n", b"Host: other\r\n", b"Host: y\r\n"]
    request = head(b"/predict", key, CHUNKED) + chunked(ROW, *trailers)
    connection.sendall(request * 3 + head(b"/metrics", CHUNKED, method=b"GET") + chunked(b"{}", key))
    *predicted, refused = responses(connection, 4)
    assert [*map(prediction, predicted)] == [pytest.approx(2 / 3)] * 3
    assert refused[0] == 401


# -- targets


@pytest.mark.parametrize(
    "target",
    [
        *(b"/metrics%" + code for code in (b"0a", b"0A", b"00", b"0d", b"09", b"7f", b"c2%85", b"e2%80%a8")),
        b"/status%0a",
        b"/models/actor/history%0a",
        b"/models/actor%0a/history",
        b"/%0a/metrics",
        b"/metrics%",
        b"/metrics%zz",
        b"/metrics%ff",
        b"/metrics%c3",
        b"/metrics#x",
        b"/metrics\x7f",
        b"/metrics\x85",
        b"/metrics\xc2\x85",
        b"http://other/metrics",
        b"*",
    ],
)
def test_row_46_malformed_paths_are_refused(connection: socket.socket, key: bytes, target: bytes) -> None:
    connection.sendall(head(target, key, method=b"GET"))
    problem(received(connection), 400)


@pytest.mark.parametrize("target", [b"/predict?%0a=%ff", b"/%70redict", b"http://localhost/predict"])
def test_other_targets_are_valid(connection: socket.socket, target: bytes) -> None:
    connection.sendall(with_length(ROW, target=target))
    assert responses(connection, 1)[0][0] == 401


# -- framing


def request(*fields: bytes, version: bytes = b"1.1") -> bytes:
    return b"POST /health HTTP/%b\r\n%b\r\n0\r\n\r\n" % (version, b"".join(each + b"\r\n" for each in fields))


@pytest.mark.parametrize(
    "sent",
    [
        request(),
        request(b"Host: localhost", b"Host: localhost"),
        request(b"Host: localhost", b"host: y"),
        request(b"Host: localhost", b"Host: localhost", version=b"1.0"),
        *(
            request(b"Host: " + host)
            for host in (b"", b"a b", b"a,b", b"a/b", b"a@b", b"a:b", b"[::1", b"a\xff", b"a:123456", b"<x>")
        ),
        *(
            request(b"Host: localhost", b"Transfer-Encoding: " + coding)
            for coding in (b"gzip, chunked", b"chunked, gzip", b"identity", b"gzip", b"", b"chunked, chunked")
        ),
        request(b"Host: localhost", b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"),
        request(b"Host: localhost", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        request(b"Host: localhost", b"Transfer-Encoding: chunked", version=b"1.0"),
        request(b"Host: localhost", b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        request(b"Host: localhost", b"Content-Length: 5", b"Content-Length: 5"),
        *(
            request(b"Host: localhost", b"Content-Length: " + size)
            for size in (b"5, 5", b"+5", b"0x5", b"", b"5 5")
        ),
        *(
            request(b"Host: localhost", b"X: a" + control + b"b")
            for control in (b"\0", b"\r", b"\n", b"\x1b", b"\x7f")
        ),
        request(b"Host: localhost", b"X: a\r\n folded"),
        request(b"Host: localhost", b"X:\r\n\tfolded"),
        request(b" Host: x"),
        request(b"Host: localhost", b"X Y: z"),
        request(b"Host: localhost", b": z"),
        request(b"Host: localhost", version=b"2.0"),
        request(b"Host: localhost", version=b"0.9"),
        b"BREW /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[13:60]),
)
def test_row_60_ambiguous_heads_are_refused(connection: socket.socket, sent: bytes) -> None:
    connection.sendall(sent)
    problem(received(connection), 400)


def test_connect_method_is_refused(connection: socket.socket) -> None:
    connection.sendall(b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\nabc")
    problem(received(connection), 405)


@pytest.mark.parametrize(
    "host", [b"localhost", b"my_host.localhost:8000", b"[::1]:80", b"127.0.0.1", b" localhost "]
)
def test_usual_hosts_are_valid(connection: socket.socket, host: bytes) -> None:
    connection.sendall(head(b"/predict", b"Content-Length: 0\r\n", host=host))
    assert responses(connection, 1)[0][0] == 401


def test_http_1_0_needs_no_host(connection: socket.socket) -> None:
    connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
    assert received(connection).startswith(b"HTTP/1.1 200 ")


def test_refusal_follows_earlier_pipelined_responses(connection: socket.socket, key: bytes) -> None:
    slow = with_length(b'{"x": 1, "act": "toil:0.2"}', key)
    connection.sendall(slow + with_length(ROW, key) + b"nonsense\r\n\r\n")
    first, second, last = responses(connection, 3)
    assert (prediction(first), prediction(second), last[0]) == (2.0, pytest.approx(2 / 3), 400)
    assert received(connection) == b""


def test_excess_pipelined_requests_are_refused(connection: socket.socket, key: bytes) -> None:
    connection.sendall(with_length(ROW, key) * 200)
    statuses = [status for status, _ in responses(connection, 130)]
    assert statuses == [200] * 129 + [503]
    assert received(connection) == b""


def test_body_that_never_begins_times_out(connection: socket.socket, key: bytes) -> None:
    connection.sendall(head(b"/predict", key, b"Content-Length: 5\r\n"))
    problem(received(connection), 408)


# -- upgrades


UPGRADES = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "websocket": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "tls": b"Upgrade: TLS/1.0, HTTP/2.0\r\nConnection: upgrade\r\n",
    "lonely": b"Upgrade: h2c\r\n",
}


@pytest.mark.parametrize("upgrade", UPGRADES)
def test_row_57_upgrade_is_ignored(connection: socket.socket, key: bytes, upgrade: str) -> None:
    lengths = with_length(ROW, key, UPGRADES[upgrade])
    chunks = head(b"/predict", key, CHUNKED, UPGRADES[upgrade]) + chunked(ROW, b"X-Trailer: a\r\n")
    connection.sendall(lengths + chunks + with_length(ROW, key))
    for _ in range(2):
        assert [*map(prediction, responses(connection, 3))] == [pytest.approx(2 / 3)] * 3
        for byte in lengths + chunks + with_length(ROW, key):
            connection.sendall(bytes([byte]))
    assert len(responses(connection, 3)) == 3


def test_row_57_close_with_an_upgrade_is_respected(connection: socket.socket, key: bytes) -> None:
    connection.sendall(with_length(ROW, key, b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n"))
    assert b'"prediction":0.66' in received(connection)


def test_expect_header_is_handled(connection: socket.socket, key: bytes) -> None:
    connection.sendall(head(b"/predict", key, b"Expect: 100-Continue\r\nContent-Length: %d\r\n" % len(ROW)))
    assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(ROW)
    assert prediction(*responses(connection, 1)) == pytest.approx(2 / 3)
    connection.sendall(head(b"/predict", key, b"Expect: miracles\r\nContent-Length: 2\r\n"))
    problem(received(connection), 417)


# -- clients that do not read


def unread(service: Service) -> float:
    return service.metrics()['serving_connections_closed_total{reason="unread"}']


def test_row_48_unread_stream_does_not_block_the_model(
    service: Service, connect: Callable[..., socket.socket], key: bytes
) -> None:
    before, lazy = unread(service), connect(receive_buffer=4096)
    lazy.sendall(with_length(b'{"x": 1, "act": "for:on"}', key, target=b"/models/speaker/predict/stream"))
    assert lazy.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
    for _ in range(3):
        response = service.client.post("/models/speaker/predict", json={"x": 2})
        assert (response.status_code, response.json()["prediction"]) == (200, 6.0)
    until(lambda: unread(service) == before + 1)
    assert service.metrics()["serving_unsent_bytes"] == 0


def test_row_48_unread_stream_ends_without_other_requests(
    service: Service, connect: Callable[..., socket.socket], key: bytes
) -> None:
    before, lazy = unread(service), connect(receive_buffer=4096)
    lazy.sendall(with_length(b'{"x": 1, "act": "for:on"}', key, target=b"/models/speaker/predict/stream"))
    until(lambda: unread(service) == before + 1)
    labels = '{model="speaker",version="1"}'
    until(lambda: service.metrics()[f"serving_inflight_requests{labels}"] == 0)


def test_row_49_unread_responses_are_limited_and_aborted(
    service: Service, connect: Callable[..., socket.socket], key: bytes
) -> None:
    before = unread(service)
    request = with_length(b'{"rows":[' + b",".join([ROW] * ROWS) + b"]}", key, target=b"/predict/batch")
    statuses = []
    for _ in range(2):
        lazy = connect(receive_buffer=4096)
        lazy.sendall(request)
        statuses.append(lazy.recv(12, socket.MSG_PEEK))
    assert statuses == [b"HTTP/1.1 200", b"HTTP/1.1 503"]
    assert 2**20 < service.metrics()["serving_unsent_bytes"] <= 4 * 2**20
    until(lambda: unread(service) == before + 1)
    assert service.metrics()["serving_unsent_bytes"] == 0
    connection = connect()
    connection.sendall(request)
    ((status, body),) = responses(connection, 1)
    assert (status, len(orjson.loads(body)["predictions"])) == (200, ROWS)


# -- TLS and descriptors


@pytest.fixture(scope="module")
def encrypted(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service with TLS, gRPC and a low limit for connections."""
    folder = tmp_path_factory.mktemp("encrypted")
    registry = Registry(new_registry(folder))
    registry.add("actor", factor=2.0)
    cert, key = write_certificate(folder)
    settings = {
        "models": "models:/actor/1",
        "tls_cert": cert,
        "tls_key": key,
        "grpc_port": 0,
        "max_connections": 16,
        "read_timeout_seconds": 2,
        "poll_seconds": SELDOM,
    }
    with served(registry.uri, folder, **settings, _ca=cert) as running:
        running.until_ready()
        yield running


def grpc_address(service: Service) -> tuple[str, int]:
    host, _, port = service.logged(re.compile(r"serving gRPC at ([\d.:]+)"))[1].rpartition(":")
    return host, int(port)


def test_row_45_handshakes_count_as_connections_and_end(encrypted: Service) -> None:
    def refused() -> float:
        return encrypted.metrics()['serving_connections_closed_total{reason="limit"}']

    before = refused()
    with ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(socket.create_connection(encrypted.address))
        until(lambda: refused() > before)
        until(lambda: encrypted.metrics()['serving_connections_closed_total{reason="handshake"}'] >= 8)


def test_row_45_grpc_connections_are_limited_and_end(encrypted: Service) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(grpc_address(encrypted))) for _ in range(6)]
        for client in sockets:
            client.settimeout(30)
        # The two above a quarter of 16 are closed at once, the others after the handshake timeout.
        for client in [*sockets[4:], *sockets[:4]]:
            with suppress(ConnectionResetError):
                assert client.recv(100) == b""


def test_row_58_renewed_certificate_is_used(encrypted: Service) -> None:
    folder, addresses = Path(encrypted.env["CA"]).parent, [encrypted.address, grpc_address(encrypted)]
    old = (folder / "cert.pem").read_text()
    (folder / "cert.pem").write_text("no certificate")
    assert [ssl.get_server_certificate(address) for address in addresses] == [old] * 2
    assert encrypted.metrics()["serving_tls_certificate_broken"] == 1
    assert encrypted.wait_for_log(level="error", logger="serving.tls")
    new = write_certificate(folder)[0].read_text()
    assert [ssl.get_server_certificate(address) for address in addresses] == [new] * 2
    with httpx.Client(
        base_url=encrypted.url, verify=ssl.create_default_context(cafile=str(folder / "cert.pem"))
    ) as client:
        assert client.post("/predict", json={"x": 1}).json()["prediction"] == 2.0
        assert "serving_tls_certificate_broken 0.0" in client.get("/metrics").text


@pytest.fixture(scope="module")
def narrow(new_registry: NewRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service with a limit of 128 open files."""
    folder = tmp_path_factory.mktemp("narrow")
    registry = Registry(new_registry(folder))
    registry.add("actor", factor=2.0)
    program = ("bash", "-c", 'ulimit -n 128; exec "$0" "$@"', PROGRAM)
    settings = {"models": "models:/actor/1", "poll_seconds": 0.25}
    with served(registry.uri, folder, program, **settings) as running:
        running.until_ready()
        yield running


def test_row_45_descriptors_remain_for_the_service(narrow: Service) -> None:
    with ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(closing(socket.create_connection(narrow.address)))
        assert narrow.client.post("/predict", json={"x": 21}).json()["prediction"] == 42.0
        assert narrow.ready()["registry"]["reachable"]
        assert narrow.metrics()["serving_accept_errors_total"] == 0
    until(lambda: narrow.metrics()["serving_connections"] < 10)
    assert "because of the limit for open files" in "".join(narrow.log)
