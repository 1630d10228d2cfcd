"""Parses requests as uvicorn does, with the checks and the limits that its parser leaves out.

Heads and trailers are limited in size, the fields that frame a request are checked, trailers are dropped, and
an offer to change protocols is ignored. What runs for each request avoids `super()`, which costs more there
than what it calls.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.server.request_head import CHECKED_FIELDS, FieldChecker, Invalid, too_long, without_upgrade
from serving.telemetry.connections import ConnectionMetrics

_MAX_HEAD_BYTES = 65536
_MAX_TRAILER_BYTES = 8192
# What a client may go on to send once it has its answer; one that is cut off at once may never read that.
_MAX_LEFT_BYTES = 2**21
# A client must be ready to send again what a closed connection has left unanswered (RFC 9112, 9.3.2).
_MAX_PIPELINED = 128


class CheckedParsing(HttpToolsProtocol):
    """The part of the protocol that parses.

    Args:
        metrics: counts what is dropped.
    """

    def __init__(self, *args: Any, metrics: ConnectionMetrics, **more: Any) -> None:
        super().__init__(*args, **more)
        self._metrics = metrics
        self._fields = FieldChecker()
        self._head_since: float | None = None
        """Since when a head is on its way."""
        self._idle_since: float | None = self.loop.time()
        """Since when nothing is under way, as far as uvicorn does not see to that itself."""
        self._in_body = False
        """Whether a head is complete, and its request is not."""
        self._upgrades = False
        """Whether the head that was parsed last is to be parsed again."""
        self._chunk_bytes = self._unread_bytes = self._head_bytes = self._left_bytes = 0
        self._gap_bytes = self._trailer_bytes = 0
        """Bytes since the last part of a body, and those of trailer fields among them."""

    def _parse(self, data: bytes) -> None:
        """Parse bytes.

        Raises:
            httptools.HttpParserError: they are no HTTP; `_reason` knows more.
            Invalid: they exceed a limit.
        """
        self._chunk_bytes = self._unread_bytes = length = len(data)
        if self._head_since is not None:
            self._head_bytes += length
        if length <= _MAX_TRAILER_BYTES and self._gap_bytes == 0:
            self._gap_bytes = length
            self._feed(data)
        else:
            self._feed_pieces(memoryview(data))
        if self._head_since is not None and self._head_bytes > _MAX_HEAD_BYTES:
            raise too_long("head", _MAX_HEAD_BYTES)

    def _feed_pieces(self, rest: memoryview) -> None:
        size = _MAX_TRAILER_BYTES
        while rest:
            self._gap_bytes += min(size, len(rest))
            self._feed(rest[:size])
            if self._head_since is None and self._gap_bytes > _MAX_TRAILER_BYTES:
                raise too_long("trailers", _MAX_TRAILER_BYTES)
            rest = rest[size:]
            if not self._fields.is_chunked:
                size = len(rest)  # no trailers are among them, whose bytes can only be counted between pieces

    def _reason(self, error: Exception) -> Invalid:
        """Return why the parsing has ended with an exception."""
        if isinstance(error, Invalid):
            return error
        if self._fields.invalid is None and self._head_since is not None and self._size() > _MAX_HEAD_BYTES:
            return too_long("head", _MAX_HEAD_BYTES)
        return self._fields.invalid or Invalid("This is no valid HTTP/1.1 request.")

    def _feed(self, data: bytes | memoryview) -> None:
        """Feed the parser; a head that offers another protocol is parsed again without it (RFC 9110, 7.8)."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            head = without_upgrade(
                self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
            )
            self.parser, self._upgrades = httptools.HttpRequestParser(self), False
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.parser.feed_data(head)

    def on_message_begin(self) -> None:
        """The first byte of a request is here."""
        HttpToolsProtocol.on_message_begin(self)
        self._head_since, self._idle_since = self.loop.time(), None
        self._fields.reset()
        # Where another request ended in what has just come, how much of it is this one's is not known.
        self._head_bytes, self._unread_bytes = self._unread_bytes, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field, if it is valid; drop a trailer field."""
        if self._head_since is None:
            self._metrics.trailers.inc()
            self._trailer_bytes += len(name) + len(value)
            if self._trailer_bytes > _MAX_TRAILER_BYTES:
                self._fields.refuse(too_long("trailers", _MAX_TRAILER_BYTES))
            return
        name = name.lower()
        if name in CHECKED_FIELDS:
            value = self._fields.check(name, value)
            self.expect_100_continue |= name == b"expect"
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head of a request is here."""
        # What came with it may be a body, so that the exact sum is made for much alone.
        is_large = self._head_bytes > _MAX_HEAD_BYTES or self._chunk_bytes > _MAX_HEAD_BYTES
        if is_large and self._size() > _MAX_HEAD_BYTES:
            self._fields.refuse(too_long("head", _MAX_HEAD_BYTES))
        parser = self.parser
        version = parser.get_http_version()
        self._fields.check_head(parser.get_method(), self.url, version)
        if parser.should_upgrade():
            self._upgrades = True
            return
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._fields.refuse(Invalid(f"More than {_MAX_PIPELINED} requests wait on this connection.", 503))
        if version == "1.0":
            self.expect_100_continue = False
        self._head_since = None
        self._left_bytes = self._gap_bytes = self._trailer_bytes = 0
        self._in_body = True
        HttpToolsProtocol.on_headers_complete(self)

    def on_body(self, body: bytes) -> None:
        """A part of a body is here; what comes behind the answer is read to some length, and thrown away."""
        self._gap_bytes = 0
        if self.cycle.response_complete:
            self._left_bytes += len(body)
            if self._left_bytes > _MAX_LEFT_BYTES:
                self.transport.close()
        HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """The request is complete, unless its head is to be parsed again."""
        if not self._upgrades:
            self._gap_bytes, self._in_body = 0, False
            HttpToolsProtocol.on_message_complete(self)

    def _should_upgrade(self) -> bool:
        return False

    def _size(self) -> int:
        """Bytes of the head that was parsed last, as far as it was."""
        headers = self.headers or ()
        return len(getattr(self, "url", b"")) + sum(len(name) + len(value) for name, value in headers)
