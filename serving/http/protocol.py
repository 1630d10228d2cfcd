"""uvicorn's HTTP protocol, with each response in one write, limits, and an answer to who calls as it stops.

uvicorn writes the head and the body of a response apart, and uvloop hands each to the kernel at once. Most of
the time that a small answer takes is spent in that system call.

uvicorn has no limit for the size of a head, nor for the time in which it comes. Here they cost a request no
timer: each connection looks after itself now and then.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.groups import Limits
from serving.http.problems import respond
from serving.http.request_id import new_id

_SECONDS_TO_SAY_GOODBYE = 1.0
_MOST_HEAD_BYTES = 65536
# What a client may go on to send once it has its answer; one that is cut off at once may never read that.
_MOST_LEFT_BYTES = 2**21


class _HeadTooLarge(Exception):
    """Ends the parsing."""


class Corked:
    """A transport that sends what is written in one turn of the event loop together."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send `data` at the end of this turn."""
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def close(self) -> None:
        """Send what was written, then close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():  # the client may have gone in this very turn
            self._transport.write(b"".join(pieces))


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol on a corked transport, within limits."""

    def __init__(self, *args: Any, limits: Limits, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = limits
        self._stopping = False
        self._idle_since: float | None = self.loop.time()
        """Since when nothing is under way, as far as uvicorn does not see to that itself."""
        self._head_since: float | None = None
        """Since when a head is on its way."""
        self._chunk_bytes = self._unread_bytes = self._head_bytes = self._left_bytes = 0
        self._look_again: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client has connected."""
        super().connection_made(Corked(transport, self.loop))  # type: ignore[arg-type]  # by duck type
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "Too many connections are open.", {"Retry-After": "1"})
        else:
            self._look_again = self.loop.call_later(self._limits.receive_seconds / 2, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has gone."""
        if self._look_again:
            self._look_again.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if self.transport.is_closing():
            return  # it was refused, and there is no parser for what comes behind
        self._chunk_bytes = self._unread_bytes = len(data)
        if self._head_since is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_since is not None and self._head_bytes > _MOST_HEAD_BYTES:
            self._refuse_head()

    def on_message_begin(self) -> None:
        """The first byte of a request is here."""
        super().on_message_begin()
        self._head_since, self._idle_since = self.loop.time(), None
        # Where another request ended in what has just come, how much of it is this one's is not known.
        self._head_bytes, self._unread_bytes = self._unread_bytes, 0

    def on_headers_complete(self) -> None:
        """The head of a request is here."""
        # What came with it may be a body, so that the exact sum is made for much alone.
        most = max(self._head_bytes, self._chunk_bytes)
        if most > _MOST_HEAD_BYTES and self._size() > _MOST_HEAD_BYTES:
            raise _HeadTooLarge
        self._head_since = None
        self._left_bytes = 0
        super().on_headers_complete()
        if self._stopping:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of a body is here; what comes behind the answer is read to some length, and thrown away."""
        if self.cycle.response_complete:
            self._left_bytes += len(body)
            if self._left_bytes > _MOST_LEFT_BYTES:
                self.transport.close()
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or more than may come."""
        if self._size() > _MOST_HEAD_BYTES:
            self._refuse_head()
        else:
            self._refuse(400, "This is no valid HTTP/1.1 request.")

    def shutdown(self) -> None:
        """The server stops: close, once a request that may be on its way to an idle connection is answered.

        RFC 9112, 9.5: a server that closes an idle connection resets whatever its client has just sent.
        """
        if self._stopping or not (self.cycle is None or self.cycle.response_complete):
            super().shutdown()
        else:
            self._stopping = True
            self.loop.call_later(_SECONDS_TO_SAY_GOODBYE, self.shutdown)

    def _look(self) -> None:
        """Close a connection whose client takes too long to say what it wants, or to stop saying it."""
        self._look_again = self.loop.call_later(self._limits.receive_seconds / 2, self._look)
        now, seconds = self.loop.time(), self._limits.receive_seconds
        if self._head_since is not None:
            if now - self._head_since >= seconds:
                self._refuse(408, f"The head was not whole after {seconds:g} s.")
        elif self._idle_since is not None:
            if now - self._idle_since >= seconds:
                self.transport.close()
        elif self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self._idle_since = now  # bytes came that are no request, or the rest of an answered one comes

    def _size(self) -> int:
        """Bytes of the head that was parsed last, as far as it was."""
        headers = self.headers or ()
        return len(getattr(self, "url", b"")) + sum(len(name) + len(value) for name, value in headers)

    def _refuse_head(self) -> None:
        self._refuse(431, f"The head of the request has more than {_MOST_HEAD_BYTES} bytes.")

    def _refuse(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        """Answer, whatever has come, and close."""
        if self.transport.is_closing():
            return
        request_id = new_id()
        more = {"X-Request-ID": request_id, "Connection": "close", **(headers or {})}
        response: Response = respond(status, detail, request_id, headers=more)
        head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + bytes(response.body))
        self.transport.close()
