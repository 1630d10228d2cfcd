"""The HTTP protocol with random bytes: no crash, no growth, and one response for each request, in order."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from serving.http.unsent_responses import UnsentBytes
from serving.server.http_protocol import LimitedHttpProtocol
from serving.settings.groups import LimitSettings
from serving.telemetry.connection_metrics import ConnectionMetrics

METRICS = ConnectionMetrics(CollectorRegistry())
MAX_HELD_BYTES = 400_000
FIELDS = [
    b"Host: x",
    b"Host: y",
    b"Content-Length: 3",
    b"Content-Length: 0",
    b"Content-Length: 3, 3",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding : chunked",
    b"Connection: close",
    b"Connection: Upgrade",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"X-Key: value",
    b" folded",
    b"X: " + b"x" * 9000,
]
LINES = [
    b"GET / HTTP/1.1",
    b"POST /a HTTP/1.1",
    b"POST /%0a HTTP/1.1",
    b"GET / HTTP/1.0",
    b"CONNECT x HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"GET http://x/ HTTP/1.1",
]
BODIES = [
    b"",
    b"abc",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"3;x=y\r\nabc\r\n0\r\nX-Key: trailer\r\n\r\n",
    b"0\r\nHost: z\r\n\r\n",
]
ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\0"]


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Generate requests that are almost valid."""
    lines = [draw(st.sampled_from(LINES)), *draw(st.lists(st.sampled_from(FIELDS), max_size=6))]
    ends = draw(st.lists(st.sampled_from(ENDS), min_size=len(lines) + 1, max_size=len(lines) + 1))
    head = b"".join(line + end for line, end in zip([*lines, b""], ends, strict=True))
    return head + draw(st.sampled_from(BODIES))


STREAMS = st.one_of(st.binary(max_size=200), st.lists(messages(), max_size=4).map(b"".join))
CUTS = st.lists(st.integers(1, 400), max_size=5)


@st.composite
def valid(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Generate a valid request and the body that the application must receive."""
    body = draw(st.binary(max_size=40))
    fields = [b"Host: x", b"X-Key: value"]
    fields += draw(
        st.sampled_from([[], [b"Connection: Upgrade", b"Upgrade: h2c"], [b"Connection: keep-alive"]])
    )
    if draw(st.booleans()):
        fields.append(b"Transfer-Encoding: chunked")
        trailers = draw(st.lists(st.sampled_from([b"X-Key: trailer\r\n", b"Host: y\r\n"]), max_size=2))
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        sent = chunk + b"0\r\n" + b"".join(trailers) + b"\r\n"
    else:
        fields.append(b"Content-Length: %d" % len(body))
        sent = body
    order = draw(st.permutations(fields))
    return b"POST /a HTTP/1.1\r\n" + b"".join(field + b"\r\n" for field in order) + b"\r\n" + sent, body


class Connection(asyncio.Transport):
    """A transport whose peer reads everything."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Ignore the pause: all data is already available."""

    resume_reading = pause_reading


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Return the header X-Key and the body."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    assert not re.search("[\0-\x1f\x7f-\x9f]", scope["path"])
    assert [*dict(scope["headers"])].count(b"host") <= 1
    text = b",".join(value for name, value in scope["headers"] if name == b"x-key") + b"|" + body
    headers = [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


CONFIG = uvicorn.Config(application, ws="none", log_config=None, access_log=False)
CONFIG.load()


def exchange(data: bytes, cuts: list[int]) -> tuple[list[tuple[int, bytes]], bool]:
    """Send data in pieces; return the responses and whether the connection was closed."""

    async def run() -> Connection:
        state, transport = ServerState(), Connection()
        limits, unsent = LimitSettings(), UnsentBytes(2**20)
        protocol = LimitedHttpProtocol(
            config=CONFIG, server_state=state, app_state={}, limits=limits, unsent=unsent, metrics=METRICS
        )
        protocol.connection_made(transport)
        rest = data
        for cut in [*cuts, len(data) + 1]:
            if transport.closed:
                break
            if rest[:cut]:
                protocol.data_received(rest[:cut])
            rest = rest[cut:]
            for _ in range(20):
                await asyncio.sleep(0)
            held = sum(len(name) + len(value) for name, value in protocol.headers or ())
            assert held + sum(len(cycle.body) for cycle, _ in protocol.pipeline) <= MAX_HELD_BYTES
        protocol.connection_lost(None)
        await asyncio.gather(*state.tasks)
        assert unsent.used == 0
        return transport

    transport = asyncio.run(run())
    return parse(transport.written), transport.closed


def parse(written: bytes) -> list[tuple[int, bytes]]:
    """Split the written bytes into responses, without a remainder."""
    found = []
    written = written.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    while written:
        match = re.match(rb"HTTP/1\.1 (\d{3}) [ -~]*\r\n((?:[!-9;-~]+: [ -~]*\r\n)*)\r\n", written)
        assert match, written
        length = re.search(rb"(?i)content-length: (\d+)\r\n", match[2])
        assert length, written
        end = match.end() + int(length[1])
        assert len(written) >= end
        found.append((int(match[1]), written[match.end() : end]))
        written = written[end:]
    return found


@given(STREAMS, CUTS)
def test_random_bytes_get_valid_responses_or_close(data: bytes, cuts: list[int]) -> None:
    responses, closed = exchange(data, cuts)
    assert all(status == 200 for status, _ in responses[:-1])
    if responses and responses[-1][0] != 200:
        assert closed


@given(st.lists(valid(), max_size=4), CUTS)
def test_pipelined_requests_get_one_response_each(
    requests: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    responses, _ = exchange(b"".join(request for request, _ in requests), cuts)
    assert responses == [(200, b"value|" + body) for _, body in requests]


@given(st.lists(valid(), max_size=3), STREAMS, CUTS)
def test_trailing_bytes_do_not_change_earlier_responses(
    requests: list[tuple[bytes, bytes]], more: bytes, cuts: list[int]
) -> None:
    responses, _ = exchange(b"".join(request for request, _ in requests) + more, cuts)
    assert responses[: len(requests)] == [(200, b"value|" + body) for _, body in requests]


@given(STREAMS, CUTS)
def test_splitting_does_not_change_responses(data: bytes, cuts: list[int]) -> None:
    def outcome(pieces: list[int]) -> list[tuple[int, bytes]]:
        return [(status, body if status == 200 else b"") for status, body in exchange(data, pieces)[0]]

    assert outcome(cuts) == outcome([])


@pytest.mark.parametrize("begun", [b"0\r\nX: ", b"5;x="])
def test_endless_trailers_end_the_connection(begun: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    responses, closed = exchange(head + begun + b"x" * 100_000, [])
    assert closed
    assert [status for status, _ in responses] == [431]
