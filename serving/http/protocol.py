"""uvicorn's HTTP protocol, with each response in one write, and with an answer to who calls as it stops.

uvicorn writes the head and the body of a response apart, and uvloop hands each to the kernel at once. Most of
the time that a small answer takes is spent in that system call.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_SECONDS_TO_SAY_GOODBYE = 1.0


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
    """uvicorn's protocol on a corked transport."""

    _stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(Corked(transport, self.loop))  # type: ignore[arg-type]  # by duck type

    def on_headers_complete(self) -> None:
        """The head of a request is here."""
        super().on_headers_complete()
        if self._stopping:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """The server stops: close, once a request that may be on its way to an idle connection is answered.

        RFC 9112, 9.5: a server that closes an idle connection resets whatever its client has just sent.
        """
        if self._stopping or not (self.cycle is None or self.cycle.response_complete):
            super().shutdown()
        else:
            self._stopping = True
            self.loop.call_later(_SECONDS_TO_SAY_GOODBYE, self.shutdown)
